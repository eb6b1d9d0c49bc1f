"""The site (`make docs`): all that is public is in it, every link leads somewhere, every picture has a text, and it
needs no network. What a page is made of is looked at here at once; the site is built once, in the tests marked slow."""
import ast
import html
import importlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import sources
from helpers import ROOT, name, notebooks
from signatures import comments_of, modules, own_names, prose, reference_pages

# of MyST, which uses what Sphinx 11 will no longer have
pytestmark = pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx API")
TEXTS = sorted(path for path in (ROOT/"docs").rglob("*.md"))

# What pages are made of ----------------------------------------------------------------------------------------------

def test_every_public_name_is_documented():
    "What `from module import *` gives is in the reference, there or where the name comes from."
    pages, found = reference_pages(ROOT), modules(ROOT)
    entry = re.compile(r"^:+\{py:(?:function|class|data)\} (\w+)", re.M)
    described = {name for text in pages.values() for name in entry.findall(text)}
    for module in found:
        public = set(importlib.import_module(module.name).__all__)
        handed_on = {n for n in public if f"| `{n}` |" in pages[f"reference/{module.name}.md"]}
        submodules = {n for n in public if f"reference/{module.name}.{n}.md" in pages}
        assert public == set(module.public) and not public - described - handed_on - submodules, module.name

def test_every_public_function_and_class_says_what_it_does():
    kinds = ast.FunctionDef | ast.ClassDef
    defined = {f"{m.name}.{n}": m.definitions[n][0] for m in modules(ROOT) for n in own_names(m)}
    assert not [n for n, node in defined.items() if isinstance(node, kinds) and not ast.get_docstring(node)]

def test_reference_reads_what_is_written():
    page = reference_pages(ROOT)["reference/clca.tokens.md"]
    assert "gather(x: Tensor, index: Tensor) -> Tensor" in page
    assert "| **index** | `Tensor` | \\[B, M\\] rows to take, per image |" in page
    assert "| returns | `Tensor` | \\[B, M, ...\\] |" in page
    lines = "def f(\n    a, # of this line\n): # what comes out\n    # not beside code\n    pass\n"
    assert comments_of(lines) == {2: "of this line", 3: "what comes out"}
    assert prose("a*b <c> `d*e`") == "a\\*b \\<c\\> `d*e`"

def test_errors_stand_with_their_words():
    page = reference_pages(ROOT)["reference/clca.lab.survivors.md"]
    assert "- `ValueError`: \\{name\\} has" in page

def test_every_notebook_has_its_place():
    names = [f"nbs/{name(path)}" for path in notebooks()]
    sections, groups = sources.order(names, [])
    placed = [page for pages in [*sections.values(), *groups.values()] for page in pages if page.startswith("nbs/")]
    assert sorted(placed) == sorted(set(names) - {"nbs/index"})

def test_cells_for_the_machinery_are_not_shown():
    def cell(source): return sources.shown_cell(nbformat.v4.new_code_cell(source, id="a1"))
    assert cell("#| hide\nx = 1") is None and cell("#| default_exp tokens") is None
    assert cell("#| export\nx = 1").source == "x = 1" and cell("#| export\nx = 1").metadata.tags == ["cell-a1"]
    assert cell("x = 1").metadata.tags == []

def test_a_bar_leaves_one_line():
    output = nbformat.v4.new_output("stream", name="stderr", text="a\n  0%|  | 0/2\r 50%|# | 1/2\r100%|##| 2/2\nb\r\n")
    assert sources.finished(output).text == "a\n100%|##| 2/2\nb\r\n"

def test_links_lead_to_where_the_site_has_what_they_name(tmp_path):
    "Pages that were moved, files that come along, folders and texts that are only named."
    root, source = tmp_path/"root", tmp_path/"source"
    for path in ("data/README.md", "LICENSE", "data/x.csv", "tests/run.py", "tests/README.md"):
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        (root/path).write_text("text")
    (source/"how_to").mkdir(parents=True)
    (source/"data.md").write_text("# Data")
    text = ("[a](../data/README.md#b) [c](../LICENSE) [d](../tests/) [e](../tests/README.md) [f](https://g.org) "
            "[h](nowhere.md)")
    brought = sources.bring_links(text, Path("how_to/grid.md"), source, root)
    assert brought == "[a](../data.md#b) [c](../LICENSE) d e [f](https://g.org) [h](nowhere.md)"
    assert (source/"LICENSE").read_text() == "text" and not (source/"tests").exists()

def test_the_readme_of_the_workflow_is_a_part_of_a_page(tmp_path):
    assert sources.workflow_text(tmp_path) == ""
    (tmp_path/"workflow").mkdir()
    (tmp_path/"workflow"/"README.md").write_text("# Sweeps\n\n[a](Snakefile)\n\n```sh\n# on SLURM\n```\n")
    assert sources.workflow_text(tmp_path) == "## Sweeps\n\n[a](../workflow/Snakefile)\n\n```sh\n# on SLURM\n```\n"

class Page(HTMLParser):
    "Links, anchors, pictures and all that a page loads."
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.loads, self.bare = [], set(), [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag in ("a", "area") and attrs.get("href"): self.links.append(attrs["href"])
        elif tag == "link" and attrs.get("rel") in ("next", "prev", "index", "search"):
            self.links.append(attrs["href"])
        else: self.loads += [attrs[key] for key in ("src", "href", "data", "poster") if attrs.get(key)]
        if tag == "img" and not attrs.get("alt", "").strip(): self.bare.append(attrs.get("src", "")[:80])

def outputs(path):
    return [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]

@pytest.mark.parametrize("path", notebooks(), ids=name)
def test_pictures_of_notebooks_have_a_text(path):
    for output in outputs(path):
        data, about = output.get("data", {}), output.get("metadata", {})
        assert not Page(data.get("text/html", "")).bare
        pictures = [kind for kind in data if kind.startswith("image/")]
        assert all("text/html" in data or about.get(kind, {}).get("alt") for kind in pictures)

def test_figures_have_a_text_and_their_runs():
    page = sources.figures_page(ROOT/"figures")
    drawn = [path.stem for path in (ROOT/"figures").glob("*.png")]
    assert drawn and not re.findall(r"!\[\s*\]", page)
    for figure in drawn:
        assert f"](../figures/{figure}.png)" in page
        runs = json.loads((ROOT/"figures"/f"{figure}.json").read_text(encoding="utf-8"))["runs"]
        assert all(html.escape(run) in page for run in runs), figure

@pytest.mark.parametrize("path", [p for p in TEXTS if "```python" in p.read_text()], ids=lambda p: p.stem)
def test_code_of_the_texts_runs(path, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S): exec(block, space)

# The site itself -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, made as by `make docs`: a warning would be an error."
    folder = tmp_path_factory.mktemp("site")
    assert sources.build(folder/"site") == 0
    yield {path.relative_to(folder/"site"/"html"): Page(path.read_text(encoding="utf-8"))
           for path in (folder/"site"/"html").rglob("*.html")}, folder/"site"/"html"
    shutil.rmtree(folder)

def dead(pages, top):
    "Links and loaded files that are not there, and anchors that the page lacks."
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"): continue
            target = (top/path).parent/unquote(parts.path) if parts.path else top/path
            target = target.resolve()
            inside = target.relative_to(top.resolve()) if target.is_relative_to(top.resolve()) else None
            if not target.is_file(): yield f"{path}: {link}"
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[inside].anchors:
                yield f"{path}: {link}"

def test_no_link_of_the_site_is_dead(site):
    pages, top = site
    assert len(pages) > len(notebooks()) and not list(dead(pages, top))

def test_the_site_loads_nothing_from_elsewhere(site):
    pages, top = site
    remote = re.compile(r"(?:https?:)?//")
    assert not {(path, url) for path, page in pages.items() for url in page.loads if remote.match(url)}
    asked = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]*)")
    styles = {path.name: asked.findall(path.read_text(encoding="utf-8")) for path in top.rglob("*.css")}
    assert styles and not any(styles.values())

def test_every_picture_of_the_site_has_a_text(site):
    pages, _ = site
    assert not {path: page.bare for path, page in pages.items() if page.bare}

def test_names_in_the_site_lead_to_the_reference(site):
    "And from there to the cell that defines them; names of notebooks lead to their pages."
    pages, _ = site
    assert "../reference/clca.tokens.html#clca.tokens.Select" in pages[Path("nbs/00_tokens.html")].links
    reference = pages[Path("reference/clca.tokens.html")].links
    assert any(link.startswith("../nbs/00_tokens.html#cell-") for link in reference)
    assert "nbs/14_own_reducer.html" in {link.strip("#") for link in pages[Path("index.html")].links}

def test_no_formula_of_the_site_is_left_as_text(site):
    _, top = site
    text = (top/"nbs"/"reducers"/"02_evit.html").read_text(encoding="utf-8")
    assert text.count("<math") > 2 and "$" not in re.sub(r"<pre.*?</pre>|<script.*?</script>", "", text, flags=re.S)

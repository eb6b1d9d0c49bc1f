"""The site: `python docs/sources.py FOLDER` gathers its pages in FOLDER/source and builds FOLDER/html from them.

Pages are the notebooks with the outputs that they were committed with, the texts of docs/, and what is made here: the
reference from the package's source, and the figures with their records. No network and no GPU is needed."""
import html
import json
import posixpath
import re
import shutil
import sys
from pathlib import Path

import nbformat
from crosslinks import moved_page
from signatures import reference_pages
from sphinx.cmd.build import build_main

from clca.lab.claims import with_numbers

ROOT = Path(__file__).resolve().parent.parent
SURVIVORS = "nbs/lab/19_survivors.ipynb" # its figure with a slider stands on the page learn.md
TEXTS = ["learn.md", "results.md", "notebooks.md", "works_with.md", "how_to"] # of docs/
PROJECT = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] # of the repository, where there are such

# Notebooks -----------------------------------------------------------------------------------------------------------

def is_directive(line: str) -> bool: return line.startswith("#|")


def shown_cell(cell: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    "A cell as a page shows it, without the directives; None for one that is hidden or holds nothing else."
    if cell.cell_type != "code": return cell
    lines = cell.source.splitlines()
    said = {re.sub(r"^#\|\s*", "", line).strip() for line in lines if is_directive(line)}
    source = "\n".join(line for line in lines if not is_directive(line)).strip("\n")
    if any(re.match(r"hide\b(?!_)", d) for d in said) or not source.strip(): return None
    tags = [f"cell-{cell.id}"] if any(d.startswith("export") for d in said) else []
    if "echo: false" in said or "hide_input" in said: tags.append("remove-input")
    if "code-fold: true" in said: tags.append("hide-input")
    cell.source = source
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), *tags]
    return cell


def with_text(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A picture that is stored as nothing but a picture has its text beside it; MyST-NB looks for that in the cell."
    for output in cell.get("outputs", []):
        texts = [m["alt"] for m in output.get("metadata", {}).values() if isinstance(m, dict) and "alt" in m]
        if texts and "text/html" not in output.get("data", {}): cell.metadata["mystnb"] = {"image": {"alt": texts[0]}}
    return cell


def finished(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "An output in which a progress bar is the one line that was left of it in the end."
    if output.output_type == "stream": output["text"] = re.sub(r"[^\n]*\r(?=[^\n])", "", output["text"])
    return output


def shown(path: Path) -> nbformat.NotebookNode:
    "A notebook as a page shows it."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [with_text(cell) for c in nb.cells if (cell := shown_cell(c))]
    for cell in nb.cells:
        if "outputs" in cell: cell.outputs = [finished(output) for output in cell.outputs]
    return nb


def moved_up(text: str) -> str:
    "Links of a notebook, for a page in the folder above."
    return re.sub(r'(\]\(|(?:src|srcset|href)=")\.\./', r"\1", text)


def start_page(notebook: Path, toctrees: str) -> nbformat.NotebookNode:
    "The README's notebook, and the order of all pages."
    nb = shown(notebook)
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = moved_up(with_numbers(cell.source))
    nb.cells.append(nbformat.v4.new_markdown_cell(toctrees, id="pages"))
    return nb

# The order of the pages ----------------------------------------------------------------------------------------------

LEARN = ["00_tokens", "01_schedule", "02_registry", "03_attention", "04_backbone", "04a_weights", "05_sequence",
         "06_cache", "07_scores", "08_head", "09_spec", "10_walk"]
SECTIONS = {
    "Learn": ["learn", *(f"nbs/{name}" for name in LEARN)],
    "Reducers": ["nbs/reducers/99_init", "nbs/reducers/[!9]*"],
    "How to": ["how_to/photographs", "nbs/train", "nbs/predict", "data", "how_to/keep_rate", "nbs/14_own_reducer",
               "nbs/15_other_loops", "how_to/grid", "how_to/export"],
    "Reference": ["reference/index"],
    "Results": ["results", "nbs/lab/41_measured", "nbs/comparison", "nbs/ablation", "nbs/benchmark", "results/figures",
                "nbs/figures", "nbs/lab/40_defects", "nbs/lab/08_coverage", "works_with"],
    "Notebooks": ["notebooks"],
}
GROUPS = { # the notebooks that no section has
    "model": ("The model, and timm's interface", "nbs/*"),
    "tools": ("Tools", "nbs/tools/*"),
    "training": ("Training", "nbs/training/*"),
    "lab": ("Lab", "nbs/lab/*"),
}


def toctree(pages: list[str], caption: str = "") -> str:
    head = [f":caption: {caption}"] if caption else []
    return "\n".join(["```{toctree}", ":hidden:", *head, "", *pages, "```"])


def expanded(pages: list[str], names: list[str]) -> list[str]:
    "Patterns as the pages that they match."
    matching = {page: sorted(n for n in names if Path(n).match(page)) if "*" in page else [page] for page in pages}
    return [name for found in matching.values() for name in found]


def order(names: list[str], project: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    "The pages of each section, and the notebooks of each group: every notebook is in one of them."
    sections = {caption: expanded(pages, names) for caption, pages in SECTIONS.items()}
    if project: sections["Project"] = project
    taken = {page for pages in sections.values() for page in pages} | {"nbs/index"}
    groups = {key: [n for n in sorted(names) if n not in taken and Path(n).parent == Path(pattern).parent]
              for key, (_, pattern) in GROUPS.items()}
    return sections, groups


def group_page(key: str, pages: list[str], titles: dict[str, tuple[str, str]]) -> str:
    "A page that lists the notebooks of a group with what each says of itself."
    rows = "\n".join(f"- [{titles[p][0]}](../{p}.ipynb): {titles[p][1]}" for p in pages)
    return f"# {GROUPS[key][0]}\n\n{rows}\n\n{toctree([f'/{p}' for p in pages])}\n"


def title_and_summary(path: Path) -> tuple[str, str]:
    "The title of a notebook and the line below it."
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    title, summary = re.search(r"^# (.+)$", text, re.M), re.search(r"^> (.+)$", text, re.M)
    return title[1] if title else path.stem, summary[1] if summary else ""

# Figures -------------------------------------------------------------------------------------------------------------

def interactive(notebook: Path) -> str:
    "The last figure with a slider that a notebook has among its outputs, as HTML."
    outputs = [o for c in nbformat.read(notebook, as_version=4).cells for o in c.get("outputs", [])]
    found = [text for o in outputs if "<figure" in (text := o.get("data", {}).get("text/html", ""))]
    if not found: raise ValueError(f"{notebook} has no figure among its outputs: run it, and store its outputs")
    return found[-1]


def figure_text(name: str, folder: Path) -> str:
    "What a figure shows, in the words that its SVG holds."
    said = re.findall(r"<!-- (.*?) -->", (folder/f"{name}.svg").read_text(encoding="utf-8"))
    return "; ".join(dict.fromkeys(s.strip() for s in said if re.search(r"[A-Za-z]{3}", s))).replace('"', "'")


def figures_page(folder: Path) -> str:
    "Every figure, with what it was made from."
    parts = ["# Figures and their runs",
             "Each figure is drawn by `nbs/figures.ipynb` from stored records, and a record beside it says from which: "
             "the runs, the fingerprints of the files that were read, the versions of what drew it, and the command. Titles "
             "say whether the numbers were published by others or measured here."]
    for record in sorted(folder.glob("*.json")):
        facts, name = json.loads(record.read_text(encoding="utf-8")), record.stem
        if not (folder/f"{name}.png").exists(): continue
        runs = facts.get("runs", [])
        listed = "".join(f"<li>{html.escape(str(run))}</li>" for run in runs)
        sources = ", ".join(f"{file} ({hashed})" for file, hashed in facts.get("data_hash", {}).items()) or "none"
        alt = html.escape(figure_text(name, folder), quote=True).replace("[", "(").replace("]", ")")
        parts += [f"## {name.replace('_', ' ').capitalize()}", f"![{alt}](../figures/{name}.png)",
                  f'<p class="record">Read from: {html.escape(sources)}. '
                  f'Files: <a href="../figures/{name}.json">record</a>, <a href="../figures/{name}.svg">SVG</a>, '
                  f'<a href="../figures/{name}.png">PNG</a>.</p>',
                  f"<details><summary>{len(runs)} {'run' if len(runs) == 1 else 'runs'}, and the command</summary>"
                  f"<ul>{listed}</ul><pre>{html.escape(facts.get('command', ''))}</pre></details>"]
    return "\n\n".join(parts) + "\n"

# The whole -----------------------------------------------------------------------------------------------------------

def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def linked_files(text: str) -> set[str]:
    "Targets of relative links of a Markdown text."
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    found = re.findall(r"\]\(([^)\s#]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", prose)
    return {target for target in map("".join, found) if not re.match(r"[a-z]+:|/", target)}


def bring_links(text: str, page: Path, source: Path, root: Path) -> str:
    """The text of a page with links that lead somewhere in the site: to where a page was moved, or to a file of the
    repository, which is brought along. What the site has no page for, such as a folder, is only named."""
    for target in linked_files(text):
        path = posixpath.normpath(posixpath.join(page.parent.as_posix(), target))
        stem, ending = posixpath.splitext(path)
        moved = moved_page(stem) + ending
        if moved != path and (source/moved).is_file():
            there = posixpath.relpath(moved, page.parent.as_posix())
            text = re.sub(rf"(\]\(|href=\"){re.escape(target)}(?=[)#\"])", lambda m, there=there: m[1] + there, text)
        elif (source/path).is_file(): continue
        elif (root/path).is_dir() or ((root/path).is_file() and ending in (".md", ".ipynb")):
            text = re.sub(rf"\[([^\]]*)\]\({re.escape(target)}(?:#[^)]*)?\)", r"\1", text)
        elif (root/path).is_file():
            (source/path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root/path, source/path)
    return text


def workflow_text(root: Path) -> str:
    "How a sweep is run on a cluster, as the README of the workflow says it, for a page in another folder."
    path = root/"workflow"/"README.md"
    if not path.exists(): return ""
    text = path.read_text(encoding="utf-8")
    for target in linked_files(text): text = text.replace(f"]({target}", f"](../workflow/{target}")
    parts = re.split(r"(```.*?```)", text, flags=re.S) # a heading, but not a comment in code, goes one level down
    return "".join(part if i % 2 else re.sub(r"^#", "##", part, flags=re.M) for i, part in enumerate(parts))


def gather(source: Path, root: Path = ROOT) -> None:
    "Make all pages of the site."
    names = sorted(p.relative_to(root).with_suffix("").as_posix() for p in (root/"nbs").rglob("*.ipynb")
                   if not any(part[0] in "._" for part in p.relative_to(root).parts))
    for text in TEXTS:
        path = root/"docs"/text
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source/text)
    shutil.copytree(root/"figures", source/"figures", ignore=shutil.ignore_patterns("README.md"))
    shutil.copytree(root/"figures", source.parent/"extra"/"figures", ignore=shutil.ignore_patterns("README.md"))
    shutil.copy(root/"data"/"README.md", source/"data.md")
    project = [name for name in PROJECT if (root/name).exists()]
    for name in project: shutil.copy(root/name, source/name)
    sections, groups = order(names, [Path(name).stem for name in project])
    titles = {name: title_and_summary(root/f"{name}.ipynb") for name in names}
    for key, pages in groups.items(): write(source/"notebooks"/f"{key}.md", group_page(key, pages, titles))
    for path, text in reference_pages(root).items(): write(source/path, text)
    write(source/"results"/"figures.md", figures_page(root/"figures"))
    write(source/"survivors.html", interactive(root/SURVIVORS))
    if (workflow := workflow_text(root)):
        grid = source/"how_to"/"grid.md"
        write(grid, grid.read_text(encoding="utf-8") + "\n" + workflow)
    toctrees = "\n\n".join(toctree(pages, caption) for caption, pages in sections.items())
    for name in names:
        target = source/("index.ipynb" if name == "nbs/index" else f"{name}.ipynb")
        target.parent.mkdir(parents=True, exist_ok=True)
        page = start_page(root/f"{name}.ipynb", toctrees) if name == "nbs/index" else shown(root/f"{name}.ipynb")
        nbformat.write(page, target)
    for path in source.rglob("*.ipynb"):
        nb = nbformat.read(path, as_version=4)
        for cell in (c for c in nb.cells if c.cell_type == "markdown"):
            cell.source = bring_links(cell.source, path.relative_to(source), source, root)
        nbformat.write(nb, path)
    for path in source.rglob("*.md"):
        write(path, bring_links(path.read_text(encoding="utf-8"), path.relative_to(source), source, root))


def build(folder: Path, root: Path = ROOT) -> int: # the exit status of Sphinx
    "The site in `folder`/html; a warning is an error."
    if folder.exists(): shutil.rmtree(folder)
    (source := folder/"source").mkdir(parents=True)
    gather(source, root)
    extra = f"html_extra_path={(folder/'extra').resolve()}" # figures with their records, under their own names
    options = ["--quiet", "-j", "auto", "-W", "--keep-going", "-c", str(root/"docs"), "-D", extra]
    return build_main([*options, str(source), str(folder/"html")])


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    sys.exit(build(Path(sys.argv[1])))

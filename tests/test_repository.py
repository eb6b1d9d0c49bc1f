"What is generated, pinned or promised agrees with what it comes from, and the sources keep the house style."
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distributions, version

import nbformat
import pytest
import yaml
from helpers import ROOT, exported_cells, name, notebooks, requirements, settings
from imports import of_floor
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from repository import licences, readme, requirements_by_name

def pins():
    lines = (line.split("#")[0].strip() for line in (ROOT/"constraints.txt").read_text().splitlines())
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in map(Requirement, filter(None, lines))}

def tracked():
    "Files of the repository: what git tracks, or, without git, what is there."
    if not (ROOT/".git").exists():
        hidden = re.compile(r"(^|/)\.")
        return [p for p in ROOT.rglob("*") if p.is_file() and not hidden.search(p.relative_to(ROOT).as_posix())]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listed.stdout.split("\0")
    return [ROOT/n for n in names if n and (ROOT/n).is_file()]

def contents(folder):
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".py", ".ipynb")]
    return {p.relative_to(folder).as_posix(): p.read_text() for p in files if ".ipynb_checkpoints" not in p.parts}

def differing(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))

@pytest.fixture(scope="module")
def regenerated(tmp_path_factory):
    "A copy in which clca/ was made anew and the notebooks were cleaned; with one more, whose tag must survive."
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT/"nbs", copy/"nbs")
    shutil.copy(ROOT/"settings.ini", copy/"settings.ini")
    metadata = {"tags": ["parameters"], "collapsed": True}
    cell = nbformat.v4.new_code_cell("keep: float = 0.1 # share of tokens", metadata=metadata)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), copy/"nbs"/"tagged.ipynb")
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    for call in ("from nbdev.doclinks import nbdev_export as f; f()", "from nbdev.clean import nbdev_clean as f; f()"):
        subprocess.run([sys.executable, "-c", call], cwd=copy, env=env, check=True, capture_output=True, text=True)
    yield copy

def test_package_is_what_the_notebooks_export(regenerated):
    assert not differing(contents(regenerated/"clca"), contents(ROOT/"clca")), "run make prepare"

def test_notebooks_are_clean(regenerated):
    assert differing(contents(regenerated/"nbs"), contents(ROOT/"nbs")) == ["tagged.ipynb"], "run make prepare"

def test_cleaning_keeps_the_parameters_tag(regenerated):
    cell = nbformat.read(regenerated/"nbs"/"tagged.ipynb", 4).cells[0]
    assert cell.metadata == {"tags": ["parameters"]}

def test_readme_is_what_its_notebook_says(): assert (ROOT/"README.md").read_text() == readme(), "run make readme"

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\(([^)#]+)|src="([^"]+)"', (ROOT/"README.md").read_text())
    assert not [n for n in map("".join, links) if "://" not in n and not (ROOT/n).exists()]

def test_every_requirement_is_pinned_within_its_range():
    pinned = pins()
    for key in settings():
        if not key.endswith("requirements"): continue
        for r in requirements(key):
            if r.name == "clca": continue
            pin = Version(pinned[canonicalize_name(r.name)])
            assert pin in r.specifier, f"{r} ({key}) and constraints.txt disagree"

def test_installed_versions_are_the_pinned_ones():
    pinned, here = pins(), distributions(path=[sysconfig.get_path("purelib")])
    own = {canonicalize_name(d.name): Version(d.version).public for d in here if d.name}
    other = {n: (v, pinned[n]) for n, v in own.items() if n in pinned and v != pinned[n]}
    assert not other, "installed, pinned: make the environment anew"

def test_package_metadata_comes_from_settings():
    import clca
    assert version("clca") == clca.__version__ == settings()["version"]
    project = (ROOT/"pyproject.toml").read_text()
    assert f'">={settings()["min_python"]}"' in project and f'description = "{settings()["description"]}"' in project

def test_conda_and_make_install_the_same():
    env = yaml.safe_load((ROOT/"environment.yml").read_text())
    pip = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    install = re.search(r"pip install --quiet (.*)", (ROOT/"Makefile").read_text())[1].replace("'", "")
    assert " ".join(pip) == install

def test_every_extra_is_used():
    "By make, by another extra, or by whoever trains and exports: the README and the errors of the package name those."
    extras = {key.removesuffix("_requirements") for key in settings() if key.endswith("_requirements")}
    keys = [key for key in settings() if key.endswith("requirements")]
    included = {extra for key in keys for r in requirements(key) for extra in r.extras}
    texts = [*(ROOT/"clca").rglob("*.py"), ROOT/"workflow"/"README.md"]
    asked = re.findall(r"(?:clca|'\.)\[(\w+)\]", "".join(p.read_text() for p in texts))
    made = ",".join(re.findall(r"-e '\.\[([\w,]+)\]'", (ROOT/"Makefile").read_text())).split(",")
    assert extras == included | set(made) | set(asked)

def test_conda_takes_the_python_of_settings():
    env = yaml.safe_load((ROOT/"environment.yml").read_text())
    assert f'python={settings()["min_python"]}' in env["dependencies"]

def test_every_requirement_has_its_licence():
    "The page is what the metadata of the installed packages say; rows of those that are not installed stay as they are."
    page = (ROOT/"docs"/"licences.md").read_text()
    rows = dict(row.strip("| ").split(" | ", 1) for row in page.splitlines() if row.startswith("| ") and " | for | " not in row)
    assert rows.keys() == requirements_by_name().keys() and not [row for row in rows.values() if "not installed" in row]
    assert page == licences(page), "run python docs/repository.py licences"

def test_citation_says_the_version_and_is_whole():
    cited = yaml.safe_load((ROOT/"CITATION.cff").read_text())
    assert cited["version"] == settings()["version"] and cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    [paper] = cited["references"]
    assert paper["url"].endswith("2501.00243") and len(paper["authors"]) == 6

def test_changelog_has_the_version():
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT/"CHANGELOG.md").read_text(), re.M)
    assert versions[:2] == ["Unreleased", settings()["version"]]

def test_hosted_ci_runs_the_commands_of_the_readme():
    if not (path := ROOT/".github"/"workflows"/"ci.yml").exists(): pytest.skip("an unpacked sdist has no hosted CI")
    job = yaml.safe_load(path.read_text())["jobs"]["check"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make train", "make test"]
    assert all(f"Python :: {v}" in (ROOT/"pyproject.toml").read_text() for v in job["strategy"]["matrix"]["python"])

def test_no_large_files(): assert not [p for p in tracked() if p.stat().st_size > 2**20]

def test_no_paths_of_a_machine():
    path = re.compile(rb"(?<![\w.:/~+-])/(?:work|farm|root|home)\b/?[\w.-]*")
    texts = [p for p in tracked() if p.suffix not in (".png", ".jpg", ".safetensors", ".npz")]
    assert not {(p.name, m[0]) for p in texts for m in path.finditer(p.read_bytes())}

def test_ci_is_executable(): assert os.access(ROOT/".ci"/"run", os.X_OK)

# Style ---------------------------------------------------------------------------------------------------------------

def test_ruff():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "nbs", "tests", "docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

def test_types():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

def test_types_are_strict_on_the_whole_method():
    "The list of modules in pyproject.toml forgets none."
    overrides = tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    [strict] = [set(o["module"]) for o in overrides if o.get("disallow_untyped_defs")]
    method = {m for m in of_floor("method") if not m.startswith("clca.reducers")}
    assert strict == method | {"clca", "clca.reducers.*"}

def lengths(): return {f"{name(p)}: {cell[0]}": len(cell) for p in notebooks() for cell in exported_cells(p)}

def test_exported_lines_fit():
    lines = [(name(p), line) for p in notebooks() for cell in exported_cells(p) for line in cell]
    assert not [pair for pair in lines if len(pair[1]) >= 120]

def test_exported_cells_are_small():
    counts = sorted(lengths().values())
    assert statistics.median(counts) <= 10 and counts[int(.95 * len(counts))] <= 25
    assert not [cell for cell, n in lengths().items() if n > 40]

def test_bars_are_text():
    "A notebook stores a widget as it was when it appeared, at 0 %, for whoever opens it later or makes HTML of it."
    texts = {path: path.read_text() for path in [*(ROOT/"clca").rglob("*.py"), *notebooks()]}
    assert any("from tqdm import tqdm" in text for text in texts.values())
    assert not [path for path, text in texts.items() if re.search(r"tqdm\.(auto|notebook|autonotebook|rich)\b", text)]

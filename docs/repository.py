"""What `make` calls: `python docs/repository.py results FOLDER` says what a run left behind,
`python docs/repository.py rerun RUN` makes a run again and compares,
`python docs/repository.py readme` makes README.md from nbs/index.ipynb,
`python docs/repository.py record TARGET` runs `make TARGET` and keeps what it printed last, for the README,
`python docs/repository.py licences` makes docs/licences.md from what is installed."""
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

import nbformat
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEADLINE = dict(
    test_top1="top-1",
    test_top5="top-5",
    macro_f1="macro F1",
    gmacs="GMACs an image",
    train_seconds="s of training",
    images_per_second="images/s",
)


def headline(metrics: dict) -> str:
    "The numbers that say how a run went, in one line."
    there = {label: metrics[key] for key, label in HEADLINE.items() if isinstance(metrics.get(key), (int, float))}
    return ", ".join(f"{label} {value:.4g}" for label, value in there.items())


def show_results(folder: str | Path) -> None:
    "Print where the results of a run are, and its headline; `FileNotFoundError` if there are none."
    folder = Path(folder)
    if not (files := sorted(f.name for f in folder.glob("*") if not f.name.startswith("."))):
        raise FileNotFoundError(f"no results in {folder}: the notebook did not run, or was given another out")
    print(f"results in {folder}: {', '.join(files)}")
    if (metrics := folder / "metrics.json").exists(): print(headline(json.loads(metrics.read_text())))


def record(target: str, path: Path = ROOT / "data" / "commands.json", lines: int = 2) -> None:
    "Run `make target` and keep its last lines with commit, machine and day; exits with a sentence if it fails."
    said = []
    with subprocess.Popen(["make", target], cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            said += filter(None, [line.strip("= \n")])
    if process.returncode: sys.exit(f"make {target} failed, so nothing is recorded")
    from clca.training.environment import provenance # takes seconds, which not every call of this file needs
    made = dict(printed=said[-lines:]) | {key: provenance()[key] for key in ("git_commit", "machine", "date")}
    records = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(records | {f"make {target}": made}, indent=1) + "\n")


def cell_text(cell: dict) -> str:
    "One notebook cell as Markdown; empty if it is hidden. Pictures are named relative to the notebook."
    if cell.cell_type != "code": return cell.source.replace("](../", "](").replace('src="../', 'src="')
    if re.search(r"^#\|\s*hide", cell.source, re.M): return ""
    code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    out = "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs).rstrip()
    return f"```python\n{code}\n```" + (f"\n\n```\n{out}\n```" if out else "")


def numbered(notebook: str | Path) -> nbformat.NotebookNode:
    "A notebook with the numbers of its text, which are `{{ expressions }}` of nbs/lab/42_claims.ipynb."
    from clca.lab.claims import with_numbers # takes seconds, which not every call of this file needs
    nb = nbformat.read(notebook, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = with_numbers(cell.source)
    return nb


def readme(notebook: str | Path = ROOT / "nbs" / "index.ipynb") -> str:
    "The README as Markdown, made from its notebook."
    texts = ["<!-- made from nbs/index.ipynb by make readme -->", *map(cell_text, numbered(notebook).cells)]
    return "\n\n".join(filter(None, texts)) + "\n"


def write_readme(root: str | Path = ROOT) -> None:
    "Write the README of a checkout, in UTF-8 whatever the locale; the old one stays until the new one is whole."
    path = Path(root) / "README.md"
    part = path.with_name(".README.md.part")
    try:
        part.write_text(readme(Path(root) / "nbs" / "index.ipynb"), encoding="utf-8")
        part.replace(path)
    finally: part.unlink(missing_ok=True)


def requirements_by_name(root: str | Path = ROOT) -> dict[str, str]:
    "What settings.ini asks for, with the extra that asks for it first; the package itself is called `clca`."
    cfg = ConfigParser()
    cfg.read(Path(root) / "settings.ini")
    asked = {key: value.split() for key, value in cfg["DEFAULT"].items() if key.endswith("requirements")}
    found = [(Requirement(line).name, key.removesuffix("requirements").rstrip("_") or "clca")
             for key, lines in asked.items() for line in lines]
    return {name: extra for name, extra in reversed(found) if name != "clca"}


def licence(about: PackageMetadata) -> str:
    "The licence that a package names in its metadata: as an expression, as classifiers, or in the first line of a text."
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c.startswith("License :: ")]
    named = ", ".join(c for c in classifiers if c != "OSI Approved")
    text = (about.get("License") or "").strip().partition("\n")[0]
    return about.get("License-Expression") or named or text or "named nowhere but in its licence file"


def licences(old: str = "") -> str:
    "A table of what we ask for; what is not installed here keeps its row of the old table."
    kept = {row.split(" | ")[0].removeprefix("| "): row for row in old.splitlines() if row.startswith("| ")}
    rows = []
    for name, extra in sorted(requirements_by_name().items(), key=lambda item: item[0].lower()):
        try: rows.append(f"| {name} | {extra} | {licence(metadata(name))} |")
        except PackageNotFoundError: rows.append(kept.get(name) or f"| {name} | {extra} | not installed |")
    return LICENCES + "\n".join(rows) + "\n"


LICENCES = """<!-- made from the metadata of what is installed, by python docs/repository.py licences -->
# Licences

> What this project builds on, and under which licence each is

clca itself is under the Apache Licence 2.0, see `LICENSE`. It holds no code of the packages below: pip installs them
beside it. `clca` marks what `pip install clca` brings, other words the extra that does, as in `pip install 'clca[train]'`.
The licences are those that the packages name in their metadata.

| package | for | licence |
|---|---|---|
"""

def rerun(run: str) -> None:
    "Make a run again and print what is equal; a record that is not there or not whole ends it with a sentence."
    from clca.lab import rerun # which needs the whole environment, and the rest of this file nothing

    try: print(rerun.rerun(run))
    except (ValueError, FileNotFoundError) as e: sys.exit(str(e))


if __name__ == "__main__":
    if sys.argv[1:] == ["readme"]: write_readme()
    elif sys.argv[1:2] == ["record"] and len(sys.argv) == 3: record(sys.argv[2], lines=1 if "test" in sys.argv[2] else 2)
    elif sys.argv[1:] == ["licences"]:
        page = ROOT / "docs" / "licences.md"
        page.write_text(licences(page.read_text(encoding="utf-8") if page.exists() else ""), encoding="utf-8")
    elif sys.argv[1:2] == ["results"] and len(sys.argv) == 3: show_results(sys.argv[2])
    elif sys.argv[1:2] == ["rerun"] and len(sys.argv) == 3: rerun(sys.argv[2])
    else: sys.exit(__doc__)

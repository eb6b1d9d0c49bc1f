"""What `make` calls: `python docs/repository.py results FOLDER` says what a run left behind,
`python docs/repository.py rerun RUN` makes a run again and compares,
`python docs/repository.py readme` makes README.md from nbs/index.ipynb."""
import json
import re
import sys
from pathlib import Path

import nbformat

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


def cell_text(cell: dict) -> str:
    "One notebook cell as Markdown; empty if it is hidden. Pictures are named relative to the notebook."
    if cell.cell_type != "code": return cell.source.replace("](../", "](").replace('src="../', 'src="')
    if re.search(r"^#\|\s*hide", cell.source, re.M): return ""
    code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    out = "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs).rstrip()
    return f"```python\n{code}\n```" + (f"\n\n```\n{out}\n```" if out else "")


def readme(notebook: str | Path = ROOT / "nbs" / "index.ipynb") -> str:
    "The README as Markdown, made from its notebook."
    cells = nbformat.read(notebook, as_version=4).cells
    texts = ["<!-- made from nbs/index.ipynb by make readme -->", *map(cell_text, cells)]
    return "\n\n".join(filter(None, texts)) + "\n"


def write_readme(root: str | Path = ROOT) -> None:
    "Write the README of a checkout, in UTF-8 whatever the locale; the old one stays until the new one is whole."
    path = Path(root) / "README.md"
    part = path.with_name(".README.md.part")
    try:
        part.write_text(readme(Path(root) / "nbs" / "index.ipynb"), encoding="utf-8")
        part.replace(path)
    finally: part.unlink(missing_ok=True)


def rerun(run: str) -> None:
    "Make a run again and print what is equal; a record that is not there or not whole ends it with a sentence."
    from clca.lab import rerun # which needs the whole environment, and the rest of this file nothing

    try: print(rerun.rerun(run))
    except (ValueError, FileNotFoundError) as e: sys.exit(str(e))


if __name__ == "__main__":
    if sys.argv[1:] == ["readme"]: write_readme()
    elif sys.argv[1:2] == ["results"] and len(sys.argv) == 3: show_results(sys.argv[2])
    elif sys.argv[1:2] == ["rerun"] and len(sys.argv) == 3: rerun(sys.argv[2])
    else: sys.exit(__doc__)

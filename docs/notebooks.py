"""`make notebooks` runs the notebooks below and stores what they show: `python docs/notebooks.py`, or with some names only.

The outputs in a notebook belong to three things: its code (comments and texts aside), the values that it is given here, and
the records that it reads. Their hash is stored with the outputs, and tests/test_executed.py says when it is another one:
then the notebook shows what today's would not. What the package does inside is the business of its own tests: a change
that is meant to change numbers is followed by `make notebooks`."""
import base64
import hashlib
import html
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from clca.training.code import essence

ROOT = Path(__file__).resolve().parent.parent
MADE = Path("runs") / "notebooks" # one folder for each
RUNS = { # what each is given: the main job with fewer images and epochs, so that all of them take minutes
    "train": dict(images_per_class=60, epochs=5),
    "predict": dict(model="runs/notebooks/train", images="data/typefaces-v*-64-60-0/test", shown=4),
    "ablation": dict(source="data/ablation"),
    "comparison": dict(records="data/runs/comparison.jsonl"),
    "benchmark": dict(records=["data/benchmark/cpu.csv", "data/benchmark/batch.csv"]),
    "figures": dict(),
}
READS = { # records whose change makes the outputs old
    "ablation": ["data/ablation/*", "data/ablation/*/*"],
    "comparison": ["data/runs/comparison*", "data/runs/comparison/*"],
    "benchmark": ["data/benchmark/*"],
    "figures": ["data/runs/*", "data/runs/*/*", "data/benchmark/*", "data/published/*"],
}
COLOURS = 64 # of a picture on a page: with fewer, two variants get one colour
AFTER = {"predict": "train"} # shows the model of another


def without_magics(source: str) -> str:
    "The Python in a cell; magics can change no output."
    return "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))


def source_hash(name: str, root: Path = ROOT) -> str:
    "Of all that decides what a notebook shows: 16 hex digits."
    whole = hashlib.sha256(json.dumps(RUNS[name], sort_keys=True).encode())
    if name in AFTER: whole.update(source_hash(AFTER[name], root).encode())
    for cell in nbformat.read(root / "nbs" / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code": whole.update(essence(without_magics(cell.source)).encode() + b"\0")
    files = sorted({file for pattern in READS.get(name, ()) for file in root.glob(pattern) if file.is_file()})
    for file in files: whole.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]


def picture(data: str, text: str) -> tuple[str, str]:
    "A PNG in base64 with fewer colours, and the same as an image for pages, with its text."
    from PIL import Image # not needed to check a hash
    whole = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    image = whole.quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(png := io.BytesIO(), "PNG", optimize=True)
    copies = [io.BytesIO(), io.BytesIO()] # lines are smaller without loss, photographs with it
    image.convert("RGB").save(copies[0], "WEBP", lossless=True)
    whole.save(copies[1], "WEBP", quality=60)
    webp = min(copies, key=lambda file: len(file.getvalue()))
    code = base64.b64encode(webp.getvalue()).decode()
    page = f'<img alt="{html.escape(text)}" src="data:image/webp;base64,{code}">'
    return base64.b64encode(png.getvalue()).decode(), page


def clean_text(text: str, number: int) -> str:
    "Without what differs from run to run and from machine to machine: places, addresses, names that pandas draws."
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".").replace(str(Path.home()), "~")
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"\bT_[0-9a-f]{5}", f"T_{number}", text)


def clean_output(output: NotebookNode, number: int) -> NotebookNode | None:
    "An output to store; nothing for what was written to standard error and for a bar."
    if output.output_type == "stream":
        if output.name == "stderr": return None
        output.text = clean_text(output.text, number)
        return output
    data = output.get("data", {})
    if re.match(r"(\w[\w ]*: )?\s*\d+%\|", data.get("text/plain", "")): return None
    for kind in data:
        if kind.startswith("text/"): data[kind] = clean_text(data[kind], number)
    if "image/png" in data:
        alt = output.metadata.get("image/png", {}).get("alt", "")
        data["image/png"], data["text/html"] = picture(data["image/png"], alt)
    if "execution_count" in output: output.execution_count = None
    return output


def outputs(cell: NotebookNode, number: int) -> list[NotebookNode]:
    "What a cell shows, cleaned, with its prints in one piece."
    kept = []
    for output in filter(None, (clean_output(o, number) for o in cell.outputs)):
        if kept and output.output_type == kept[-1].output_type == "stream": kept[-1].text += output.text
        else: kept.append(output)
    return kept


def found(value):
    "A value of `RUNS`; a text with a star is what there is of that name."
    if not isinstance(value, str) or "*" not in value: return value
    return next(ROOT.glob(value)).relative_to(ROOT).as_posix()


def execute(name: str) -> None:
    "Run a notebook and store its outputs in it; its source stays as it is."
    import papermill
    folder = ROOT / MADE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = {key: found(value) for key, value in RUNS[name].items()} | ({} if name == "figures" else {"out": str(MADE / name)})
    path = ROOT / "nbs" / f"{name}.ipynb"
    done = papermill.execute_notebook(str(path), str(folder / path.name), given, cwd=str(ROOT), progress_bar=False,
                                      stderr_file=sys.stderr)
    store(name, done)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 2**10:.0f} KiB", flush=True)


def store(name: str, done: NotebookNode) -> None:
    "Put the outputs of an executed copy into a notebook, with what they belong to."
    from clca.training.environment import provenance
    from nbdev.clean import nbdev_clean
    path = ROOT / "nbs" / f"{name}.ipynb"
    shown = [c for c in done.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]
    nb = nbformat.read(path, 4)
    for number, (cell, ran) in enumerate(zip((c for c in nb.cells if c.cell_type == "code"), shown, strict=True)):
        if cell.source != ran.source: sys.exit(f"{path.name} was changed while it ran: run it again")
        cell.outputs = outputs(ran, number)
    about = {key: provenance()[key] for key in ("git_commit", "machine", "date")}
    nb.metadata["made"] = dict(source=source_hash(name), given=RUNS[name], **about)
    nbformat.write(nb, path)
    nbdev_clean(str(path))


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - RUNS.keys(): sys.exit(f"no notebook {unknown.pop()}: there are {', '.join(RUNS)}")
    os.chdir(ROOT)
    os.environ.pop("IN_TEST", None)
    os.environ.pop("CLCA_ROOT", None)
    os.environ["PYTHONPATH"] = str(ROOT)
    for asked in sys.argv[1:] or RUNS: execute(asked)

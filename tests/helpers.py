"What several tests need to know about the repository and its notebooks."
import re
from collections.abc import Iterator
from configparser import ConfigParser, SectionProxy
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
GUARD = re.compile(r"^\w+ = check_parameters\(In, globals\(\)\)", re.M)
EXPORT = re.compile(r"^#\|\s*exporti?\b", re.M)

def settings() -> SectionProxy:
    "settings.ini."
    cfg = ConfigParser()
    cfg.read(ROOT/"settings.ini")
    return cfg["DEFAULT"]

def requirements(key: str) -> list[Requirement]: return [Requirement(r) for r in settings()[key].split()]

def notebooks() -> list[Path]:
    "Every notebook that nbdev sees: names and folders that begin with _ or . are scratch."
    scratch = re.compile(r"(^|/)[._]")
    return sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if not scratch.search(p.relative_to(ROOT).as_posix()))

def is_tagged(cell) -> bool: return "parameters" in cell.metadata.get("tags", [])
def code_cells(path: Path) -> list: return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
def tagged(path: Path) -> list[int]: return [i for i, c in enumerate(code_cells(path)) if is_tagged(c)]
def guards(path: Path) -> list[int]: return [i for i, c in enumerate(code_cells(path)) if GUARD.search(c.source)]
def runnable() -> list[Path]: return [p for p in notebooks() if tagged(p) or guards(p)]
def name(path: Path) -> str: return path.relative_to(ROOT/"nbs").with_suffix("").as_posix()

def shown(nb) -> list[str]:
    "What is said of each picture that a notebook holds; nothing if one of the two places says nothing."
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
    there = [o.data.get("text/html", "").startswith("<img alt=") for o in outputs]
    return [html and o.metadata.get("image/png", {}).get("alt", "") for html, o in zip(there, outputs)]

def exported_cells(path: Path) -> list[list[str]]:
    "The lines of each cell that becomes code of the package."
    sources = [c.source.splitlines() for c in code_cells(path) if EXPORT.search(c.source)]
    return [[line for line in lines if not line.startswith("#|")] for lines in sources]

@contextmanager
def registries_restored() -> Iterator[None]:
    "What is registered inside, by a test or by a notebook, is gone after it."
    from clca.head import HEADS
    from clca.reducers import REDUCERS
    from clca.scores import SCORES
    from clca.training.adapters import ADAPTERS
    before = [(registry, dict(registry), set(registry.typed)) for registry in (REDUCERS, SCORES, HEADS, ADAPTERS)]
    try: yield
    finally:
        for registry, things, typed in before:
            registry.clear()
            registry.update(things)
            registry.typed.clear()
            registry.typed.update(typed)

def tinted_noise(root: Path, shape, **numbers: int) -> Iterator[tuple[Path, np.ndarray]]:
    """A place and pixels for each image of three classes, by split; `shape` gives height and width of the k-th of a class.
    What the images become is the caller's business."""
    rng = np.random.default_rng(0)
    for split, number in numbers.items():
        for channel, tint in enumerate(("red", "green", "blue")):
            (place := root/split/tint).mkdir(parents=True)
            for k in range(number):
                pixels = rng.integers(0, 128, (*shape(k), 3), dtype=np.uint8)
                pixels[..., channel] += 120
                yield place/f"{k}.png", pixels

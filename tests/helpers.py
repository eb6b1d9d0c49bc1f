"What several tests need to know about the notebooks."
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
GUARD = re.compile(r'^\w+ = check_parameters\(In, globals\(\)\)', re.M)

def notebooks() -> list[Path]:
    "Every notebook that nbdev sees: names and folders that begin with _ or . are scratch."
    paths = (p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(ROOT).parts))
    return sorted(paths)

def code_cells(path: Path) -> list: return [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
def tagged(path: Path) -> list[int]: return [i for i, c in enumerate(code_cells(path)) if 'parameters' in c.metadata.get('tags', [])]
def guards(path: Path) -> list[int]: return [i for i, c in enumerate(code_cells(path)) if GUARD.search(c.source)]
def runnable() -> list[Path]: return [p for p in notebooks() if tagged(p) or guards(p)]
def name(path: Path) -> str: return path.relative_to(ROOT/'nbs').with_suffix('').as_posix()

"""The examples of a notebook on the package that was exported from it: what `make coverage` and `make mutants` run.

tests/test_notebooks.py runs a notebook as it is, with the code that stands in it. Here its exported cells are left out
and what the examples need comes from the module: a line of clca/ that an example runs counts as run, and a mutant in
clca/ meets the assertions of the notebook. A mutant is spared the cells that only draw, which take a hundred times as
long as the others and assert nothing. pytest does not collect this file by itself, it has to be named."""
import os
import re
from importlib import import_module

import matplotlib.pyplot as plt
import pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from helpers import EXPORT, ROOT, name, registries_restored, settings
from imports import MODULES, floor

DRAWN = re.compile(r"^from clca\.lab\.pictures import", re.M)
SKIPPED = re.compile(rf"^#\|\s*(eval:\s*false|{'|'.join(settings()['tst_flags'].split())})\b", re.M)

def notebook(module: str):
    "The notebook that a module is exported from, as its first lines say; nothing if none is."
    file = MODULES[module]
    found = re.search(r"File to edit: (\S+)\.$", file.read_text(), re.M)
    return found and (file.parent/found[1]).resolve()

NOTEBOOKS = {module: path for module in MODULES if floor(module) in ("method", "tools") and (path := notebook(module))}

@pytest.mark.parametrize("module", NOTEBOOKS, ids=lambda module: name(NOTEBOOKS[module]))
def test_examples(module, monkeypatch):
    path = NOTEBOOKS[module]
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(path.parent)
    shell = CaptureShell(path)
    shell.user_ns |= {k: v for k, v in vars(import_module(module)).items() if not k.startswith("__")}
    mutated = "MUTANT_UNDER_TEST" in os.environ # mutmut sets it
    def left_out(cell):
        if cell.cell_type != "code" or EXPORT.search(cell.source) or SKIPPED.search(cell.source): return True
        return mutated and DRAWN.search(cell.source) and "assert" not in cell.source
    try:
        with registries_restored(): shell.run_all(read_nb(path), exc_stop=True, preproc=left_out)
    except BaseException: pytest.fail(shell.prettytb(fname=path))
    finally: plt.close("all")

"Every notebook is a test: the library ones as by nbdev_test, the runnable ones by papermill, small as in smoke.yaml."
import ast
import json
import re
import subprocess

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
import torch
import yaml
from helpers import ROOT, code_cells, guards, name, notebooks, registries_restored, runnable, shown, tagged
from nbconvert import HTMLExporter
from nbdev import test as nbt
from nbdev.config import get_config

SMOKE = yaml.safe_load((ROOT/"tests"/"smoke.yaml").read_text()) or {}
RUNNABLE = runnable()
LIBRARY = [p for p in notebooks() if p not in RUNNABLE]
each_runnable = pytest.mark.parametrize("path", RUNNABLE, ids=name)

def torch_state(): return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()

def parameters(path): return papermill.inspect_notebook(str(path))

def test_there_are_notebooks(): assert len(LIBRARY) >= 3, "nbs/ has next to no notebooks, so nothing would be tested"

@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library(path, monkeypatch, capfd):
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.syspath_prepend(str(ROOT))
    before = torch_state()
    flags = get_config(path=ROOT).tst_flags.split()
    with registries_restored(): passed, _ = nbt.test_nb(path, skip_flags=flags, basepath=ROOT)
    plt.close("all")
    assert passed, capfd.readouterr().err[-3000:]
    assert torch_state() == before, "the notebook leaves torch in another state than it found it in"

@each_runnable
def test_parameters_cell(path):
    "One tagged cell, the guard after it, every name annotated, commented and visible to papermill --help-notebook."
    assert len(tagged(path)) == 1, "a runnable notebook needs exactly one cell tagged parameters"
    guard = "settings = check_parameters(In, globals())"
    assert guards(path) == [tagged(path)[0] + 1], f"{guard} belongs in the cell after the parameters"
    found = parameters(path)
    body = ast.parse(code_cells(path)[tagged(path)[0]].source).body
    assert all(isinstance(o, ast.AnnAssign) for o in body), "the parameters cell holds annotated assignments only"
    assert list(found) == [o.target.id for o in body]
    bare = [p for p, o in found.items() if o["inferred_type_name"] == "None" or not o["help"]]
    assert not bare, "every parameter has a type and a comment"

def test_smoke_settings_fit_the_notebooks():
    assert set(SMOKE) == {name(p) for p in RUNNABLE}, "tests/smoke.yaml lists every runnable notebook and no other"
    for p in RUNNABLE:
        given = SMOKE[name(p)].get("parameters", {})
        assert given.keys() <= parameters(p).keys(), f"smoke.yaml sets names that {name(p)} lacks"

@each_runnable
def test_runs(path, tmp_path):
    """papermill runs the notebook, and at its end every overridden name still has the value that it was given.
    A copy stays in the folder of its results, over which a refused command does not write."""
    settings, out = SMOKE[name(path)], tmp_path/"out"
    given = settings.get("parameters", {}) | {"out": str(out)}
    nb = nbformat.read(path, 4)
    seen = f"{{k: globals()[k] for k in {list(given)}}}"
    nb.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({seen}, default=str))"))
    nbformat.write(nb, copy := tmp_path/path.name)
    out.mkdir()
    done = papermill.execute_notebook(str(copy), str(out/"done.ipynb"), given, cwd=str(ROOT), progress_bar=False,
                                      execution_timeout=settings.get("timeout", 120))
    assert json.loads(done.cells[-1].outputs[-1].text) == given
    assert all(shown(done)), "a picture has no alternative text"
    kept = nbformat.read(out/f"{path.stem}.finished.ipynb", 4)
    assert [cell.source for cell in kept.cells] == [cell.source for cell in done.cells]

def test_pictures_are_described(caplog):
    "Each has an alternative text, which nbconvert puts into the page: it warns of a picture without one."
    found = {name(path): shown(nbformat.read(path, 4)) for path in notebooks()}
    bare = [path for path, texts in found.items() if not all(texts)]
    assert sum(map(len, found.values())) > 9 and not bare
    path = ROOT/"nbs"/"lab"/"15_speed_figures.ipynb"
    page, _ = HTMLExporter().from_filename(str(path))
    assert page.count("<img") == len(shown(nbformat.read(path, 4))) and "No description" not in page
    assert not caplog.records

@pytest.mark.parametrize("target", ["train", "ablation", "figures", "benchmark", "predict"])
def test_make_target(target):
    "What make would run exists and takes the parameters that make gives it."
    first = "plan" if target == "ablation" else target # of several steps
    path = ROOT/"nbs"/f"{first}.ipynb"
    plan = subprocess.run(["make", "-n", target, "OUT=runs/x"], cwd=ROOT, capture_output=True, text=True, check=True)
    command = next(line for line in plan.stdout.splitlines() if "-m papermill" in line)
    assert f"nbs/{first}.ipynb" in command and "</dev/null" in command
    assert set(re.findall(r"-p (\w+)", command)) <= set(parameters(path))

def test_readme_commands():
    "Every command of the README names a target or notebook that exists, its parameters, and for papermill an output."
    text = (ROOT/"README.md").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)", (ROOT/"Makefile").read_text(), re.M)[0].split())
    assert {"train", "test"} <= set(re.findall(r"(?:^|`)make (\w+)", text, re.M)) <= targets
    for notebook, _, rest in re.findall(r"papermill (nbs/\w+\.ipynb) (runs/\S+\.ipynb)(.*)", text):
        assert set(re.findall(r"-p (\w+)", rest)) <= set(parameters(ROOT/notebook))
    assert text.count("papermill nbs/") == len(re.findall(r"papermill nbs/\w+\.ipynb runs/\S+\.ipynb", text))

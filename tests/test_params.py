"The ways in which papermill runs a notebook with other settings than one asked for, each tried on a real notebook."
import json
import nbformat, pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st
from nbclient import NotebookClient
from nbdev import test as nbt
from papermill.cli import papermill
from clca.lab.params import as_kind, check_parameters
from helpers import ROOT, code_cells, is_tagged

PARAMETERS = """keep: "Union[float, list[float]]" = 0.1 # share of tokens
at: list[int] = [3, 6, 9] # blocks
cache: bool = True # give back what was pooled
backbone: str = 'vit_tiny' # timm name
lr: float = 1e-3 # learning rate"""

def notebook(path, tags=("parameters",), parameters=PARAMETERS):
    "A notebook with the guard, which is loaded alone: importing the package takes longer than all the rest."
    new = nbformat.v4.new_code_cell
    load = (
        'import json, sys, types\nif "clca" not in sys.modules:\n    sys.modules["clca"] = types.ModuleType("clca")\n'
        f'    sys.modules["clca"].__path__ = [{str(ROOT/"clca")!r}]\nfrom clca.lab.params import check_parameters'
    )
    cells = [new(load), new(parameters, metadata={"tags": list(tags)}),
             new("settings = check_parameters(In, globals())"),
             new("assert settings == {k: globals()[k] for k in settings}\nprint(json.dumps(settings))")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path

def run(path, *args):
    "papermill as one types it: the settings that the notebook saw, or the message of the error."
    out = path.with_name("out.ipynb")
    done = CliRunner().invoke(papermill, [str(path), str(out), "--no-progress-bar", *args])
    if done.exit_code: return f"{done.exception.ename}: {done.exception.evalue}"
    return json.loads(nbformat.read(out, 4).cells[-1].outputs[-1].text)

DEFAULTS = dict(keep=.1, at=[3, 6, 9], cache=True, backbone="vit_tiny", lr=1e-3)

def test_values_arrive_with_their_types(tmp_path):
    path = notebook(tmp_path/"x.ipynb")
    given = "-p keep 1 -p at [4,8] -p cache false -r backbone 007".split()
    seen = run(path, *given, "-y", "lr: 1e-4")
    assert seen == dict(keep=1., at=[4, 8], cache=False, backbone="007", lr=1e-4) and type(seen["keep"]) is float
    again = run(tmp_path/"out.ipynb", "-p", "keep", "0.5")
    assert again == DEFAULTS | dict(keep=.5), "an executed notebook can be run again"

def test_misspelt_name(tmp_path):
    said = run(notebook(tmp_path/"x.ipynb"), "-p", "kep", "0.5")
    assert said == "ValueError: 'kep' is no parameter of this notebook; did you mean 'keep'?"

def test_lost_tag(tmp_path):
    said = run(notebook(tmp_path/"x.ipynb", tags=()), "-p", "keep", "0.5")
    assert "give that cell its tag 'parameters' back" in said

@pytest.mark.parametrize(
    "args, message",
    [
        (["-p", "at", "6"], "at = 6 does not fit its type list[int]: write it like '[3, 6, 9]'"),
        (["-p", "backbone", "nan"], "backbone = nan does not fit its type str"),
        (
            ["-p", "keep", "abc"],
            "keep = 'abc' does not fit its type float or list[float]: "
            "write a number like 0.25, or a list like '[0.5, 0.25]'",
        ),
    ],
)
def test_wrong_type(tmp_path, args, message): assert message in run(notebook(tmp_path/"x.ipynb"), *args)

def test_nbdev_test(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("IN_TEST", "1")
    assert nbt.test_nb(notebook(tmp_path/"x.ipynb"), basepath=ROOT)[0]
    assert not nbt.test_nb(notebook(tmp_path/"y.ipynb", parameters="epochs: int = 2.5 # passes"), basepath=ROOT)[0]
    assert "epochs = 2.5 does not fit its type int" in capfd.readouterr().err

def test_by_hand(tmp_path):
    "In JupyterLab there is no injection; the cells of an executed notebook may be run again, the parameters edited."
    nb = nbformat.read(notebook(tmp_path/"x.ipynb"), 4)
    injected = nbformat.v4.new_code_cell("# Parameters\nkeep = 0.5\n")
    edited = nbformat.v4.new_code_cell(PARAMETERS.replace("0.1", "0.3"))
    nb.cells = nb.cells[:2] + [injected] + nb.cells[2:] + [edited] + nb.cells[2:]
    for i, cell in enumerate(nb.cells): nb.cells[i] = nbformat.from_dict({**cell, "id": f"c{i}"})
    cells = NotebookClient(nb, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute().cells
    assert [json.loads(cells[i].outputs[-1].text)["keep"] for i in (4, 7)] == [.5, .3]

kinds = st.one_of(
    st.tuples(st.just(float), st.floats(allow_nan=False)),
    st.tuples(st.just(int), st.integers()),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(list[int]), st.lists(st.integers())),
    st.tuples(st.just(list[float]), st.lists(st.integers(-(2**53), 2**53) | st.floats(allow_nan=False))),
    st.tuples(st.just(float | list[float]), st.lists(st.floats(allow_nan=False, allow_infinity=False))),
)

@given(kinds)
def test_a_value_that_fits_stays_what_it_is(pair):
    kind, value = pair
    once = as_kind(value, kind)
    assert once == value and as_kind(once, kind) == once
    if isinstance(value, list) and all(abs(v) < float("inf") for v in value): assert as_kind(str(value), kind) == once

@given(st.sampled_from([float, int, list[int], list[float]]), st.booleans())
def test_a_truth_value_is_no_number(kind, value):
    with pytest.raises(TypeError): as_kind([value] if kind in (list[int], list[float]) else value, kind)

def read(source, kind):
    "What a notebook with one parameter gets, or the sentence that refuses it."
    values, cell = {}, f"more: {kind} = {source} # anything"
    exec(cell, values)
    try: return check_parameters([cell], values)["more"]
    except ValueError as e: return str(e)

@pytest.mark.parametrize("source, kind, seen", [
    ("{'weight_decay': '1e-4'}", "dict", {"weight_decay": 1e-4}),
    ("'{\"weight_decay\": \"1e-4\"}'", "dict | None", {"weight_decay": 1e-4}),
    ("{'a': [{'b': '-2.E+3'}], 'c': 'e4', 'd': 'v1e4', 'e': ''}", "dict",
     {"a": [{"b": -2e3}], "c": "e4", "d": "v1e4", "e": ""}),
    ("['1e3', 'a', None]", "list", [1e3, "a", None]),
    ("{'1': '0.5'}", "dict[str, float]", {"1": .5}),
    ("['1', '1e3']", "list[str]", ["1", "1e3"]),
    ("['0.5', '1e-3']", "list[float]", [.5, 1e-3]),
    ("{'size': ['8']}", "dict", "more['size'][0] = '8' is a text and no number: write 8 without quotes"),
    ("['1']", "list[int]", "more = ['1'] does not fit its type list[int]: write it like '[3, 6, 9]'"),
    ("3", "list[str]", "more = 3 does not fit its type list[str]: write it like '[\"a\", \"b\"]'"),
    ("{8: 'patch_size'}", "dict", "more has the key 8: its keys must be texts"),
    ("'{\"a\": 1, \"a\": 2}'", "dict", "more gives 'a' twice: one of the two would count for nothing"),
    ("{'a': 1, 'b': {'c': 1, 'c': 2}}", "dict",
     "the cell of parameters gives 'c' twice: one of the two would count for nothing"),
])
def test_what_is_in_a_list_or_a_dictionary(source, kind, seen): assert read(source, kind) == seen

# Runnable notebooks ---------------------------------------------------------------------------------------------------

def begin(name, upto, **given):
    "Run a notebook up to the cell that holds some words, with values as papermill gives them."
    names = dict(In=[""])
    for cell in code_cells(ROOT/"nbs"/f"{name}.ipynb"):
        values = "# Parameters\n" + "\n".join(f"{key} = {value!r}" for key, value in given.items())
        for source in [cell.source, values] if is_tagged(cell) else [cell.source]:
            names["In"].append(source)
            exec("\n".join(line for line in source.splitlines() if not line.startswith("%")), names)
        if upto in cell.source: return

@pytest.mark.parametrize("name, upto, given, message", [
    ("comparison", "make_plan(", dict(rounds=0), "rounds = 0 is out of range: it must be at least 1"),
    ("comparison", "make_plan(", dict(workers=-1), "workers = -1 is out of range"),
    ("comparison", "make_plan(", dict(threads=0), "threads = 0 is out of range"),
    ("comparison", "make_plan(", dict(collect="mine.csv"), "collect = 'mine.csv' must end in .jsonl"),
    ("comparison", "= load_runs(", dict(records="data/runs"), "there is no finished run to compare in data/runs"),
    ("benchmark", "check_least(", dict(sizes=[224, 0]), r"sizes = \[224, 0\] is out of range"),
    ("benchmark", "check_least(", dict(batches=[]), "batches is empty"),
    ("benchmark", "check_least(", dict(threads=-1), "threads = -1 is out of range: it must be at least 0"),
    ("benchmark", "check_least(", dict(sizes=[33]), "33x33 is not a multiple of the patch size"),
    ("figures", "nearest(", dict(dataset="cottton"), "unknown dataset 'cottton': did you mean 'cotton'"),
    ("plan", "make_plan(", dict(more={"seed": 1}), "more has seed, which is a parameter of its own: give it as -p seeds")])
def test_what_cannot_work_is_said_before_any_work(name, upto, given, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path))
    monkeypatch.delenv("IN_TEST", raising=False)
    with pytest.raises(ValueError, match=message): begin(name, upto, **given)
    assert not list(tmp_path.iterdir())

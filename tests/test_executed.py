"The runnable notebooks are committed as they ran: nothing of theirs is old, cut off, or of this machine."
import re
import shutil

import nbformat
import notebooks as renewal
import pytest
from helpers import ROOT, code_cells, is_tagged

from clca.lab.claims import typed_numbers
from clca.training.code import essence

def essence_of(source): return essence(renewal.without_magics(source))

WHO = sorted(renewal.RUNS)
each = pytest.mark.parametrize("name", WHO)

def path(name): return ROOT/"nbs"/f"{name}.ipynb"

def texts(name):
    "Everything that a notebook shows in letters."
    for cell in code_cells(path(name)):
        for output in cell.outputs:
            yield from filter(None, [output.get("text"), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))])

@each
def test_outputs_belong_to_their_source(name):
    made = nbformat.read(path(name), 4).metadata.get("made", {})
    assert made.get("source") == renewal.source_hash(name), f"what {name}.ipynb shows is old: make notebooks N={name}"
    assert made.keys() >= {"git_commit", "machine", "date"}

@each
def test_a_notebook_is_small(name): assert path(name).stat().st_size < 2**20

@each
def test_outputs_are_clean(name):
    cells = code_cells(path(name))
    assert any(cell.outputs for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [t for t in texts(name) if re.search(r"\d%\|| at 0x|/tmp/|/site-packages/", t)]

@each
def test_results_are_read(name):
    "Each picture and each table that is drawn is followed, sooner or later, by a text from its numbers."
    kinds = ["read" if "text/markdown" in o.get("data", {}) else "shown" if "image/png" in o.get("data", {}) else ""
             for cell in code_cells(path(name)) for o in cell.outputs]
    assert kinds.count("read") >= 2 and "shown" in kinds
    assert list(filter(None, kinds))[-1] == "read"

@each
def test_lines_fit_the_page(name):
    "The site has room for a hundred letters at 1200 px; comments of parameters, which are papermill's help, are wrapped."
    lines = [line for cell in code_cells(path(name)) for line in cell.source.splitlines()
             if not (is_tagged(cell) and " # " in line and len(line) < 130)]
    assert not [line for line in lines if len(line) > 96]

@each
def test_machinery_is_out_of_sight(name):
    for cell in code_cells(path(name)):
        hidden = set(cell.metadata.get("tags", [])) & {"remove-cell", "hide-cell", "hide-input", "remove-input"}
        machinery = re.search(r"check_parameters\(In|small_settings\(|^%matplotlib|^say\(", cell.source, re.M)
        assert hidden or not machinery

def test_no_number_is_typed_beside_a_result():
    "Below the first results: what stands above says what a notebook does and what may be given to it."
    for name in WHO:
        cells = nbformat.read(path(name), 4).cells
        first = next(i for i, cell in enumerate(cells) if is_tagged(cell))
        prose = [cell.source for cell in cells[first:] if cell.cell_type == "markdown"]
        found = [number for text in prose for number in typed_numbers(text)]
        assert not [n for n in found if n not in KNOWN], (name, found)

KNOWN = {"87.4", "88.3"} # as the paper printed them, where the text says what was wrong with them

# What makes outputs old ----------------------------------------------------------------------------------------------

@pytest.fixture
def copy(tmp_path):
    for folder in ("nbs/comparison.ipynb", "nbs/train.ipynb", "nbs/predict.ipynb"):
        (tmp_path/folder).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT/folder, tmp_path/folder)
    shutil.copytree(ROOT/"data"/"runs", tmp_path/"data"/"runs")
    return tmp_path

def edit(file, old, new, count=1):
    nb = nbformat.read(file, 4)
    cells = [cell for cell in nb.cells if old in cell.source]
    assert cells
    for cell in cells[:count]: cell.source = cell.source.replace(old, new)
    nbformat.write(nb, file)

def test_code_records_and_the_other_notebook_count(copy):
    def now(): return [renewal.source_hash(name, copy) for name in ("comparison", "train", "predict")]
    before = now()
    assert before == [renewal.source_hash(name) for name in ("comparison", "train", "predict")]
    edit(copy/"nbs"/"comparison.ipynb", "# Comparison", "# The comparison") # text
    edit(copy/"nbs"/"comparison.ipynb", "# pixels", "# side in pixels") # a comment
    assert now() == before
    with (copy/"data"/"runs"/"comparison.jsonl").open("a") as file: file.write("\n")
    assert now()[0] != before[0] and now()[1:] == before[1:]
    edit(copy/"nbs"/"train.ipynb", 'epochs: "Optional[int]" = None', 'epochs: "Optional[int]" = 3')
    assert [a != b for a, b in zip(now()[1:], before[1:])] == [True, True]

def test_a_comment_is_told_from_code():
    assert essence_of("%magic\na = '#' # why\n\n# all\nb = 1\n") == "a = '#'\nb = 1"

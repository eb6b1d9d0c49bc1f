"What a text says in numbers comes from records: a record that changes changes the text, and a typed number is found."
import json
import re
import shutil

import nbformat
import pandas as pd
import pytest
from helpers import ROOT
from repository import readme

from clca.lab.claims import with_numbers, typed_numbers

INDEX, MEASURED_PAGE = ROOT/"nbs"/"index.ipynb", ROOT/"nbs"/"lab"/"41_measured.ipynb"
SAYING = [MEASURED_PAGE, *(ROOT/"nbs"/"lab"/f"{name}.ipynb" for name in ("12_gain_figures", "14_tables"))]
PLACES = [ # one of each kind, whatever the README says today
    '{{ worth("evidence", "head over base").mean:.0f }}', '{{ score("default", variant="clca") }}', "{{ supported() }}",
    '{{ measured("batch", keep=.1).speedup.max():.1f }}', '{{ published_worth("cache over head", .1).words }}']

def prose(path=INDEX): return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]

def change_runs(file):
    "Less accurate, and not all alike."
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for r in records:
        r["test_top1"] *= .4 if r["cache"] else .8 if r["head"] == "cla" else .9
        r["val_top1"] *= 1 - 100*r["lr"]
    file.write_text("".join(json.dumps(r) + "\n" for r in records))

def change_table(file):
    table = pd.read_csv(file)
    numbers = table.columns.intersection(["speedup", "reached", "memory_ratio", "seconds", "overhead", "operations"])
    table[numbers] *= 2
    if "acc_mean" in table: table.loc[table.variant == "clca", "acc_mean"] -= 20
    table.iloc[2:].to_csv(file, index=False)

@pytest.fixture
def changed(tmp_path, monkeypatch):
    "All records are others."
    for name in ("runs", "benchmark", "published"): shutil.copytree(ROOT/"data"/name, tmp_path/"data"/name)
    for name in ("coverage.csv", "commands.json", "committed.json"): shutil.copy(ROOT/"data"/name, tmp_path/"data")
    (tmp_path/"nbs").mkdir()
    shutil.copy(ROOT/"nbs"/"comparison.ipynb", tmp_path/"nbs")
    for file in (tmp_path/"data"/"runs").rglob("*.jsonl"): change_runs(file)
    for file in [*(tmp_path/"data"/"benchmark").glob("*.csv"), tmp_path/"data"/"coverage.csv"]: change_table(file)
    change_table(tmp_path/"data"/"published"/"published_results.csv")
    monkeypatch.setattr("clca.training.paths.checkout", lambda: tmp_path)

MEASURED = re.compile(r"\b(worth|score|supported|measured|published_worth)\(")
STAYS = re.compile(r"\.(n|keep|threads|device|precision)\b(?!\()") # how it was measured, which `changed` leaves as it is
SAID = [place for text in prose() for place in re.findall(r"\{\{.+?\}\}", text, re.S)
        if MEASURED.search(place) and not STAYS.search(place)]
TOLD = {place: with_numbers(place) for place in PLACES + SAID}

@pytest.mark.parametrize("place", TOLD)
def test_another_record_is_another_number(changed, place): assert with_numbers(place) != TOLD[place]

def test_the_readme_follows_its_records(changed):
    before = (ROOT/"README.md").read_text()
    assert "{{" not in before and "}}" not in before
    assert (readme() != before) == bool(SAID)

def test_nobody_typed_a_number_into_the_readme():
    assert not [number for text in prose() for number in typed_numbers(text)]

def test_an_expression_without_a_value_stops_the_readme(tmp_path):
    cells = [nbformat.v4.new_markdown_cell('Worth {{ worth("evidense", "head over base") }}.')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/"index.ipynb")
    with pytest.raises(ValueError, match="evidense"): readme(tmp_path/"index.ipynb")

# Pages whose sentences are made from the records ------------------------------------------------------------------

each_page = pytest.mark.parametrize("page", SAYING, ids=lambda path: path.stem)

def code_of(page): return [c for c in nbformat.read(page, 4).cells if c.cell_type == "code"]

def sayings(page):
    "What each cell says from the records of the moment; `None` at the end where it stops with an error."
    said, names = {}, {}
    for cell in code_of(page):
        said[cell.id] = texts = []
        names["say"] = texts.append
        try: exec("\n".join(line for line in cell.source.splitlines() if not line.startswith("%")), names)
        except (AssertionError, ValueError, LookupError, NameError): texts.append(None)
    return {cell: texts for cell, texts in said.items() if texts}

def stored(page):
    texts = {c.id: [o.data.get("text/markdown") for o in c.outputs if "data" in o] for c in code_of(page)}
    return {cell: found for cell, some in texts.items() if (found := list(filter(None, some)))}

@each_page
def test_a_page_says_what_the_records_say(page): assert sayings(page) == stored(page) != {}

@each_page
def test_other_records_make_a_page_say_something_else(page, changed):
    now, before = sayings(page), stored(page)
    assert None in [text for texts in now.values() for text in texts] # what the prose concludes is checked, too
    assert not [text for cell, texts in now.items() for text in texts if text in before.get(cell, ())]

def test_nobody_typed_a_number_into_the_measured_page():
    assert not [number for text in prose(MEASURED_PAGE) for number in typed_numbers(text)]

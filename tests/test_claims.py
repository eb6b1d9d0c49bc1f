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

INDEX = ROOT/"nbs"/"index.ipynb"
PLACES = [ # one of each kind, whatever the README says today
    '{{ worth("evidence", "head over base").mean:.0f }}', '{{ score("default", variant="clca") }}', "{{ supported() }}",
    '{{ measured("batch", keep=.1).speedup.max():.1f }}', '{{ published_worth("cache over head", .1) }}']

def prose(): return [c.source for c in nbformat.read(INDEX, 4).cells if c.cell_type == "markdown"]

def change_runs(file):
    "Less accurate, and not all alike."
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for r in records: r["test_top1"] *= .4 if r["cache"] else .8 if r["head"] == "cla" else .9
    file.write_text("".join(json.dumps(r) + "\n" for r in records))

def change_table(file):
    table = pd.read_csv(file)
    numbers = table.columns.intersection(["speedup", "reached", "memory_ratio", "seconds", "overhead"])
    table[numbers] *= 2
    if "acc_mean" in table: table.loc[table.variant == "clca", "acc_mean"] -= 20
    table.iloc[2:].to_csv(file, index=False)

@pytest.fixture
def changed(tmp_path, monkeypatch):
    "All records are others."
    for name in ("runs", "benchmark", "published"): shutil.copytree(ROOT/"data"/name, tmp_path/"data"/name)
    for name in ("coverage.csv", "commands.json"): shutil.copy(ROOT/"data"/name, tmp_path/"data")
    for file in (tmp_path/"data"/"runs").glob("*.jsonl"): change_runs(file)
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

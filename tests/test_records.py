"Records say what made them, and the commands that are written down reproduce the parameters of the records they claim."
import json
import shlex

import pandas as pd
import papermill
import pytest
from helpers import ROOT

from clca.lab.claims import command_of, sweep
from clca.lab.plans import all_runs, preset_axes
from clca.lab.runs import load_runs, plain_value
from clca.training.records import provenance

def defaults(name):
    return {k: eval(v["default"]) for k, v in papermill.inspect_notebook(str(ROOT/"nbs"/f"{name}.ipynb")).items()}

def plain(runs, records):
    "Each run by those of its parameters that the records name."
    names = sorted({name for run in runs for name in run} & set(records))
    return {tuple(plain_value(run.get(name)) for name in names) for run in runs}, names

def recorded(records, names): return {tuple(row) for row in records[names].itertuples(index=False, name=None)}

def test_the_command_of_the_comparison_makes_its_records():
    records, given = sweep("comparison"), defaults("comparison")
    words = shlex.split(command_of(records, given))[3:]
    for flag, value in _pairs(words):
        if flag == "-y": given |= json.loads(value)
        else: given[flag] = value if isinstance(given[flag], str) else json.loads(value)
    common = {k: given[k] for k in ("dataset", "backbone", "image_size", "images_per_class", "epochs", "lr")}
    common |= dict(backbone_kwargs=[given["backbone_kwargs"]], seed=given["seeds"], variant=given["variants"])
    runs = all_runs(reducer=given["reducers"], keep=given["keeps"], **common) + all_runs(reducer="none", keep=1., **common)
    asked, names = plain(runs, records)
    assert asked == recorded(records, names) and len(runs) == len(records)

def _pairs(words):
    "papermill's flags: -p and -r take a name and a value, -y takes one text."
    words, found = iter(words), []
    for flag in words: found.append((flag, next(words)) if flag == "-y" else (next(words), next(words)))
    return found

def test_the_default_runs_are_those_of_the_train_notebook():
    records, given = sweep("default"), defaults("train")
    for name in ("dataset", "image_size", "images_per_class", "backbone", "reducer", "at"):
        assert set(records[name]) == {plain_value(given[name])}, name
    assert set(records.backbone_kwargs) == {json.dumps(given["backbone_kwargs"], sort_keys=True)}
    assert set(records.keep) == {given["keep"]} and set(records.variant) == {"base", "clca"}

@pytest.mark.parametrize("name", ["evidence", "protect"])
def test_a_preset_makes_the_records_of_its_name(name):
    "But for the learning rates, which were searched for."
    axes, _ = preset_axes(name)
    axes["backbone_kwargs"] = [axes["backbone_kwargs"]]
    runs = [{k: v for k, v in run.items() if k != "lr"} for run in all_runs(**axes)]
    records = load_runs(ROOT/"data"/"runs"/f"{name}.jsonl")
    asked, names = plain(runs, records)
    assert asked == recorded(records, names) and len(records) == len(runs)

def test_a_record_says_what_made_it():
    made = provenance()
    assert {"git_commit", "machine", "date", "version_torch"} <= made.keys() and pd.Timestamp(made["date"])

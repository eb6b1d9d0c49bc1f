"Records say what made them, and the commands that are written down reproduce the parameters of the records they claim."
import itertools
import json
import shlex
import subprocess

import pandas as pd
import papermill
import pytest
from helpers import ROOT

from clca.lab.claims import command_of, sweep
from clca.lab.origins import benchmark_command, committed, origin, record_files
from clca.lab.plans import all_runs, preset_axes
from clca.lab.runs import load_runs, plain_value
from clca.training.environment import provenance

def defaults(name):
    return {k: eval(v["default"]) for k, v in papermill.inspect_notebook(str(ROOT/"nbs"/f"{name}.ipynb")).items()}

def plain(runs, records):
    "Each run by those of its parameters that the records name."
    names = sorted({name for run in runs for name in run} & set(records))
    return {tuple(plain_value(run.get(name)) for name in names) for run in runs}, names

def recorded(records, names): return {tuple(row) for row in records[names].itertuples(index=False, name=None)}

def test_the_command_of_the_comparison_makes_its_records():
    records, given = sweep("comparison"), defaults("comparison")
    given |= _given(command_of(records), given)
    common = {k: given[k] for k in ("dataset", "backbone", "image_size", "images_per_class", "epochs", "lr")}
    common |= dict(backbone_kwargs=[given["backbone_kwargs"]], seed=given["seeds"], variant=given["variants"])
    runs = all_runs(reducer=given["reducers"], keep=given["keeps"], **common) + all_runs(reducer="none", keep=1., **common)
    asked, names = plain(runs, records)
    assert asked == recorded(records, names) and len(runs) == len(records)

def _given(command, defaults):
    "What a line of papermill gives: -p and -r take a name and a value, -y takes one text."
    words, given = iter(shlex.split(command)[3:]), {}
    for flag in words:
        if flag == "-y": given |= json.loads(next(words))
        else:
            name, value = next(words), next(words)
            given[name] = value if isinstance(defaults[name], str) else json.loads(value)
    return given

@pytest.mark.parametrize("name", ["cpu", "batch", "growth", "reducers"])
def test_the_command_of_a_benchmark_measures_its_rows(name):
    "Candidates as benchmark.ipynb makes them of the parameters that the command gives, and none but those."
    table, default = pd.read_csv(ROOT/"data"/"benchmark"/f"{name}.csv"), defaults("benchmark")
    given = default | _given(benchmark_command(table), default)
    assert given.keys() == default.keys()
    def candidates(mode, sizes, batches, keeps):
        for size, batch in itertools.product(sizes, batches):
            yield mode, size, batch, "none", 1., "stock"
            yield from itertools.product([mode], [size], [batch], given["reducers"], keeps, given["variants"])
    asked = list(candidates("inference", given["sizes"], given["batches"], given["keeps"]))
    rate = given["training_keep"]
    if rate: asked += candidates("training", [max(given["sizes"])], [given["training_batch"]], [rate])
    columns = ["mode", "size", "batch", "reducer", "keep", "variant"]
    assert sorted(asked) == sorted(table[columns].itertuples(index=False, name=None))
    for column in ("backbone", "precision", "threads"): assert set(table[column]) == {given[column]}

def test_every_record_has_an_origin():
    "Commit, command, machine and day: recorded, or derived and called so."
    for file in record_files():
        about = origin(file)
        assert about["command"] and about["machine"]
        for name in ("git_commit", "date"): assert name in about or name in about["derived"], (file, name)

def _git(*words): return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

def test_what_is_derived_from_history_is_what_git_says():
    if not (ROOT/".git").exists(): pytest.skip("an unpacked sdist has no history")
    if _git("rev-parse", "--is-shallow-repository").strip() == "true": pytest.skip("a shallow clone has no history")
    known = {file: about for file in record_files() if (about := committed(file))}
    history = _git("log", "--format=%h", "--abbrev=7").split()
    if not {about["commit"] for about in known.values()} & set(history): pytest.skip("a history that was written anew")
    for file, about in known.items():
        assert f"{about['commit']} {about['date']}" in _git("log", "--format=%h %as", "--abbrev=7", "--", file), file

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

"Sweeps: what is planned, what is skipped, what happens to runs that fail or are killed, and what a learning rate is chosen by."
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

import nbformat, papermill, pytest

from clca.lab import sweep
from clca.lab.plans import (all_runs, canonical, check_runs, collect_sweep, finished, run_folder, preset_axes, shared_by_pairs,
                            sweep_results)
from clca.lab.rates import choose_lr, trials
from clca.lab.runs import load_runs
from clca.lab.statistics import effects
from clca.lab.sweep import forecast, run_all, run_one, search_lr, sweep_table
from clca.spec import OPTIONS, variant_options
from helpers import ROOT

TRAIN = ROOT/"nbs"/"train.ipynb"

def record(run, folder, **more):
    out = Path(folder)/run_folder(run); out.mkdir(parents=True, exist_ok=True)
    (out/"metrics.json").write_text(json.dumps({**run, "test_top1": .5, "val_top1": .5, "train_seconds": 60, **more}))

def notebook(path, body, more=""):
    "Takes seed, lr, out and more, and does `body`."
    kernel = dict(name="python3", display_name="python3", language="python")
    first = nbformat.v4.new_code_cell('seed: int = 0 # seed\nlr: float = .1 # rate\nout: str = "" # folder\n' + more, metadata=dict(tags=["parameters"]))
    write = ("import json, pathlib, time\nout = pathlib.Path(out)\n"
             'def done(): (out/"metrics.json").write_text(json.dumps(dict(seed=seed, lr=lr, test_top1=.5, val_top1=.5)))')
    cells = [first, *map(nbformat.v4.new_code_cell, (write, body))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), path)
    return path

@pytest.mark.parametrize("name, count", dict(smoke=2, small=18, evidence=72, protect=12, paper=2025).items())
def test_presets(name, count):
    "Their sizes; every run has a folder of its own, and only parameters that train.ipynb has."
    runs = all_runs(**preset_axes(name)[0])
    assert len(runs) == len({run_folder(r) for r in runs}) == count
    assert {k for r in runs for k in r} <= papermill.inspect_notebook(str(TRAIN)).keys()
    assert all((r["keep"] == 1) == (r["reducer"] == "none") for r in runs)

def test_paper_preset(tmp_path):
    runs = all_runs(**preset_axes("paper")[0])
    assert [len({json.dumps(r[k]) for r in runs}) for k in ("backbone", "dataset", "keep", "seed")] == [9, 5, 5, 3]
    assert "2025 runs, 0 are done, 2025 to do, 8 at a time: duration unknown" in forecast(sweep_table(runs, tmp_path), 8)

def test_evidence_has_all_methods_first():
    runs = all_runs(**preset_axes("evidence")[0])
    assert {r["seed"] for r in runs[:24]} == {0} and len({(r["keep"], r["head"], r["cache"]) for r in runs[:24]}) == 24

def test_dependent_axes():
    assert len(all_runs(reducer=["evit", "topk", "none"], keep=[1., .5])) == 3
    assert len(all_runs(variant=["base", "clc"], keep=.5, num_clr=[0, 1, 2], gap=[True, False])) == 1 + 5
    assert all_runs(variant="cla", keep=.5, num_clr=4)[0]["num_clr"] == 1
    assert canonical(dict(reducer="none", keep=.5)) is None
    assert variant_options("cla_last+clc") == dict(head="cla_last", cache=True)
    assert all_runs(at=[[3, 6, 9], [2, 5, 8]])[1]["at"] == [2, 5, 8]

def test_what_is_done(tmp_path):
    "Half-written records are to do; records of other parameters stop the sweep; lists and dictionaries agree with themselves."
    runs = all_runs(reducer="evit", keep=[.5, .1], at=[[3, 6, 9]], backbone_kwargs=dict(embed_dim=64), variant="clca", seed=[0, 1])
    record(runs[0], tmp_path)
    (tmp_path/run_folder(runs[1])).mkdir(); (tmp_path/run_folder(runs[1])/"metrics.json").write_text('{"test_top1": ')
    assert sweep_table(runs, tmp_path).done.tolist() == [True, False, False, False]
    record(runs[2], tmp_path, at=[3, 6])
    with pytest.raises(ValueError, match="holds a run with at"): sweep_table(runs, tmp_path)

@pytest.mark.parametrize("axes, message", [(dict(kep=.1), "no parameter kep"), (dict(lr=0.), "lr = 0.0 is out of range"), (dict(keep=1.5), "keep"),
    (dict(keep=.5, reducer="evitt"), "evit"), (dict(keep=.5, reducer="none"), "no runs"), (dict(dataset="folder", data_root="nowhere"), "nowhere"),
    (dict(at=[[3, 99]]), "99"), (dict(score="clss"), "score"), (dict(protect="yes"), "protect"), (dict(gap="no"), "gap"), (dict(num_clr=1.5), "num_clr"),
    (dict(head="clb"), "cla")])
def test_mistakes_are_found_first(axes, message):
    base = dict(backbone="vit_tiny_patch16_224", backbone_kwargs=dict(embed_dim=32, num_heads=1), image_size=32, images_per_class=2)
    with pytest.raises(ValueError, match=message): check_runs(all_runs(**{**base, "keep": .5, "reducer": "evit"} | axes), TRAIN)

@pytest.mark.parametrize("option", sorted({*OPTIONS} & papermill.inspect_notebook(str(TRAIN)).keys()))
def test_no_option_is_forgotten(option):
    "Whatever decides which model is built is looked at before the first run, whether or not the sweep names a backbone."
    with pytest.raises((ValueError, TypeError, FileNotFoundError)): check_runs([{"images_per_class": 2, option: "nonsense"}], TRAIN)

def test_weights_are_not_loaded_to_check_a_sweep():
    big = dict(backbone="vit_giant_patch14_dinov2.lvd142m", backbone_kwargs={}, pretrained=True, image_size=224, images_per_class=2, keep=.5)
    check_runs(all_runs(**big, variant="clca"), TRAIN)

def test_paper_preset_takes_the_backbones_as_they_are():
    "The notebook's own default is a small ViT, which pretrained weights do not fit."
    assert all(r["pretrained"] and r["backbone_kwargs"] == {} for r in all_runs(**preset_axes("paper")[0]))

def test_reducer_from_elsewhere(tmp_path):
    "Its name cannot be a file's, and yet it is planned, run, found again and collected under its own name."
    nb = notebook(tmp_path/"nb.ipynb", 'assert reducer == "package.module:Mine"\ndone()', 'reducer: str = "evit" # method')
    runs = all_runs(reducer=["package.module:Mine", "evit"], keep=[.5, 1.], seed=0)
    assert [r["reducer"] for r in runs] == ["package.module:Mine", "none", "evit"]
    run = dict(reducer="package.module:Mine", seed=3)
    assert re.fullmatch(r"[\w.+-]+", run_folder(run)) and run_folder(run) != run_folder(run | dict(reducer="package.module_Mine"))
    result = run_all(sweep_table([run], tmp_path/"runs"), tmp_path/"runs", nb, workers=1)
    assert result.status.tolist() == ["done"] and finished(run, tmp_path/"runs")["seed"] == 3
    record(run, tmp_path/"runs")
    assert load_runs(collect_sweep([run], tmp_path/"runs", tmp_path/"mine.jsonl")).reducer.tolist() == ["package.module:Mine"]

def test_pairs_share_all_but_the_question():
    axes = dict(backbone=["a", "b"], at=[[3, 6, 9], [4, 8]], score=["cls", "mean"], variant=["base", "cla", "clca"], num_clr=[1, 4],
                protect=[False, True], keep=[.1, 1.], reducer=["evit", "topk"], lr=[.1, .2], seed=[0, 1], epochs=3)
    assert shared_by_pairs(all_runs(**axes)) == ["seed", "at", "backbone", "score", "reducer"]

def test_failures_are_retried_and_reported(tmp_path):
    "Seed 0 fails once, seed 1 always, seed 2 never; the second sweep has one run to do."
    nb = notebook(tmp_path/"nb.ipynb", 'first = not (out/"tried").exists()\n(out/"tried").touch()\n'
                                       'assert seed != 1, "never"\nassert seed or not first\ndone()')
    runs = all_runs(seed=[0, 1, 2])
    result = run_all(sweep_table(runs, tmp_path/"runs"), tmp_path/"runs", nb, workers=3).set_index("name")
    rows = [result.loc[run_folder(r)] for r in runs]
    assert [(r.status, r.attempts) for r in rows] == [("done", 2), ("failed", 2), ("done", 1)]
    assert "AssertionError: never" in rows[1].error and not rows[0].error
    assert sweep_table(runs, tmp_path/"runs").done.tolist() == [True, False, True]

def test_killed_and_started_again(tmp_path):
    "kill -9 of a sweep: its run ends with it, and a second sweep starts it again, where its checkpoint lets it go on."
    nb = notebook(tmp_path/"nb.ipynb", 'first = not (out/"starts").exists()\nprint(1, file=open(out/"starts", "a"))\n'
                                       'if first: time.sleep(300)\ndone()')
    code = f"from clca.lab.sweep import run_one; run_one(dict(seed=0), {str(tmp_path)!r}, {str(nb)!r})"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    starts, until = tmp_path/run_folder(dict(seed=0))/"starts", time.time() + 100
    while not starts.exists() and time.time() < until: time.sleep(.1)
    os.kill(child.pid, signal.SIGKILL); child.wait()
    assert not finished(dict(seed=0), tmp_path)
    result = run_one(dict(seed=0), tmp_path, nb)
    assert result["status"] == "done" and result["attempts"] == 1 and starts.read_text() == "1\n1\n"

def test_rates_are_chosen_on_validation(tmp_path, monkeypatch):
    "The test split of every trial says the opposite, and not one record's test accuracy is read."
    runs = all_runs(reducer="evit", keep=[1., .5, .1], variant=["base", "clca"], seed=[3, 4])
    tries = trials(runs, [.1, .2], keeps=[.1])
    assert {t["seed"] for t in tries} == {3} and len(tries) == 4
    for t in tries: record(t, tmp_path, val_top1=t["lr"] if t["cache"] else -t["lr"], test_top1=1 - t["lr"] if t["cache"] else t["lr"])
    monkeypatch.setattr(sweep, "run_all", lambda *a, **k: None)
    real = sweep.finished
    class NoTest(dict):
        def __getitem__(self, k): assert "test" not in k; return super().__getitem__(k)
    monkeypatch.setattr(sweep, "finished", lambda *a: NoTest(m) if (m := real(*a)) else None)
    found = search_lr(runs, [.1, .2], tmp_path, TRAIN, keeps=[.1])
    assert {(r["cache"], r["lr"]) for r in found} == {(True, .2), (False, .1)} and len(found) == len(runs)
    assert {run_folder(t) for t in tries} & {run_folder(r) for r in found}

def test_nearest_keep_and_own_reducer():
    runs = all_runs(reducer=["evit", "topk"], keep=[1., .5, .1], variant="base", seed=0)
    tried = [(t, t["lr"] if t["keep"] == .1 and t["reducer"] == "evit" else -t["lr"]) for t in trials(runs, [.1, .2], keeps=[.1, 1.])]
    chosen = {(r["reducer"], r["keep"]): r["lr"] for r in choose_lr(runs, tried)}
    assert chosen == {("none", 1.): .1, ("evit", .5): .1, ("evit", .1): .2, ("topk", .5): .1, ("topk", .1): .1}

def test_collected_records(tmp_path):
    runs = all_runs(reducer="evit", keep=[.5, .1], variant=["cla", "clca"], seed=[0, 1], lr=.1)
    for r in runs + trials(runs, [.3]):
        record(r, tmp_path/"runs", test_top1=.5 + .1*r["cache"])
        for name in ("history", "gradients"): (tmp_path/"runs"/run_folder(r)/f"{name}.csv").write_text("step,max_grad\n0,1.5\n")
    out = collect_sweep(runs, tmp_path/"runs", tmp_path/"kept"/"mine.jsonl")
    assert set(load_runs(out).run_id) == set(map(run_folder, runs)) and str(tmp_path) not in out.read_text()
    rows = lambda name: len(out.with_suffix(f".{name}.csv").read_text().splitlines()) - 1
    assert (rows("history"), rows("gradients")) == (8, 4)
    df, pair = sweep_results(runs, tmp_path/"runs"), shared_by_pairs(runs)
    table = effects(df, pair)
    assert table["mean"].round(6).tolist() == [10.]*3 and table.keep.tolist() == [.1, .5, "all"]

"""Sweeps: what is planned, what is skipped, what happens to runs that fail, are killed or are of other code, and what a
learning rate is chosen by. Snakemake runs here as it does for a user, on notebooks that do nothing and take no time."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat, papermill, pytest

import clca
from clca.lab import sweep
from clca.lab.made_by import sort_out
from clca.lab.plans import (all_runs, canonical, check_runs, collect_sweep, finished, run_folder, preset_axes, shared_by_pairs,
                            sweep_results)
from clca.lab.rates import best_rates, trials
from clca.lab.runs import load_runs
from clca.lab.statistics import effects
from clca.lab.sweep import SweepPlan, by_hand, choose_rates, final_runs, missing_runs, planned, save_plan, sweep_table
from clca.spec import OPTIONS, variant_options
from clca.training import code
from clca.training.records import check_folder
from helpers import ROOT

TRAIN = ROOT/"nbs"/"train.ipynb"

def record(run, folder, **more):
    out = Path(folder)/run_folder(run); out.mkdir(parents=True, exist_ok=True)
    (out/"metrics.json").write_text(json.dumps({**run, "test_top1": .5, "val_top1": .5, "train_seconds": 60, **more}))

def notebook(path, body, more=""):
    "Takes seed, keep, lr, out and more, and does `body`; each start leaves a line in `starts`."
    kernel = dict(name="python3", display_name="python3", language="python")
    values = 'seed: int = 0 # seed\nkeep: float = .1 # share\nlr: float = .1 # rate\nout: str = "" # folder\n'
    first = nbformat.v4.new_code_cell(values + more, metadata=dict(tags=["parameters"]))
    write = ("import json, pathlib, time\nout = pathlib.Path(out)\nprint(1, file=open(out/'starts', 'a'))\n"
             "mark = out.parent/'code'\ncode = mark.read_text() if mark.exists() else ''\n"
             "def done():\n    (out/'part').write_text(json.dumps(dict(seed=seed, keep=keep, lr=lr, code=code, test_top1=.5, val_top1=lr)))\n"
             "    (out/'part').rename(out/'metrics.json')")
    cells = [first, *map(nbformat.v4.new_code_cell, (write, body))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), path)
    return path

REPORT = "(out/'runs.csv').write_text('')\n(out/'runs.jsonl').write_text(' '.join(sorted(p.parent.name for p in out.glob('*/metrics.json'))))"

def planned_sweep(folder, runs, body, report="", rates=(), more=""):
    "A sweep whose runs do `body`, planned."
    folder.mkdir(exist_ok=True)
    nb = notebook(folder/"nb.ipynb", body, more)
    (folder/"code").write_text(code.code_hash(nb))
    if report: notebook(folder.parent/"report.ipynb", report)
    report = str(folder.parent/"report.ipynb") if report else ""
    plan = SweepPlan(runs, trials(runs, rates) if rates else [], list(rates), notebook=str(nb), report=report)
    save_plan(plan, folder)
    return plan

def snakemake(folder, *options):
    return [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "-d", str(folder), "--cores", "3", *options]

def go(folder, *options):
    "The exit code and what is said on the screen."
    done = subprocess.run(snakemake(folder, *options), cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr

def starts(folder, run):
    path = folder/run_folder(run)/"starts"
    return path.read_text().count("1") if path.exists() else 0

def wait_for(condition):
    until = time.time() + 200
    while not condition() and time.time() < until: time.sleep(.1)
    assert condition()

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
    assert sweep_table(runs, tmp_path).done.sum() == 0
    plan = SweepPlan(runs, trials(runs, [1e-4, 1e-3], [.1]), [1e-4, 1e-3], [.1])
    assert len(plan.trials) == 9*5*3*2 and len(planned(plan)) == 2025*2

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
    "Its name cannot be a file's, and yet it is planned, run by the printed line, found again and collected under its own name."
    runs = all_runs(reducer=["package.module:Mine", "evit"], keep=[.5, 1.], seed=0)
    assert [r["reducer"] for r in runs] == ["package.module:Mine", "none", "evit"]
    run = dict(reducer="package.module:Mine", seed=3)
    assert re.fullmatch(r"[\w.+-]+", run_folder(run)) and run_folder(run) != run_folder(run | dict(reducer="package.module_Mine"))
    place = tmp_path/"it's a folder"
    plan = planned_sweep(place, [run], 'assert reducer == "package.module:Mine"\ndone()', more='reducer: str = "evit" # method')
    subprocess.run(["bash", "-c", by_hand(run, place, plan.notebook)], check=True, capture_output=True, cwd=ROOT)
    assert finished(run, place)["seed"] == 3
    record(run, place)
    assert load_runs(collect_sweep([run], place, tmp_path/"mine.jsonl")).reducer.tolist() == ["package.module:Mine"]

def test_pairs_share_all_but_the_question():
    axes = dict(backbone=["a", "b"], at=[[3, 6, 9], [4, 8]], score=["cls", "mean"], variant=["base", "cla", "clca"], num_clr=[1, 4],
                protect=[False, True], keep=[.1, 1.], reducer=["evit", "topk"], lr=[.1, .2], seed=[0, 1], epochs=3)
    assert shared_by_pairs(all_runs(**axes)) == ["seed", "at", "backbone", "score", "reducer"]

def test_failures_are_retried_and_reported(tmp_path):
    """Seed 0 fails once, seed 1 until it is mended, seed 2 never. What is there is reported; the second start has one
    run to do, and the third nothing."""
    runs, place = all_runs(seed=[0, 1, 2]), tmp_path/"a b" # as a folder of a user may be called
    names = [run_folder(run) for run in runs]
    body = 'import os\nassert seed != 1 or (out.parent/"mended").exists(), "never"\nassert seed or (out/"starts").read_text() != "1\\n"\ndone()'
    planned_sweep(place, runs, body, report=REPORT)
    failed, said = go(place)
    assert failed and [starts(place, run) for run in runs] == [2, 2, 1]
    lines = [line for line in said.splitlines() if "(run " in line]
    assert {re.sub(r"\d+ s.*", "", line) for line in lines} == {
        f"{names[0]}: done, top-1 50.0 %, ", f"{names[1]}: failed, AssertionError: never, ", f"{names[2]}: done, top-1 50.0 %, "}
    assert {line[-8:] for line in lines} == {" 1 of 3)", " 2 of 3)", " 3 of 3)"}
    assert "1 failed" in said and f"  {names[1]}: AssertionError: never" in said and "Traceback" not in said
    assert (place/"runs.jsonl").read_text() == f"{names[0]} {names[2]}"
    (place/"mended").touch()
    failed, said = go(place)
    assert not failed and [starts(place, run) for run in runs] == [2, 3, 1] and f"{names[1]}: done" in said
    assert (place/"runs.jsonl").read_text() == " ".join(sorted(names))
    failed, said = go(place)
    assert not failed and "Nothing to be done" in said

def test_killed_and_started_again(tmp_path):
    """kill -9 of a sweep: what it started ends with it, and the next start goes on. Beside a running one none starts,
    and a result that somebody else made meanwhile is not made again."""
    runs, place = all_runs(seed=[0, 1]), tmp_path/"sweep"
    body = '(out/"pid").write_text(str(__import__("os").getpid()))\nif not (out.parent/"go").exists(): time.sleep(300)\ndone()'
    planned_sweep(place, runs, body)
    pids = [place/run_folder(run)/"pid" for run in runs]
    sweep_ = subprocess.Popen(snakemake(place), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: all(path.exists() and path.read_text() for path in pids))
    failed, said = go(place)
    assert failed and "another sweep is at work in" in said and "Traceback" not in said
    os.kill(sweep_.pid, signal.SIGKILL)
    sweep_.wait()
    wait_for(lambda: not any(Path("/proc", path.read_text()).exists() for path in pids))
    record(runs[1], place, code=(place/"code").read_text()) # as a run does that outlived its sweep
    (place/"go").touch()
    failed, said = go(place)
    assert not failed and [starts(place, run) for run in runs] == [2, 1], said

def test_rates_are_searched_first(tmp_path):
    "Trials, the choice, then the runs: one that was a trial is not made twice, and a trial that fails stops nothing."
    runs, place = all_runs(keep=.1, seed=[0, 1]), tmp_path/"sweep"
    plan = planned_sweep(place, runs, 'assert lr < .3, "diverged"\ndone()', rates=[.1, .2, .3])
    failed, said = go(place)
    final = final_runs(plan, place)
    assert not failed and [(run["seed"], run["lr"]) for run in final] == [(0, .2), (1, .2)], said
    assert [starts(place, run) for run in plan.trials] == [1, 1, 2] and starts(place, final[1]) == 1
    assert "(trial 3 of 3)" in said and "(run 1 of 1)" in said and "AssertionError: diverged" in said

def test_rates_are_chosen_on_validation(tmp_path, monkeypatch):
    "The test split of every trial says the opposite, and not one record's test accuracy is read."
    runs = all_runs(reducer="evit", keep=[1., .5, .1], variant=["base", "clca"], seed=[3, 4])
    tries = trials(runs, [.1, .2], keeps=[.1])
    assert {t["seed"] for t in tries} == {3} and len(tries) == 4
    for t in tries: record(t, tmp_path, val_top1=t["lr"] if t["cache"] else -t["lr"], test_top1=1 - t["lr"] if t["cache"] else t["lr"])
    real = sweep.finished
    class NoTest(dict):
        def __getitem__(self, k): assert "test" not in k; return super().__getitem__(k)
    monkeypatch.setattr(sweep, "finished", lambda *a: NoTest(m) if (m := real(*a)) else None)
    found = choose_rates(SweepPlan(runs, tries, [.1, .2], [.1]), tmp_path)
    assert {(r["cache"], r["lr"]) for r in found} == {(True, .2), (False, .1)} and len(found) == len(runs)
    assert {run_folder(t) for t in tries} & {run_folder(r) for r in found}

def code_of_copy(folder, *edits):
    "The hash of the code in a copy of the package and of train.ipynb, in which some texts are others."
    shutil.copytree(Path(clca.__file__).parent, folder/"clca", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TRAIN, folder/"train.ipynb")
    for name, old, new in edits:
        assert old in (text := (folder/name).read_text())
        (folder/name).write_text(text.replace(old, new))
    return code.code_hash(folder/"train.ipynb", folder/"clca")

def test_prose_and_pictures_are_no_other_code(tmp_path):
    edits = [("train.ipynb", "This is the main job of the project", "This is what the project is for"),
        ("train.ipynb", "data.train.visible(data.train[i][0])", "data.train.visible(data.train[-i][0])"),
        ("train.ipynb", "# passes over the training images (typefaces", "# epochs (typefaces"),
        ("clca/walk.py", "# what the head has read, in order of depth", "# read"),
        ("clca/training/recipe.py", "How a model is trained:", "How one trains:"),
        ("clca/lab/accuracy_figures.py", "def accuracy_cost(", "def accuracy_price(")]
    assert code_of_copy(tmp_path, *edits) == code.code_hash(TRAIN)

@pytest.mark.parametrize("edit", [("clca/head.py", "torch.stack(read, 2)", "torch.stack(read[::-1], 2)"),
    ("train.ipynb", "torch.manual_seed(seed)", "torch.manual_seed(seed + 1)")], ids=["method", "notebook"])
def test_a_line_that_counts_is_other_code(tmp_path, edit): assert code_of_copy(tmp_path, edit) != code.code_hash(TRAIN)

def test_runs_of_other_code_are_made_again(tmp_path, monkeypatch):
    "With prose edited there is nothing to do, with the method edited everything, and with that accepted nothing."
    runs, place = all_runs(seed=[0, 1, 2]), tmp_path/"sweep"
    plan = planned_sweep(place, runs, "done()")
    for run in runs[:2]: record(run, place, code=(place/"code").read_text(), git_commit="1a2b3c4")
    (half := place/run_folder(runs[2])).mkdir()
    (half/"parameters.json").write_text(json.dumps(dict(code=(place/"code").read_text())))
    assert sort_out(plan, place) == []
    nb = nbformat.read(place/"nb.ipynb", 4)
    nb.cells.append(nbformat.v4.new_markdown_cell("More prose."))
    nbformat.write(nb, place/"nb.ipynb")
    assert sort_out(plan, place) == []
    nb.cells[-2].source = "seed += 1\ndone()"
    nbformat.write(nb, place/"nb.ipynb")
    said = sort_out(plan, place, look_only=True)
    assert "2 of other code (commit 1a2b3c4)" in said[0] and "1 of other code (commit unknown)" in said[1] and "accept" in said[-1]
    assert "kept" in sort_out(plan, place, accept=True)[0] and sort_out(plan, place) == []
    assert len(sort_out(plan, place)) == 0 and len(missing_runs(plan, place)) == 1
    nb.cells[-2].source = "seed += 2\ndone()" # what was accepted for other code is not for this
    nbformat.write(nb, place/"nb.ipynb")
    assert len(sort_out(plan, place)) == 4 and len(missing_runs(plan, place)) == 3
    assert sorted(p.name for p in (place/".set-aside").iterdir()) == sorted(map(run_folder, runs)) and sort_out(plan, place) == []

def test_a_run_of_two_codes_says_so(tmp_path):
    "Whoever goes on by hand may, and the record has both; the sweep does not take it for one of its own."
    [run] = all_runs(seed=0)
    plan = planned_sweep(tmp_path, [run], "done()")
    (out := tmp_path/run_folder(run)).mkdir()
    (out/"parameters.json").write_text(json.dumps(dict(seed=0, code="before")))
    (out/"last.ckpt").touch()
    now = (tmp_path/"code").read_text()
    check_folder(out, dict(seed=0, code=now))
    record(run, tmp_path, code=code.code_so_far(out, now))
    assert json.loads((out/"metrics.json").read_text())["code"] == f"before+{now}" and len(sort_out(plan, tmp_path)) == 3

def test_old_records_are_of_unknown_code(tmp_path):
    "They can be read, and a sweep asks whether they may stay."
    [run] = all_runs(seed=0)
    plan = planned_sweep(tmp_path, [run], "done()")
    record(run, tmp_path)
    assert finished(run, tmp_path) and "1 of other code (commit unknown)" in sort_out(plan, tmp_path, look_only=True)[0]

def test_nearest_keep_and_own_reducer():
    runs = all_runs(reducer=["evit", "topk"], keep=[1., .5, .1], variant="base", seed=0)
    tried = [(t, t["lr"] if t["keep"] == .1 and t["reducer"] == "evit" else -t["lr"]) for t in trials(runs, [.1, .2], keeps=[.1, 1.])]
    chosen = {(r["reducer"], r["keep"]): lr for r, lr in zip(runs, best_rates(runs, tried))}
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

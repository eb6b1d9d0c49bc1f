"The run store with everything that goes wrong on disks and clusters."
import json, warnings
from pathlib import Path
import nbformat, numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from clca.lab.params import check_parameters
from clca.lab.rerun import parameters_from, recorded_run
from clca.lab.runs import collect_runs, load_history, load_runs, recorded_variant
from clca.lab.statistics import cells, effects, paired_difference, score_table, summary
from helpers import ROOT

GOOD = dict(reducer="evit", keep=.1, head="cla", cache=True, at=[3, 6, 9], seed=0, test_top1=.79,
            dataset="typefaces", image_size=64, backbone="vit", gmacs=1.)

def make(folder, text=None, **kw):
    folder.mkdir(parents=True, exist_ok=True)
    (folder/"metrics.json").write_text(json.dumps(GOOD | kw) if text is None else text)

def load(*folders):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        df = load_runs(*folders)
    return df, [str(w.message) for w in said]

@pytest.mark.parametrize("text, why", [("", "not valid JSON"), ('{"test_top1": 0.', "not valid JSON"), ("[1]", "list"),
    ("{}", "test_top1, seed missing"), ('{"test_top1": NaN, "seed": 0}', "test_top1 is nan"), ('{"test_top1": 79.0, "seed": 0}', "share between 0 and 1"),
    ('{"test_top1": "x", "seed": 0}', "share"), ('{"test_top1": true, "seed": null}', "seed missing"), ("\x00\x00", "not valid JSON")])
def test_broken_runs_are_named_and_left_out(tmp_path, text, why):
    make(tmp_path/"good"); make(tmp_path/"bad", text)
    df, said = load(tmp_path)
    assert df.run_id.tolist() == ["good"] and len(said) == 1 and "bad" in said[0] and why in said[0]

def test_unreadable_and_unfinished(tmp_path):
    make(tmp_path/"good"); (tmp_path/"running").mkdir(); (tmp_path/"notes.txt").write_text("x")
    (tmp_path/"binary").mkdir(); (tmp_path/"binary"/"metrics.json").write_bytes(b"\xff\xfe\x00{")
    (tmp_path/"folder"/"metrics.json").mkdir(parents=True)
    df, said = load(tmp_path)
    assert df.run_id.tolist() == ["good"] and sorted(s.split()[1] for s in said) == ["binary", "folder", "running"]

def test_no_runs(tmp_path):
    df, said = load(tmp_path)
    assert df.empty and not said and "test_top1" in df
    with pytest.raises(FileNotFoundError, match="no runs at"): load_runs(tmp_path/"nowhere")

def test_two_machines(tmp_path):
    for m, top1 in [("a", .7), ("b", .8)]:
        make(tmp_path/m/"same", out=f"/{m}", data_root=f"/{m}/data", workers=ord(m))
        make(tmp_path/m/f"only-{m}"); make(tmp_path/m/"conflict", test_top1=top1)
    df, said = load(tmp_path/"a", tmp_path/"b")
    assert sorted(df.run_id) == ["conflict", "only-a", "only-b", "same"] and df.set_index("run_id").test_top1["conflict"] == .7
    assert len(said) == 1 and "conflict" in said[0] and "test_top1" in said[0] and "out" not in said[0].split("different")[1]

def test_logs_of_several_machines(tmp_path):
    "Each run once, from the first source that has it, although a collection rounds and another machine has other numbers."
    for machine, run, value in (("a", "r1", 1.23456789), ("a", "r2", 2), ("b", "r2", 3), ("b", "r3", 4)):
        make(tmp_path/machine/run, seed=int(run[1]))
        (tmp_path/machine/run/"gradients.csv").write_text(f"step,max_grad\n0,{value}\n1,{value}\n")
    collection = collect_runs(tmp_path/"all.jsonl", tmp_path/"a", tmp_path/"b")
    read = load_history(tmp_path/"a", collection, tmp_path/"b", tmp_path/"a")
    assert read.groupby("run_id").max_grad.agg(list).to_dict() == {"r1": [1.23456789]*2, "r2": [2]*2, "r3": [4]*2}
    assert load_history(collection).max_grad.tolist() == [1.2346]*2 + [2]*2 + [4]*2

@pytest.mark.parametrize("text", [b"", b"step,max_grad\n0,1.5\n1,0.", b"a\n1,2,3\n1,2,3,4\n", b"step\n\xff\xfe\n"])
def test_a_broken_log_is_named_and_left_out(tmp_path, text):
    for run in "ab": make(tmp_path/run)
    (tmp_path/"a"/"gradients.csv").write_text("step,max_grad\n0,1.5\n")
    (tmp_path/"b"/"gradients.csv").write_bytes(text)
    with pytest.warns(UserWarning, match="b/gradients.csv left out"): assert load_history(tmp_path).run_id.tolist() == ["a"]

def test_many_folders_are_each_read_once(tmp_path, monkeypatch):
    "Ten thousand take seconds because no file is opened twice and no record is compared with itself."
    names = [f"run-{i:03}" for i in range(200)]
    for i, name in enumerate(names): make(tmp_path/name, seed=i)
    (tmp_path/"run-007"/"metrics.json").write_text("{")
    (tmp_path/".snakemake").mkdir()
    opened, compared = [], []
    monkeypatch.setattr("clca.lab.runs._warn_of_conflict", lambda *records: compared.append(records))
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.parent.name) or real(path))
    with pytest.warns(UserWarning) as said: table = load_runs(tmp_path)
    assert opened == names and not compared and [str(w.message)[:16] for w in said] == ["run run-007 left"]
    assert table.run_id.tolist() == [name for name in names if name != "run-007"] and set(table.variant) == {"clca"}

def test_collection(tmp_path):
    make(tmp_path/"r"/"x", seed=1, out=str(tmp_path), data_root=str(tmp_path)); make(tmp_path/"r"/"y", seed=2, extra=[1, 2])
    (tmp_path/"r"/"y"/"gradients.csv").write_text("step,max_grad\n0,2.5\n1,0.5\n")
    f = collect_runs(tmp_path/"all.jsonl", tmp_path/"r"); first = f.read_bytes()
    df, said = load(f)
    assert df.run_id.tolist() == ["x", "y"] and not said
    assert df.extra[1] == (1, 2) and df["at"][0] == (3, 6, 9) and set(df.variant) == {"clca"}
    assert str(tmp_path) not in first.decode() and '"extra"' not in first.decode().splitlines()[0]
    assert load_history(f).max_grad.tolist() == load_history(tmp_path/"r").max_grad.tolist() == [2.5, .5]
    assert collect_runs(tmp_path/"again.jsonl", f, tmp_path/"r").read_bytes() == first
    f.write_text(first.decode() + '{"half": \n{"test_top1": 0.5, "seed": 1}\n')
    df, said = load(f)
    assert len(df) == 2 and ["line 3" in said[0], "line 4" in said[1], "run_id" in said[1]] == [True]*3

def test_variants(tmp_path):
    pairs = [("linear", False), ("linear", True), ("cla", False), ("cla", True), ("cla_last", False), ("ifa", True)]
    for i, (head, cache) in enumerate(pairs):
        make(tmp_path/str(i), head=head, cache=cache)
    assert load_runs(tmp_path).sort_values("run_id").variant.tolist() == ["base", "clc", "cla", "clca", "cla_last", "ifa+clc"]

def test_variants_of_the_cache(tmp_path):
    options = [dict(num_clr=4), dict(num_clr=0), dict(gap=False), dict(recover_last=False), dict(cache=False, num_clr=4), {}, dict(protect=True)]
    for i, kw in enumerate(options): make(tmp_path/str(i), **kw)
    names = ["clca, 4 registers", "clca, pooled only", "clca, register only", "clca, not at last", "cla", "clca", "clca, protected"]
    assert load_runs(tmp_path).sort_values("run_id").variant.tolist() == names

@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan")])
def test_variant_of_rows_with_gaps(missing):
    "Beside rows that lack an option, pandas makes floats of whole numbers and objects of booleans."
    told = pd.DataFrame([dict(head="cla", cache=True, num_clr=4, at=(3, 6)), dict(head="linear", cache=False, num_clr=missing)])
    assert [recorded_variant(r) for _, r in told.iterrows()] == ["clca, 4 registers", "base"]
    assert [recorded_variant(r) for r in told.to_dict("records")] == ["clca, 4 registers", "base"]
    assert recorded_variant(dict(head="mine", cache=np.True_, gap=missing, score=missing)) == "mine+clc"

def test_options_that_no_model_can_have(tmp_path):
    "One such record does not keep the others from being read."
    make(tmp_path/"good"); make(tmp_path/"bad", num_clr=1.5); make(tmp_path/"worse", num_clr=0, gap=False)
    df, said = load(tmp_path)
    assert df.run_id.tolist() == ["good"] and ["num_clr=1.5" in said[0], "caches nothing" in said[1]] == [True]*2

def test_records_without_a_variant(tmp_path):
    make(tmp_path/"told"); make(tmp_path/"older", head=None, cache=None)
    df, said = load(tmp_path)
    assert df.set_index("run_id").variant["told"] == "clca" and df.set_index("run_id").variant.isna()["older"] and not said

def test_outsiders_stand_in_every_table():
    "A reducer and a head that nobody here has heard of."
    rows = [dict(reducer=r, variant=v, keep=.1, seed=s, accuracy=50. + s + 4*(v == "mine+clc"))
            for r in ("evit", "package.module:Mine") for v in ("base", "mine", "mine+clc") for s in (0, 1)]
    table = score_table(pd.DataFrame(rows))
    assert table.index.tolist() == ["base", "mine", "mine+clc"] and "package.module:Mine" in table.columns.get_level_values("reducer")
    assert (table != "").all(axis=None)
    worth = effects(pd.DataFrame(rows), ["seed", "reducer"]).query("keep == .1").set_index("question")
    assert worth["mean"].to_dict() == {"mine over base": 0, "mine+clc over base": 4, "mine+clc over mine": 4}

def test_cells_do_not_mix_settings(tmp_path):
    for i, lr in enumerate([1e-3, 1e-4]): make(tmp_path/str(i), lr=lr)
    with pytest.raises(ValueError, match="1 runs share .* filter"): cells(load_runs(tmp_path))

def toy(a, b):
    n = len(a)
    return pd.DataFrame(dict(keep=.1, seed=list(range(n))*2, variant=["clca"]*n + ["cla"]*n, test_top1=[*a, *b]))

def test_summary():
    s = summary(toy([.5, .7, .6], [.1, .1, .1]), ["keep", "variant"])
    assert s.n.tolist() == [3, 3] and s["mean"].tolist() == pytest.approx([.1, .6]) and s["std"].tolist() == pytest.approx([0, .1])

def test_pairs_not_means():
    "Seeds differ by 0.4, the method by 0.01 in each: pairs see it, means do not."
    d = paired_difference(toy([.51, .71, .91], [.5, .7, .9]), "keep", "clca", "cla").iloc[0]
    assert d["mean"] == pytest.approx(.01) and d.low == pytest.approx(.01) and d.high == pytest.approx(.01) and d.positive == 1

def test_lone_and_missing_pairs():
    df = toy([.6, .7], [.5, .5]).iloc[:3]
    d = paired_difference(df, ["keep"], "clca", "cla").iloc[0]
    assert d.n == 1 and d["mean"] == pytest.approx(.1) and np.isnan([d.low, d.high, d["std"]]).all()
    with pytest.raises(ValueError, match="no pair"): paired_difference(df, "keep", "clca", "base")
    with pytest.raises(ValueError, match="share"): paired_difference(df.assign(seed=0), "keep", "clca", "cla")

@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-.4, .4), min_size=2, max_size=8))
def test_interval_holds_the_mean_and_stays_within_what_was_seen(d):
    r = paired_difference(toy([.5 + x for x in d], [.5]*len(d)), "keep", "clca", "cla", n_boot=200).iloc[0]
    assert min(d) - 1e-9 <= r.low <= r.high <= max(d) + 1e-9 and r["mean"] == pytest.approx(np.mean(d))

def test_bootstrap_covers():
    "95 % intervals of 30 normal differences hold the true mean about 19 times of 20, and a seed repeats them."
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        df = toy(.5 + rng.normal(.02, .05, 30), [.5]*30)
        r = paired_difference(df, "keep", "clca", "cla", n_boot=500).iloc[0]; hits += r.low <= .02 <= r.high
    assert 85 <= hits <= 100
    again = paired_difference(df, "keep", "clca", "cla", n_boot=500).iloc[0]
    assert (again.low, again.high) == (r.low, r.high)

def test_cells_pool_like_the_raw_runs():
    top1 = np.array([.5, .6, .8, .4, .9])
    runs = pd.DataFrame([GOOD | dict(variant="clca", run_id=str(i), seed=i, test_top1=t) for i, t in enumerate(top1)])
    whole = cells(runs).iloc[0]
    base = {k: v for k, v in GOOD.items() if k != "test_top1"}
    base |= dict(source="published", serial=1, variant="clca")
    parts = pd.DataFrame([base | dict(accuracy=100*p.mean(), std=100*p.std(ddof=1), n=len(p)) for p in (top1[:2], top1[2:])])
    pooled = cells(parts).iloc[0]
    assert whole.n == pooled.n == 5 and whole["std"] == pytest.approx(pooled["std"])
    assert whole.accuracy == pytest.approx(64) and pooled.accuracy == pytest.approx(64)
    assert whole.source == "our runs" and pooled.runs == ("serial 1",)

@pytest.mark.parametrize("collection", sorted((ROOT/"data"/"runs").glob("*.jsonl")), ids=lambda path: path.stem)
def test_a_committed_run_has_all_that_it_takes_to_make_it_again(collection):
    "What is read from its line has the types that train.ipynb asks for, and says what was done."
    first = json.loads(collection.read_text().splitlines()[0])
    line, folder = recorded_run(first["run_id"])
    values, cell = parameters_from(line), next(c.source for c in nbformat.read(ROOT/"nbs"/"train.ipynb", 4).cells if "parameters" in c.metadata.get("tags", ()))
    exec(cell, names := {})
    names.update(values)
    checked = check_parameters([cell], names)
    assert folder is None
    assert {"seed", "keep", "lr", "epochs", "image_size", "backbone_kwargs", "precision"} <= values.keys() <= checked.keys()
    assert [checked[name] for name in ("seed", "keep", "lr", "epochs")] == [first[name] for name in ("seed", "keep", "lr", "epochs")]

def test_a_folder_has_parameters_beside_its_numbers(tmp_path):
    make(tmp_path/"mine", precision_used="bf16-mixed")
    (tmp_path/"mine"/"parameters.json").write_text(json.dumps(dict(keep=[.5, .25, .1], teacher=None, data_root="photos", drop_path=.1)))
    record, folder = recorded_run(str(tmp_path/"mine"))
    values = parameters_from(record)
    assert folder == tmp_path/"mine" and record["run_id"] == "mine" and "teacher" not in values and "test_top1" not in values
    assert (values["keep"], values["precision"], values["data_root"], values["drop_path"]) == ([.5, .25, .1], "bf16-mixed", "photos", .1)
    (tmp_path/"mine"/"metrics.json").unlink()
    with pytest.raises(ValueError, match="the run did not finish"): recorded_run(str(tmp_path/"mine"))

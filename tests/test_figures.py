"The figures notebook with own runs, that what it writes is complete, labelled and without machine paths; and that no figure drops a name."
import json, warnings
import matplotlib as mpl, numpy as np, pandas as pd, papermill, pytest
from clca.lab.accuracy_figures import accuracy_boxes, accuracy_cost, accuracy_speed, reducer_curves
from clca.lab.gain_figures import contrast_plot
from clca.lab.gradient_figures import gradient_history, gradient_peaks
from clca.lab.house_style import in_order, label, look, readable, style
from clca.lab.runs import collect_runs
from clca.lab.speed_figures import growth_curves, speedup_bars, speedup_curves
from clca.lab.statistics import effects
from helpers import ROOT
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

HEADS = dict(base=("linear", False), clc=("linear", True), cla=("cla", False), clca=("cla", True))

@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    for v, (head, cache) in HEADS.items():
        for keep in (.1, .5):
            for seed in range(2):
                (folder := tmp_path/"store"/f"{v}-{keep}-{seed}").mkdir(parents=True)
                m = dict(dataset="typefaces", image_size=64, backbone="vit", reducer="evit", keep=keep, head=head, cache=cache, at=[3, 6, 9],
                         seed=seed, gmacs=keep, test_top1=float(rng.uniform(.5, .9)), images_per_second=100., batch_size=8, data_hash="abc",
                         out=str(tmp_path), data_root=str(tmp_path))
                (folder/"metrics.json").write_text(json.dumps(m))
                (folder/"gradients.csv").write_text("step,max_grad\n" + "".join(f"{i},{rng.uniform(.1, 2):.3f}\n" for i in range(20)))
    (tmp_path/"store"/"broken").mkdir()
    return tmp_path/"store"

def test_own_runs(store, tmp_path):
    runs, out = collect_runs(tmp_path/"runs.jsonl", store), tmp_path/"figures"
    papermill.execute_notebook(str(ROOT/"nbs"/"figures.ipynb"), str(tmp_path/"done.ipynb"), dict(source="own", runs=str(runs), out=str(out)),
                               cwd=str(ROOT), progress_bar=False, execution_timeout=120)
    names = {f.stem for f in out.glob("*.png")}
    assert names == {"accuracy_cost", "cache_gain_runs", "contrasts_runs", "gradients_runs", "method"}
    for n in names:
        record, svg = json.loads((out/f"{n}.json").read_text()), (out/f"{n}.svg").read_text()
        assert record["figure"] == n and record["runs"] and record["versions"]["matplotlib"] and "figures.ipynb" in record["command"]
        if n != "method": assert record["data_hash"] == {"typefaces, 64 px": "abc"} and set(record["runs"]) <= {f.name for f in store.iterdir()}
        assert "<dc:date>" not in svg

REDUCERS, VARIANTS = ["evit", "package.module:Mine", "theirs"], ["base", "clca", "mine", "clca, protected"]

@pytest.fixture
def outsiders():
    "Reducers and variants of which some have no label, at two keep rates, as cells and as a benchmark."
    rng, rows = np.random.default_rng(0), []
    for reducer in REDUCERS:
        for variant in VARIANTS:
            for keep in (.25, .5):
                rows.append(dict(source="our runs", dataset="typefaces", image_size=64, backbone="vit", reducer=reducer, variant=variant, keep=keep,
                                 accuracy=rng.uniform(50, 90), std=1., n=2, gmacs=keep, images_per_second=1/keep, batch_size=8, seed=0, runs=("a", "b")))
    cells = pd.DataFrame(rows)
    ratio = 1/cells.keep
    return cells, cells.assign(mode="inference", size=64, batch=8, tokens=65, mac_ratio=ratio, speedup=ratio, seconds=.1, alone=.1)

def legend(fig):
    handles = {name for ax in fig.axes for name in ax.get_legend_handles_labels()[1]}
    return handles | {t.get_text() for ax in fig.axes if ax.get_legend() for t in ax.get_legend().get_texts()}

@pytest.mark.parametrize("draw", [accuracy_boxes, lambda cells: reducer_curves(cells), lambda cells: reducer_curves(cells, "images_per_second")])
def test_no_reducer_is_dropped(outsiders, draw):
    fig = draw(outsiders[0])
    told = legend(fig) | {t.get_text() for ax in fig.axes for t in [*ax.get_xticklabels(), ax.title]}
    assert told >= {"EViT", "Mine", "theirs", "base", "CLCA (both)", "mine", "clca, protected"}

@pytest.mark.parametrize("draw", [speedup_curves, speedup_bars, growth_curves])
def test_no_reducer_is_dropped_from_a_benchmark(outsiders, draw):
    table = outsiders[1]
    fig = draw(table if draw is not speedup_bars else table[table.keep == .25])
    told = " ".join(legend(fig) | {t.get_text() for t in fig.axes[0].get_yticklabels()})
    assert all(name in told for name in ("EViT", "Mine", "theirs"))
    if draw is not growth_curves: assert all(label(v) in told for v in VARIANTS) # that one shows the last variant only, and says so

def test_all_bars_are_there_even_where_a_variant_lacks_a_reducer(outsiders):
    table = outsiders[1].query("keep == .25 and not (reducer == 'evit' and variant == 'base')")
    bars = speedup_bars(table).axes[0].patches
    assert len(bars) == len(table) == len({round(b.get_y(), 6) for b in bars})

def test_no_variant_is_dropped(outsiders):
    cells = outsiders[0].query("reducer == 'evit'")
    steps = pd.concat([cells.assign(run_id=cells.variant, step=s, max_grad=1.) for s in range(3)])
    wide = pd.concat([cells.assign(variant=[f"{v}{i}" for v in cells.variant], peak_by_eye=1.) for i in range(3)]) # more bars than hatches
    worth = effects(cells, ["seed"])
    for fig in (accuracy_cost(cells), accuracy_speed(cells), gradient_history(steps)): assert legend(fig) >= {label(v) for v in VARIANTS}
    assert len(gradient_peaks(wide).axes[0].patches) == len(wide)
    shown = [t.get_text() for t in contrast_plot(worth[worth.keep != "all"]).axes[0].get_yticklabels()]
    assert {"mine over base", "clca, protected over clca"} <= set(shown)

def test_names_without_a_label():
    "They come after the known ones, written as they are, a class by its name, and look the same each time."
    assert in_order(["theirs", "clca", "mine", "evit", "base"]) == ["base", "clca", "evit", "mine", "theirs"]
    assert look("theirs") == look("theirs") and label("package.module:Mine") == "Mine" and label("theirs") == "theirs"

# Letters -------------------------------------------------------------------------------------------------------------

@pytest.fixture
def own_fonts(monkeypatch):
    "Only the fonts that matplotlib ships, wherever the test runs."
    place = mpl.get_data_path()
    monkeypatch.setattr(fontManager, "ttflist", [f for f in fontManager.ttflist if f.fname.startswith(place)])

@pytest.mark.parametrize("names, shown", [
    (["bee", "naïve", "Ж", "1"], None), (["bee", "\u1d81"], None), (["a b", "$x$", "\u200b"], None),
    (["bee", "蜜蜂", "ant"], ["bee", "#1", "ant"]), (["蜜", "蜂"], ["#0", "#1"]), (["bee\U0001f41d"], ["#0"]), ([], None)])
def test_letters_that_the_default_font_lacks(own_fonts, capsys, names, shown):
    "Are drawn by another font; else the number stands for the name, and nothing becomes an empty box."
    assert readable(names) == (shown or names)
    told = capsys.readouterr().out
    assert bool(told) == bool(shown) and told.count("\n") == bool(shown)
    style(names)
    fig = Figure(figsize=(2, 1))
    for name in readable(names): fig.text(0, 0, name, parse_math=False)
    with warnings.catch_warnings(action="error"): fig.canvas.draw()

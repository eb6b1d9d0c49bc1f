"A search for the learning rate: the best trial is the run, to the bit, and a search that is struck down goes on."
import json
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file

from clca.training import Recipe, recipe_of, train

RATES = [1e-4, 1e30, 3e-3]
RECIPE = Recipe(epochs=2, batch_size=8, clip_grad=0., warmup_epochs=0., logger="none", lr_search=RATES)
SAME = ["epoch", "lr", "train_loss", "val_loss", "val_top1"]

def run(out, recipe=RECIPE, data=None): return train(tiny.model(), data or tiny.data(), out, recipe, dict(note="search"))
def same_bits(a, b):
    a, b = (load_file(place/"model.safetensors") for place in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

class Cut(tiny.Colours):
    "The power goes in the second epoch of the given trial."
    trial, begun = 3, 0
    def set_epoch(self, epoch):
        self.begun += epoch == 0
        if self.begun == self.trial and epoch == 1: raise InterruptedError
        super().set_epoch(epoch)

@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")/"searched"
    return out, run(out)

def test_the_best_trial_is_the_run(searched, tmp_path):
    "It ends as a run that was given the rate, and a rate without finite numbers is a lost candidate."
    out, metrics = searched
    run(tmp_path/"given", replace(RECIPE, lr=3e-3, lr_search=()))
    assert same_bits(out, tmp_path/"given") and metrics["lr"] == 3e-3 and metrics["lr_search"] == RATES
    assert pd.read_csv(out/"history.csv")[SAME].equals(pd.read_csv(tmp_path/"given"/"history.csv")[SAME])
    low, lost, high = metrics["lr_search_top1"]
    assert lost is None and low < high == metrics["val_top1"] and metrics["lr_search_loss"][1] is None
    trials = {place.name: json.loads((place/"trial.json").read_text()) for place in (out/"lr_search").iterdir()}
    assert trials["0.003"]["val_top1"] == high and "the loss is nan in epoch 1 at lr = 1e+30" in trials["1e+30"]["lost"]
    assert json.loads((out/"parameters.json").read_text())["lr"] == 3e-3 and not list(out.rglob("last.ckpt"))
    assert run(out) == metrics

def test_a_search_goes_on_where_it_was_struck_down(searched, tmp_path, capsys):
    data = tiny.data()
    data.train = Cut(50)
    with pytest.raises(InterruptedError): run(tmp_path/"run", data=data)
    assert not (tmp_path/"run"/"parameters.json").exists() and len(list(tmp_path.rglob("trial.json"))) == 2
    assert {p.parent.name for p in tmp_path.rglob("last.ckpt")} == {"0.0001", "0.003"}
    capsys.readouterr()
    run(tmp_path/"run")
    said = capsys.readouterr().out
    assert same_bits(searched[0], tmp_path/"run") and said.count("epoch 2/2") == 1 and "epoch 1/2" not in said

def test_struck_down_after_the_choice(searched, tmp_path, monkeypatch):
    "Before the test and its metrics: no trial is trained again."
    monkeypatch.setattr("clca.training.loop.finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): run(tmp_path/"run")
    monkeypatch.undo()
    monkeypatch.setattr("clca.training.task.Classifier.training_step", lambda *_: 1 / 0)
    assert run(tmp_path/"run")["lr"] == 3e-3 and same_bits(searched[0], tmp_path/"run")

def test_all_are_lost(tmp_path):
    model = tiny.model()
    with pytest.raises(FloatingPointError, match="no learning rate of lr_search gives finite numbers: the loss is nan"):
        train(model, tiny.data(), tmp_path/"run", replace(RECIPE, lr_search=[1e30, 1e32]))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in tiny.model().state_dict().items())

def test_a_search_belongs_to_its_run(searched):
    "The rate is what it found; all else decides as ever."
    out, metrics = searched
    assert run(out, replace(RECIPE, lr=.5)) == metrics
    for change in (dict(lr_search=[1e-4, 3e-3]), dict(lr_search=(), lr=3e-3), dict(epochs=3)):
        with pytest.raises(ValueError, match=f"holds a run with {next(iter(change))} = "): run(out, replace(RECIPE, **change))

@pytest.mark.parametrize("values, message", [
    (dict(lr_search=[1e-3]), r"lr_search = \[0.001\] is out of range: it must be two or more different rates"),
    (dict(lr_search=[1e-3, 1e-3]), "two or more different rates"), (dict(lr_search=[1e-3, 0.]), "above 0 and finite"),
    (dict(lr_search=[1e-3, 1e-2], lr=1e-3), "lr = 0.001 and lr_search = .* are both given: leave out lr, which is to be"),
    (dict(lr_search=[1e-6, 1e-3], min_lr=1e-5), "min_lr = 1e-05 is out of range: it must be from 0 to lr, or to the lowest")])
def test_a_search_that_makes_no_sense(values, message):
    with pytest.raises(ValueError, match=message): recipe_of(**values)

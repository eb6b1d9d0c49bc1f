"What only other processes, full disks and whole runs can show about training."
import errno
import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from helpers import ROOT
from lightning import Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn
from safetensors.torch import load_file

from clca import create_model, load_checkpoint
from clca.spec import options_of
from clca.training import files, records
from clca.training.evaluation import predict
from clca.training.loop import train
from clca.training.task import Classifier
from clca.training.recipe import Recipe, lr_factor, param_groups

SAME = ["epoch", "lr", "train_loss", "val_loss", "val_top1"]
COSTS = {"train_seconds", "images_per_second", "loader_images_per_second", "peak_memory_mb", "git_commit"}

def run(out, kill=-1, devices=1, **more):
    "Train in a process of its own; the exit code and what it printed."
    paths = os.pathsep.join(map(str, (ROOT, ROOT/"tests"))) # this checkout, whichever one is installed
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=paths, PYTHONWARNINGS="ignore")
    command = [sys.executable, tiny.__file__, str(out), str(kill), str(devices), json.dumps(more)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr

def read(out): return json.loads((out/"metrics.json").read_text())
def history(out): return pd.read_csv(out/"history.csv")
def same_bits(a, b):
    a, b = (load_file(p/"model.safetensors") for p in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nothing happened to."
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")/"whole"
    train(tiny.model(), tiny.data(), out, tiny.RECIPE, dict(keep=.1))
    return out

def test_killed_in_mid_epoch(whole, tmp_path, capsys):
    "kill -9 in epoch 3; started again with the same command it ends with the bits of a run that was left alone."
    out = tmp_path/"killed"
    assert run(out, kill=2)[0] == -9 and list(history(out).epoch) == [1, 2] and not (out/"metrics.json").exists()
    train(tiny.model(), tiny.data(), out, tiny.RECIPE, dict(keep=.1))
    assert "Continued after epoch 2 of 4" in capsys.readouterr().out
    assert same_bits(whole, out)
    assert history(out)[SAME].equals(history(whole)[SAME]) and list(history(out).epoch) == [1, 2, 3, 4]
    assert pd.read_csv(out/"gradients.csv").equals(pd.read_csv(whole/"gradients.csv"))
    assert (out/"predictions.csv").read_text() == (whole/"predictions.csv").read_text()
    a, b = read(whole), read(out)
    assert {k: v for k, v in a.items() if k not in COSTS} == {k: v for k, v in b.items() if k not in COSTS}
    assert b["train_seconds"] == pytest.approx(history(out).seconds.sum())

def test_killed_before_the_end_is_written(whole, tmp_path, monkeypatch):
    "All epochs are done but not the evaluation, and the history is not written: nothing is trained again."
    out, write = tmp_path/"run", files.write_atomic
    def refuse(path, content):
        if Path(path).name == "metrics.json": raise KeyError
        write(path, content)
    monkeypatch.setattr("clca.training.results.write_atomic", refuse)
    with pytest.raises(KeyError): train(tiny.model(), tiny.data(), out, tiny.RECIPE, dict(keep=.1))
    monkeypatch.setattr("clca.training.results.write_atomic", write)
    before = (out/"history.csv").read_text()
    (out/"history.csv").unlink()
    train(tiny.model(1), tiny.data(), out, tiny.RECIPE, dict(keep=.1))
    assert (out/"history.csv").read_text() == before and same_bits(whole, out) and not (out/"last.ckpt").exists()

def test_disk_full_keeps_the_last_checkpoint(whole, tmp_path, monkeypatch):
    "Half of the second checkpoint is written, then the disk is full: the first one survives and is enough to go on."
    out = tmp_path/"run"
    class Full(io.FileIO):
        def write(self, content):
            super().write(bytes(content)[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    def disk(path, mode):
        full = "last.ckpt" in str(path) and (out/"last.ckpt").exists()
        return Full(path, mode) if full else open(path, mode)
    monkeypatch.setattr(files, "open", disk, raising=False)
    with pytest.raises(
        OSError, match="last.ckpt could not be written .No space left on device., the last good one is kept: make room"
    ):
        train(tiny.model(), tiny.data(), out, tiny.RECIPE, dict(keep=.1))
    assert records.AtomicIO().load_checkpoint(out/"last.ckpt")["epoch"] == 0 and not list(out.glob(".*"))
    monkeypatch.undo()
    train(tiny.model(), tiny.data(), out, tiny.RECIPE, dict(keep=.1))
    assert same_bits(whole, out) and list(history(out).epoch) == [1, 2, 3, 4]

@pytest.mark.parametrize(
    "change, message",
    [
        (dict(parameters=dict(keep=0.25)), r"holds a run with keep = 0\.1, not 0\.25"),
        (dict(recipe=Recipe(**{**vars(tiny.RECIPE), "lr": 0.1})), r"holds a run with lr = 0\.003, not 0\.1"),
        (dict(data=tiny.data(hash="other")), r"holds a run with data_hash = 'tiny', not 'other'"),
    ],
    ids=["keep", "lr", "data"],
)
def test_other_parameters_are_refused(whole, change, message):
    given = dict(data=tiny.data(), recipe=tiny.RECIPE, parameters=dict(keep=.1)) | change
    with pytest.raises(ValueError, match=message): train(tiny.model(), out=whole, **given)

def test_a_finished_run_is_not_trained_again(whole, capsys):
    model, stamps = tiny.model(1), {p.name: p.stat().st_mtime_ns for p in whole.iterdir()}
    assert train(model, tiny.data(), whole, tiny.RECIPE, dict(keep=.1, workers=3)) == read(whole)
    assert capsys.readouterr().out == "whole is finished: nothing is trained again.\n"
    assert {p.name: p.stat().st_mtime_ns for p in whole.iterdir()} == stamps
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_file(whole/"model.safetensors").items())

def test_what_a_run_leaves(whole):
    assert sorted(p.name for p in whole.iterdir()) == [
        "classes.csv",
        "config.json",
        "gradients.csv",
        "history.csv",
        "metrics.json",
        "model.safetensors",
        "parameters.json",
        "predictions.csv",
    ]
    m, h, p = read(whole), history(whole), pd.read_csv(whole/"predictions.csv")
    assert list(h) == [*SAME, "seconds", "images_per_second", "peak_memory_mb"] and len(h) == 4
    assert h.lr.iloc[0] == tiny.RECIPE.lr and h.lr.iloc[-1] < tiny.RECIPE.lr / 50
    assert list(p) == ["path", "label", "prediction", "share"] and p.share.between(1/3, 1).all()
    assert (p.label == p.prediction).mean() == pytest.approx(m["test_top1"], abs=1e-6)
    assert m["val_top1"] == h.val_top1.iloc[-1]
    assert [m[name] for name in ("epochs", "keep", "data_hash", "seed")] == [4, .1, "tiny", 0]
    assert {"test_top5", "macro_f1", "balanced_accuracy", "calibration_error", "gmacs", "params", "version_torch", "git_commit", *COSTS} <= m.keys()
    assert not any(isinstance(v, dict) for v in m.values())
    assert len(pd.read_csv(whole/"gradients.csv")) == 4 * (50 // 8)

# What is recorded about the model ------------------------------------------------------------------------------------

def ours(**options):
    torch.manual_seed(0)
    small = dict(image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=4, at=(1, 2), keep=.5)
    return create_model("vit_tiny_patch16_224", 3, **small | options)

def test_a_model_of_timm_is_recorded_without_options(whole):
    "Nothing is known that could build it again."
    config = json.loads((whole/"config.json").read_text())
    assert "model" not in config and {"classes", "image_size", "mean", "std", "clca_version"} <= config.keys()
    with pytest.raises(ValueError, match="does not say which model to build"): load_checkpoint(whole)

def test_our_model_is_built_again_from_its_run(tmp_path):
    model = ours(drop_rate=.1)
    metrics = train(model, tiny.data(), tmp_path, tiny.SHORT, dict(keep=.5, at=[1, 2]))
    config = json.loads((tmp_path/"config.json").read_text())["model"]
    assert config == json.loads(json.dumps(options_of(model.spec)))
    assert config["embed_dim"] == 16 and config["drop_rate"] == .1
    assert metrics["num_classes"] == 3 and metrics["reducer"] == "evit" and metrics["patch_size"] == 4
    again = load_checkpoint(tmp_path)
    assert again.spec == model.spec and torch.equal(again(tiny.image()), model.eval()(tiny.image()))

@pytest.mark.parametrize("parameters, message", [
    (dict(keep=.25), r"keep = 0\.25 is to be recorded, but the model has 0\.5"),
    (dict(embed_dim=32), "embed_dim = 32 is to be recorded, but the model has 16"),
    (dict(backbone_kwargs=dict(depth=4)), "backbone_kwargs = .* is to be recorded, but the model has")])
def test_parameters_that_contradict_the_model_are_refused(tmp_path, parameters, message):
    with pytest.raises(ValueError, match=message): train(ours(), tiny.data(), tmp_path/"run", tiny.SHORT, parameters)
    assert not (tmp_path/"run").exists()

def test_a_run_from_before_an_option_goes_on(tmp_path):
    "Its record does not name the option, and its model had what is the default today; another value is another run."
    train(ours(), tiny.data(), tmp_path, tiny.SHORT)
    record = json.loads((tmp_path/"parameters.json").read_text())
    assert record.pop("reference") is False
    (tmp_path/"parameters.json").write_text(json.dumps(record))
    assert train(ours(), tiny.data(), tmp_path, tiny.SHORT) == read(tmp_path)
    with pytest.raises(ValueError, match="reference = False, not True"):
        train(ours(reference=True), tiny.data(), tmp_path, tiny.SHORT)

# Processes and numbers -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("more", [
    dict(ema=.9, accumulate=2, label_smoothing=.1, weight_decay=.1, mixup=.8, cutmix=1.),
    dict(ema=.9, adapter="freeze", lr_search=[1e-4, 1e-2], warmup_epochs=0., checkpointing=True)], ids=["all", "freeze"])
def test_two_processes_give_the_result_of_one(more, tmp_path):
    """But for the last digits, of sums in another order: averages of weights, passes of a step, mixed images, an adapter,
    a search for the rate. There is one history, and each of the 31 images of validation counts once."""
    recipe = Recipe(**{**vars(tiny.RECIPE), "epochs": 2, **more})
    train(model := tiny.steady(), tiny.data(), tmp_path/"one", recipe)
    code, text = run(tmp_path/"two", devices=2, epochs=2, **more)
    assert code == 0 and text.count("epoch 2/2") == len(more.get("lr_search", [0])), text
    one, two = history(tmp_path/"one"), history(tmp_path/"two")
    pd.testing.assert_frame_equal(one[SAME], two[SAME], rtol=1e-4)
    again = load_file(tmp_path/"two"/"model.safetensors")
    for name, value in model.state_dict().items(): assert torch.allclose(value, again[name], rtol=1e-2, atol=1e-4), name
    first, second = (read(tmp_path/name) for name in ("one", "two"))
    assert first["lr"] == second["lr"] and first["test_top1"] == pytest.approx(second["test_top1"], abs=.04)

def test_weights_come_back_from_a_launcher(whole):
    "For a notebook Lightning forks, and hands the trained weights back through the same reader, as a bare state dict."
    task = Classifier(tiny.model(), tiny.data(), tiny.RECIPE)
    trainer = Trainer(plugins=[records.AtomicIO()], accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy._lightning_module, trainer.strategy.local_rank = task, 0
    trainer.state.fn = TrainerFn.FITTING
    launcher = _MultiProcessingLauncher(trainer.strategy, start_method="fork")
    task.model.load_state_dict(load_file(whole/"model.safetensors"))
    trained = launcher._collect_rank_zero_results(trainer, None)
    task.model.load_state_dict(tiny.model().state_dict())
    launcher._recover_results_in_main_process(trained, trainer)
    assert all(torch.equal(v, task.model.state_dict()[k]) for k, v in load_file(whole/"model.safetensors").items())

def test_groups_of_our_model():
    "Every parameter is in one group; the cache's registers and whatever is 1-D do not shrink."
    model = create_model("vit_tiny_patch16_224", 3, image_size=16, patch_size=8, embed_dim=16, num_heads=2)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = sorted(param_groups(model, .05), key=lambda g: g["weight_decay"])
    free, decayed = ({names[id(p)] for p in g["params"]} for g in groups)
    assert free | decayed == set(names.values()) and not free & decayed
    qkv = "backbone.blocks.0.attn.qkv"
    learnt = {"cache.clr", "cache.pos", "backbone.cls_token", "backbone.pos_embed"}
    assert learnt | {"head.norm.weight", f"{qkv}.bias"} <= free
    assert {"head.classifier.weight", f"{qkv}.weight", "backbone.patch_embed.proj.weight"} <= decayed

@pytest.mark.parametrize("step, factor", [(0, .25), (3, 1), (4, 1), (8, .5), (12, 0), (20, 0)])
def test_schedule(step, factor): assert lr_factor(step, 12, 4) == pytest.approx(factor)

def test_fewer_images_than_a_batch(tmp_path):
    with pytest.raises(
        ValueError, match="The training split has 7 images, less than one batch of 8: lower batch_size or add images"
    ):
        train(tiny.model(), tiny.data(7), tmp_path/"run", tiny.RECIPE)

@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("weight_decay", -1.0),
        ("warmup_epochs", 11),
        ("label_smoothing", 1.0),
        ("clip_grad", -1.0),
        ("precision", "fp8"),
        ("devices", 0),
        ("workers", -1),
    ],
)
def test_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} = .* is out of range: it must be"): Recipe(**{name: value})

@pytest.mark.parametrize("name, value, words", [
    ("epochs", 1.5, "a whole number"), ("epochs", True, "a whole number"), ("seed", "0", "a whole number"),
    ("batch_size", 8.0, "a whole number"), ("lr", "1e-3", "a number"), ("ema", None, "a number"), ("logger", None, "a text"),
    ("checkpointing", "yes", "True or False"), ("teacher", Path("run"), "a text"), ("lr_search", 1e-3, "a list of numbers"),
    ("lr_search", ["1e-3", "1e-4"], "a list of numbers")])
def test_values_of_a_wrong_kind(name, value, words):
    with pytest.raises(ValueError, match=f"^{name} = .* must be {words}.$"): Recipe(**{name: value})

def test_values_of_numpy_are_those_of_python(tmp_path):
    "A seed of `np.arange`, rates of `np.logspace`: they are what they say, and the record has them."
    recipe = replace(tiny.SHORT, seed=np.arange(3)[2], lr=np.float32(.25), checkpointing=np.bool_(False), lr_search=[np.float32(.5), 1.])
    assert recipe == replace(tiny.SHORT, seed=2, lr=.25, lr_search=[.5, 1.]) and json.loads(json.dumps(vars(recipe)))["lr_search"] == [.5, 1.]

@pytest.mark.parametrize("around, precision", [
    ("autocast", "32-true"), ("autocast", "bf16-mixed"), ("inference", "32-true"), ("no_grad", "32-true"), ("double", "32-true")])
def test_what_is_around_a_run_does_not_change_its_numbers(tmp_path, around, precision):
    "A record that says 32-true was not made in half precision, because the cell stands in somebody's autocast."
    recipe = replace(tiny.SHORT, precision=precision, epochs=2, warmup_epochs=0)
    want = train(tiny.model(), tiny.data(), tmp_path/"alone", recipe)
    model, made = tiny.model(), dict(autocast=lambda: torch.autocast("cpu", torch.bfloat16), inference=torch.inference_mode,
                                     no_grad=torch.no_grad, double=nullcontext)
    if around == "double": torch.set_default_dtype(torch.float64)
    try:
        with made[around](): got = train(model, tiny.data(), tmp_path/"around", recipe)
        assert torch.get_default_dtype() == (torch.float64 if around == "double" else torch.float32)
    finally: torch.set_default_dtype(torch.float32)
    assert got["test_top1"] == want["test_top1"] and history(tmp_path/"alone")[SAME].equals(history(tmp_path/"around")[SAME])
    a, b = (load_file(tmp_path/name/"model.safetensors") for name in ("alone", "around"))
    assert all(torch.equal(a[name], b[name]) for name in a)

def test_a_model_in_another_precision_is_asked_in_its_own():
    logits = [predict(tiny.model().to(kind), tiny.data().test)[0] for kind in (torch.float32, torch.float64, torch.bfloat16)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5) and torch.allclose(logits[0], logits[2], atol=.05)

def test_contradictions_are_refused_before_any_work(tmp_path):
    out, data = tmp_path/"run", tiny.data()
    with pytest.raises(ValueError, match="the model has 3 classes and the data 2: make the model with num_classes=2"):
        train(tiny.model(), SimpleNamespace(**{**vars(data), "classes": ["red", "green"]}), out, tiny.SHORT)
    for given in dict(lr=1.), dict(data_hash="other"):
        with pytest.raises(ValueError, match="is to be recorded, but the run has .*: make them agree"):
            train(tiny.model(), data, out, tiny.SHORT, given)
    with pytest.raises(ValueError, match="out is empty: name a folder"): train(tiny.model(), data, "", tiny.SHORT)
    assert not out.exists()

def test_loading_processes_and_half_precision(tmp_path):
    "A process that loads images, stops after the second epoch and goes on: nothing changes, in bfloat16 as well."
    class Stop(tiny.Colours):
        def set_epoch(self, epoch):
            if epoch == 2: raise InterruptedError
            super().set_epoch(epoch)
    recipe = lambda workers: Recipe(**{**vars(tiny.RECIPE), "precision": "bf16-mixed", "workers": workers})
    stopped = tiny.data()
    stopped.train = Stop(50)
    with pytest.raises(InterruptedError): train(tiny.model(), stopped, tmp_path/"1", recipe(1))
    for workers in (0, 1): train(tiny.model(), tiny.data(), tmp_path/str(workers), recipe(workers))
    assert same_bits(tmp_path/"0", tmp_path/"1") and history(tmp_path/"0")[SAME].equals(history(tmp_path/"1")[SAME])
    assert read(tmp_path/"0")["precision_used"] == "bf16-mixed"

def test_a_run_that_diverges_is_not_finished(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1 at lr = 1e"):
        wild = Recipe(epochs=2, batch_size=8, lr=1e30, clip_grad=0., warmup_epochs=0)
        train(tiny.model(), tiny.data(), tmp_path/"run", wild)
    assert not list((tmp_path/"run").iterdir())

class Spoilt(tiny.Colours):
    "The image of index 5 is no image of numbers."
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image * float("nan") if i == 5 else image, label

@pytest.mark.parametrize("split, what", [("train", "the loss is nan in epoch 1"), ("val", "the validation loss is nan in"),
                                         ("test", "the answers to the test images are not all numbers")])
def test_bad_data_are_told_from_a_bad_rate(tmp_path, split, what):
    data = tiny.data()
    setattr(data, split, Spoilt(31))
    with pytest.raises(FloatingPointError, match=f"{what}.*: image 5 has values that are no numbers, so mend it"):
        train(tiny.model(), data, tmp_path, tiny.SHORT)
    assert not (tmp_path/"metrics.json").exists()

class Overflows(torch.nn.Module):
    "A model whose logits are beyond half precision from the given step on."
    def __init__(self, after):
        super().__init__()
        self.body, self.after, self.steps = tiny.model(), after, 0
    def forward(self, x):
        self.steps += self.training
        return self.body(x) if self.training else self.body(x) * (1e30 if self.steps >= self.after else 1)

def test_an_infinite_logit_is_no_answer(tmp_path):
    "Half precision is named, and where epochs are kept, that another folder is needed."
    half = Recipe(epochs=3, batch_size=8, lr=3e-3, precision="16-mixed")
    with pytest.raises(FloatingPointError, match="validation loss is nan in epoch 1 .*: half precision overflowed, so use"):
        train(Overflows(0), tiny.data(), tmp_path/"first", half)
    with pytest.raises(FloatingPointError, match="in epoch 2 .*: half precision.*, in another folder .out., for this one"):
        train(Overflows(12), tiny.data(), tmp_path/"second", half)
    assert not (tmp_path/"second"/"metrics.json").exists() and list(history(tmp_path/"second").epoch) == [1]

@pytest.mark.parametrize("devices, batch, fits", [(2, 4, True), (2, 3, False), (2, 2, False), (3, 6, True), (4, 6, False)])
def test_a_batch_is_shared(devices, batch, fits):
    refused = pytest.raises(ValueError, match=f"batch_size = {batch} is out of range: it must be a multiple of devices")
    with nullcontext() if fits else refused: Recipe(batch_size=batch, devices=devices)

def test_fewer_images_of_validation_than_devices(tmp_path):
    data = tiny.data()
    data.val = tiny.Colours(1)
    with pytest.raises(ValueError, match="The validation split has 1 images and devices = 2"):
        train(tiny.model(), data, tmp_path/"run", Recipe(epochs=1, batch_size=8, devices=2))
    data.val = tiny.Colours(0)
    with pytest.raises(ValueError, match="The validation split has 0 images"):
        train(tiny.model(), data, tmp_path/"run", tiny.SHORT)

def test_an_answer_leaves_the_model_as_it_was():
    "Also when an image cannot be read; nothing is predicted without an image."
    model = tiny.model().train()
    model.norm.eval()
    logits, labels = predict(model, tiny.Colours(3))
    (logits.sum() * torch.ones(1, requires_grad=True)).backward() # as no tensor of inference mode would allow
    broken = type("Broken", (tiny.Colours,), dict(__getitem__=lambda self, i: 1 / 0))(3)
    with pytest.raises(ZeroDivisionError): predict(model, broken)
    assert model.training and model.blocks[0].training and not model.norm.training
    with pytest.raises(ValueError, match="there is no image to predict"): predict(model, [])

"What an adapter lets train, and what a run with one leaves. LoRA is peft's: its tests are skipped where that is missing."
import json
import sys
from importlib.util import find_spec

import pandas as pd
import pytest
import tiny
import timm
import torch
from helpers import registries_restored
from models import build, noise
from safetensors.torch import load_file
from torch import nn

from clca import load_checkpoint, reducers
from clca.head import HEADS
from clca.training import Recipe, register_adapter, train
from clca.training.adapters import Adapter, adapted
from clca.training.task import training_loss

NAMES = ["freeze", pytest.param("lora", marks=pytest.mark.skipif(
    not find_spec("peft"), reason="peft is not installed"))]
each = pytest.mark.parametrize("adapter", NAMES)
IMAGE = dict(image_size=16, patch_size=4, embed_dim=16)
RECIPE = dict(epochs=2, batch_size=8, lr=3e-3)

def new(model) -> set[str]:
    "Names of what no pretrained backbone brings."
    ours = {n for n, _ in model.named_parameters() if not n.startswith("backbone.")}
    return ours | {n for n, _ in model.named_parameters() if n.startswith(("backbone.head.", "backbone.head_dist."))}

def silent(head: nn.Module) -> set[str]:
    "Weights of a head that a BatchNorm after them makes meaningless: what they add is taken away again."
    return {"head.norm.bias", "head.mix.bias"} if hasattr(head, "mixed_norm") else set()

def backward(model):
    torch.manual_seed(0)
    training_loss(model, noise(6), torch.tensor([0, 1, 2, 3, 4, 5])).backward()

MODELS = [dict(reducer=r) for r in reducers.names()]
MODELS += [dict(head=h, cache=cache) for h in HEADS for cache in (True, False)]
MODELS += [dict(head="linear", backbone=backbone) for backbone in ("vit_small_patch16_dinov3", "deit_tiny_distilled_patch16_224")]
MODELS += [dict(num_clr=3, protect=True), dict(head="linear", global_pool="avg")]

@each
@pytest.mark.parametrize("options", MODELS, ids=lambda o: "-".join(map(str, o.values())))
def test_all_that_is_new_trains(adapter, options):
    "Every new weight gets a gradient, and every update of LoRA; nothing else in the backbone may change."
    model = build(**options)
    own = {n for n, _ in model.named_parameters()}
    with adapted(model, Recipe(adapter=adapter)) as trained:
        learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
        updates = {n for n in learns if ".lora_" in n}
        assert learns.keys() - updates == new(model) and trained == sum(p.numel() for p in learns.values())
        assert bool(updates) == (adapter == "lora")
        for n, p in learns.items():
            if ".lora_B." in n: nn.init.normal_(p, std=.1) # they start at zero, and A has no gradient then
        backward(model)
        assert not [n for n, p in learns.items() if p.grad is None]
        assert not [n for n, p in learns.items() if not p.grad.abs().sum() and n not in silent(model.head)]
        assert all(p.grad is None for n, p in model.named_parameters() if n not in learns)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == own, "afterwards it is as it was"

@pytest.mark.parametrize("head, draws", [("cla", set()), ("linear", {"head_drop"})])
def test_a_frozen_backbone_does_not_draw(head, draws):
    "Dropout and drop path are off in the backbone; reducers, head and the dropout before the classifier train."
    rates = dict(pos_drop_rate=.5, drop_path_rate=.5, proj_drop_rate=.5, attn_drop_rate=.5, drop_rate=.5)
    model = build("dyvit", head=head, **rates).eval()
    with adapted(model, Recipe(adapter="freeze")):
        assert {n for n, m in model.backbone.named_modules() if m.training} - {""} - draws <= {"head"}
        assert model.head.training and model.stages.training and model.training
        first, again = (model.backbone.blocks[0](noise(2, (5, 32))[:, 0]) for _ in range(2))
        assert torch.equal(first, again)
    with adapted(model, Recipe()): assert all(m.training for m in model.modules())

def test_running_statistics_of_a_frozen_backbone_stand_still():
    "A timm model of another kind, which has BatchNorm: only its classifier moves."
    model = timm.create_model("resnet10t", num_classes=3)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with adapted(model, Recipe(adapter="freeze")):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.)
        nn.functional.cross_entropy(model(noise(3)), torch.arange(3)).backward()
        optimizer.step()
    assert {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])} == {"fc.weight", "fc.bias"}

def test_lora_has_no_place_in_another_kind_of_model():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="a ResNet has no linear layers in `blocks`"):
        with adapted(timm.create_model("resnet10t"), Recipe(adapter="lora")): pass

# Whole runs ----------------------------------------------------------------------------------------------------------

def model(): return build(num_classes=3, **IMAGE)

@each
def test_a_run(adapter, tmp_path, monkeypatch, capsys):
    "The folder needs no adapter: the model of its config.json, whose backbone learned nothing, or small updates."
    m, before = model(), model().state_dict()
    metrics = train(m, tiny.data(), tmp_path/"run", Recipe(**RECIPE, adapter=adapter, adapter_rank=2))
    assert metrics["adapter"] == adapter and metrics["adapter_rank"] == 2
    assert metrics["trainable_params"] < metrics["params"] == sum(p.numel() for p in m.parameters())
    assert f"{metrics['trainable_params']:,} of " in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded, x = load_checkpoint(tmp_path/"run"), noise(4, (16, 16))
    assert torch.equal(loaded(x), m.eval()(x)) and loaded.state_dict().keys() == before.keys()
    moved = {n for n, v in loaded.state_dict().items() if not torch.equal(v, before[n])}
    learned = {n for n in before if adapter == "lora" and n.startswith("backbone.blocks.") and n.endswith(
        ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))}
    assert {n for n in moved if n.startswith("backbone.")} == learned and new(loaded) <= moved
    ranks = {int(torch.linalg.matrix_rank((loaded.state_dict()[n] - before[n]).double(), rtol=1e-3)) for n in learned}
    assert ranks <= {2}, "an update has the rank that was asked for"

@each
def test_killed_and_started_again(adapter, tmp_path):
    "A run that falls in its second epoch ends with the bits of one that was left alone, its adapter's included."
    class Stopped(tiny.Colours):
        def __getitem__(self, i):
            if self.epoch == 2: raise RuntimeError("power cut")
            return super().__getitem__(i)
    recipe = Recipe(**RECIPE | dict(epochs=3), adapter=adapter, log_gradients=True)
    data = tiny.data()
    train(model(), data, tmp_path/"whole", recipe)
    data.train = Stopped(50)
    with pytest.raises(RuntimeError, match="power cut"): train(model(), data, tmp_path/"cut", recipe)
    train(model(), tiny.data(), tmp_path/"cut", recipe)
    for file in ("gradients.csv", "predictions.csv", "model.safetensors"):
        assert (tmp_path/"cut"/file).read_bytes() == (tmp_path/"whole"/file).read_bytes(), file

@each
def test_a_run_that_fails_at_once_leaves_the_model_as_it_was(adapter, tmp_path):
    m, data = model(), tiny.data()
    class Broken(tiny.Colours):
        def __getitem__(self, i): raise RuntimeError("no such image")
    data.train = Broken(50)
    with pytest.raises(RuntimeError, match="no such image"):
        train(m, data, tmp_path/"run", Recipe(**RECIPE, adapter=adapter))
    assert [n for n, _ in m.named_modules()] == [n for n, _ in model().named_modules()]
    assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), model().state_dict().values()))
    assert all(p.requires_grad for p in m.parameters())

def test_without_peft_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="adapter='lora' needs peft .*: pip install peft"):
        train(model(), tiny.data(), tmp_path/"run", Recipe(**RECIPE, adapter="lora"))
    assert not (tmp_path/"run"/"parameters.json").exists()

def test_one_of_somebody_else(tmp_path):
    "Registered by a decorator; layers that it adds are gone from the folder, for it has merged them."
    class Shifted(nn.Module):
        def __init__(self, layer, rank):
            super().__init__()
            self.layer, self.shift = layer, nn.Parameter(torch.zeros(rank))
        def forward(self, x): return self.layer(x) + self.shift.mean()
    with registries_restored():
        @register_adapter("shift")
        class Shift(Adapter):
            def attach(self, model):
                model.requires_grad_(False)
                self.mlp = model.backbone.blocks[0].mlp
                self.mlp.fc2 = Shifted(self.mlp.fc2, self.rank)
            def merge(self, model):
                layer = self.mlp.fc2.layer
                layer.bias.data += self.mlp.fc2.shift.detach().mean()
                self.mlp.fc2 = layer
        metrics = train(model(), tiny.data(), tmp_path, Recipe(**RECIPE, adapter="shift", adapter_rank=5))
    assert metrics["trainable_params"] == 5
    after, before = load_file(tmp_path/"model.safetensors"), model().state_dict()
    moved = {n for n in before if not torch.equal(after[n], before[n]) and not n.startswith("head.")}
    assert moved == {"backbone.blocks.0.mlp.fc2.bias"}

# Memory --------------------------------------------------------------------------------------------------------------

def plain(**options):
    "Without BatchNorm and dropout, so a step is the mean over its images, however they are divided."
    return build(num_classes=3, head="ifa", **IMAGE, **options)

def gradients(out): return pd.read_csv(out/"gradients.csv").max_grad.tolist()
def history(out): return pd.read_csv(out/"history.csv")[["epoch", "lr", "train_loss", "val_loss", "val_top1"]]

@pytest.mark.parametrize("mix", [{}, dict(mixup=.8, cutmix=1.)], ids=["plain", "mixed"])
def test_accumulated_passes_make_the_same_steps(mix, tmp_path):
    for passes in (1, 4):
        recipe = Recipe(**RECIPE, **mix, accumulate=passes, log_gradients=True)
        train(plain(), tiny.data(), tmp_path/str(passes), recipe)
    assert len(gradients(tmp_path/"4")) == 2 * (50 // 8)
    assert gradients(tmp_path/"4") == pytest.approx(gradients(tmp_path/"1"), rel=1e-2)
    pd.testing.assert_frame_equal(history(tmp_path/"4"), history(tmp_path/"1"), rtol=1e-3)

def test_accumulated_passes_are_killed_and_started_again(tmp_path):
    "In mid-epoch, with BatchNorm and dropout."
    recipe, data = Recipe(**RECIPE, accumulate=2, log_gradients=True), tiny.data()
    make = lambda: build(num_classes=3, **IMAGE, proj_drop_rate=.2)
    train(make(), tiny.data(), tmp_path/"whole", recipe)
    class Stopped(tiny.Colours):
        def __getitem__(self, i):
            if self.epoch == 1: raise RuntimeError("power cut")
            return super().__getitem__(i)
    data.train = Stopped(50)
    with pytest.raises(RuntimeError, match="power cut"): train(make(), data, tmp_path/"cut", recipe)
    train(make(), tiny.data(), tmp_path/"cut", recipe)
    for file in ("gradients.csv", "model.safetensors"):
        assert (tmp_path/"cut"/file).read_bytes() == (tmp_path/"whole"/file).read_bytes(), file

@pytest.mark.parametrize("reducer", ["evit", "dyvit"])
def test_checkpointing_changes_no_bit(reducer, tmp_path):
    "Blocks run twice, and draw the same both times; a run may go on with it or without."
    runs = []
    for on in (False, True):
        m, calls = build(reducer, num_classes=3, **IMAGE, proj_drop_rate=.2), []
        m.backbone.blocks[1].mlp.register_forward_pre_hook(lambda block, _: calls.append(block.training))
        train(m, tiny.data(), tmp_path/str(on), Recipe(**RECIPE | dict(epochs=1), checkpointing=on, log_gradients=True))
        runs.append(sum(calls))
        assert not m.backbone.grad_checkpointing
    assert runs[1] == 2 * runs[0]
    for file in ("gradients.csv", "model.safetensors"):
        assert (tmp_path/"True"/file).read_bytes() == (tmp_path/"False"/file).read_bytes(), file
    m = build(reducer, num_classes=3, **IMAGE, proj_drop_rate=.2)
    train(m, tiny.data(), tmp_path/"True", Recipe(**RECIPE | dict(epochs=1), log_gradients=True))

def test_a_model_that_cannot_run_its_blocks_again(tmp_path):
    m = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    with pytest.raises(ValueError, match="checkpointing=True needs a model with set_grad_checkpointing"):
        train(m, tiny.data(), tmp_path/"run", Recipe(**RECIPE, checkpointing=True))

def test_runs_from_before_are_the_same_runs(tmp_path):
    "A folder whose records do not know these names is still that of the defaults, and of no other values."
    recipe = Recipe(**RECIPE | dict(epochs=1))
    train(model(), tiny.data(), tmp_path, recipe)
    for file in ("parameters.json", "metrics.json"):
        old = json.loads((tmp_path/file).read_text())
        for name in ("accumulate", "checkpointing", "adapter", "adapter_rank", "trainable_params"): old.pop(name, None)
        (tmp_path/file).write_text(json.dumps(old))
    assert "adapter" not in train(model(), tiny.data(), tmp_path, recipe), "finished: only shown again"
    for other in (dict(adapter="freeze"), dict(accumulate=2), dict(adapter_rank=4)):
        with pytest.raises(ValueError, match=f"holds a run with {next(iter(other))} = "):
            train(model(), tiny.data(), tmp_path, Recipe(**RECIPE | dict(epochs=1), **other))

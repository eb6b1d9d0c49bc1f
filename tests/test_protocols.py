"The protocols on real files and small models: stopped anywhere they end with the same bits, and what counts is the average."
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

from helpers import tinted_noise

from clca import create_model, load_checkpoint
from clca.training import load_data, recipe_of, train
from clca.training.evaluation import predict
from clca.training.images import Images

SHORT = dict(epochs=4, batch_size=8, warmup_epochs=1., cooldown_epochs=0., precision="32-true")
SAME = ["epoch", "lr", "train_loss", "val_loss", "val_top1"]

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Three classes of noise, each with a tint: 30 images for training, 9 for validation, 9 for test."
    root = tmp_path_factory.mktemp("photos")
    for place, pixels in tinted_noise(root, lambda k: (20, 20), train=10, val=3, test=3): Image.fromarray(pixels).save(place)
    return root

def images(folder, recipe): return load_data("folder", str(folder), image_size=16, augmentation=recipe.augmentation)

def model(recipe, **more):
    torch.manual_seed(0)
    small = dict(image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=4, at=(1, 2), keep=.5)
    return create_model("vit_tiny_patch16_224", 3, **small, drop_path_rate=recipe.drop_path, **more)

@pytest.fixture(scope="module", params=["paper", "modern"])
def whole(request, folder, tmp_path_factory):
    "A run that nothing happened to, and its recipe."
    recipe = recipe_of(request.param, **SHORT, accumulate=2 if request.param == "modern" else 1)
    out = tmp_path_factory.mktemp("runs")/request.param
    train(model(recipe), images(folder, recipe), out, recipe)
    return out, recipe

@pytest.mark.parametrize("after, workers", [(8, 0), (23, 0), (24, 0), (41, 1), (71, 0)])
def test_stopped_anywhere_it_ends_with_the_same_bits(after, workers, whole, folder, tmp_path, monkeypatch):
    """The power goes after some images, 24 of which are an epoch; whatever was drawn before, the run goes on as the one
    that was left alone: order, augmentation, mixing, erasing, dropout, averages, passes of a step."""
    out, recipe = whole
    seen, get = [], Images.__getitem__
    def cut(self, i):
        if self.augmented: seen.append(i)
        if len(seen) > after: raise InterruptedError
        return get(self, i)
    monkeypatch.setattr(Images, "__getitem__", cut)
    monkeypatch.setattr("clca.training.loop.loader_speed", lambda *_: 1.) # which reads images, too
    with pytest.raises(InterruptedError): train(model(recipe), images(folder, recipe), tmp_path, recipe)
    monkeypatch.undo()
    assert (tmp_path/"last.ckpt").exists() == (after >= 24)
    other = recipe_of(**vars(recipe) | dict(workers=workers))
    train(model(recipe), images(folder, recipe), tmp_path, other)
    a, b = (load_file(place/"model.safetensors") for place in (out, tmp_path))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert pd.read_csv(tmp_path/"history.csv")[SAME].equals(pd.read_csv(out/"history.csv")[SAME])

def test_what_is_validated_is_what_is_saved(whole, folder):
    out, recipe = whole
    data, saved = images(folder, recipe), load_checkpoint(out)
    logits, labels = predict(saved, data.val)
    history = pd.read_csv(out/"history.csv")
    assert F.cross_entropy(logits, labels).item() == pytest.approx(history.val_loss.iloc[-1], abs=2e-6)
    assert history.lr.max() <= recipe.lr and history.lr.iloc[-1] >= recipe.min_lr > 0

def test_the_average_is_that_of_all_steps(folder, tmp_path, monkeypatch):
    "One update a step, with the weights after it; the model has the average in the end."
    recipe, steps = recipe_of("modern", **SHORT | dict(epochs=2), ema=.5), []
    update = ModelEmaV3.update
    def watched(self, model, step):
        steps.append((step, {name: value.detach().clone() for name, value in model.state_dict().items()}))
        update(self, model, step)
    monkeypatch.setattr(ModelEmaV3, "update", watched)
    trained = model(recipe)
    metrics = train(trained, images(folder, recipe), tmp_path, recipe)
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6] and trained.training
    name = "backbone.blocks.0.mlp.fc1.weight"
    mean = steps[0][1][name]
    for step, state in steps[1:]:
        decay = min(.5, 1 - step**(-2 / 3))
        mean = decay * mean + (1 - decay) * state[name]
    assert torch.allclose(trained.state_dict()[name], mean, atol=1e-7) and not torch.equal(mean, steps[-1][1][name])
    assert torch.equal(load_file(tmp_path/"model.safetensors")[name], trained.state_dict()[name])
    assert metrics["batchnorm_start"] > .9**6, "averaged statistics hold more of their beginning"

@pytest.mark.parametrize("part", ["augmentation", "mixup", "cutmix", "erasing", "ema", "layer_decay", "min_lr", "drop_path"])
def test_each_part_acts(part, folder, tmp_path):
    "One value of the modern protocol alone makes another training than none of them."
    values = dict(epochs=1, batch_size=8, lr=1e-2, warmup_epochs=0.)
    strong = dict(mixup=.8, cutmix=1., erasing=1., augmentation="rand", ema=.5, layer_decay=.5, min_lr=5e-3, drop_path=.5)
    losses = []
    for recipe in (recipe_of(**values), recipe_of(**values, **{part: strong[part]})):
        train(model(recipe), images(folder, recipe), out := tmp_path/str(len(losses)), recipe)
        losses.append(load_file(out/"model.safetensors")["backbone.blocks.0.mlp.fc1.weight"])
    assert not torch.equal(*losses)

@pytest.mark.parametrize("values, made, message", [
    (dict(drop_path=.1), {}, r"the recipe has drop_path = 0\.1 and the model 0: make the model with drop_path_rate=0\.1"),
    (dict(augmentation="rand"), {}, "augmentation = 'rand' and the training images 'weak': give load_data augmentation='rand'"),
    ({}, dict(augmentation="trivial"), "augmentation = 'weak' and the training images 'trivial'")])
def test_what_was_made_for_another_recipe_is_refused(values, made, message, folder, tmp_path):
    recipe = recipe_of(**SHORT, **values)
    with pytest.raises(ValueError, match=message):
        train(model(recipe_of()), load_data("folder", str(folder), image_size=16, **made), tmp_path/"run", recipe)
    assert not (tmp_path/"run").exists()

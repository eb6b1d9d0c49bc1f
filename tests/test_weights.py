"Weights of a local file, and a hub that is not there."
import json

import pytest
import timm
import torch
from models import SMALL, noise, perturbed
from timm.models import save_for_hf

import clca
import clca.weights

TIMM = dict(img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=4)
OPTIONS = {name: value for name, value in SMALL.items() if name not in ("image_size",)}

@pytest.mark.parametrize("head", ["cla", "linear"])
def test_every_form_is_read(head, tmp_path):
    from safetensors.torch import save_file
    given = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=3, **TIMM))
    state = given.state_dict()
    save_file(state, tmp_path/"vit.safetensors")
    torch.save(state, tmp_path/"vit.pth")
    torch.save(dict(model=state, epoch=3), tmp_path/"mae.pth")
    save_for_hf(given, str(tmp_path/"folder"))
    for path in ("vit.safetensors", "vit.pth", "mae.pth", "folder"):
        model = clca.create_model("vit_tiny_patch16_224", 5, head=head, weights=str(tmp_path/path), **SMALL)
        assert torch.equal(model.blocks[3].mlp.fc1.weight, given.blocks[3].mlp.fc1.weight), path
        assert model.spec.weights and model(noise()).shape == (2, 5)
    larger = clca.create_model("vit_tiny_patch16_224", 5, weights=str(tmp_path/"vit.pth"), image_size=48, **OPTIONS)
    assert larger(noise(size=(48, 48))).shape == (2, 5)

def test_the_file_is_not_needed_to_load_a_model_again(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=5, **TIMM).state_dict(), tmp_path/"vit.pth")
    model = clca.create_model("vit_tiny_patch16_224", 5, weights=str(tmp_path/"vit.pth"), **SMALL).eval()
    model.save_pretrained(tmp_path/"saved")
    (tmp_path/"vit.pth").unlink()
    assert torch.equal(clca.load_checkpoint(tmp_path/"saved")(noise()), model(noise()))
    assert "vit.pth" not in (tmp_path/"saved"/"config.json").read_text()

@pytest.mark.parametrize("spoil,says", [
    (lambda s: s | {"odd": torch.zeros(1)}, "odd is \\[1\\] in the file and missing in the model"),
    (lambda s: {k: v for k, v in s.items() if k != "norm.bias"}, "norm.bias is missing in the file"),
    (lambda s: s | {"norm.bias": torch.zeros(7)}, "norm.bias is \\[7\\] in the file and \\[32\\]"),
    (lambda s: {f"backbone.{k}": v for k, v in s.items()}, "load it by clca.load_checkpoint")])
def test_the_first_difference_is_named(spoil, says, tmp_path):
    torch.save(spoil(timm.create_model("vit_tiny_patch16_224", num_classes=5, **TIMM).state_dict()), tmp_path/"vit.pth")
    with pytest.raises(ValueError, match=says):
        clca.create_model("vit_tiny_patch16_224", 5, weights=str(tmp_path/"vit.pth"), **SMALL)

def test_a_hub_that_is_not_there(monkeypatch):
    "Said before a backbone is built, by the name of the file and what to do with it."
    def nobody(*args, **kwargs): raise OSError("no route")
    monkeypatch.setattr(clca.weights, "get_hf_file_metadata", nobody)
    monkeypatch.setattr(clca.weights, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(timm, "create_model", nobody)
    with pytest.raises(ConnectionError, match=r"huggingface.*model.safetensors.*weights="):
        clca.create_model("vit_tiny_patch16_224", 5, pretrained=True)

def test_weights_that_are_kept_need_no_hub(monkeypatch):
    def nobody(*args, **kwargs): raise OSError("no route")
    monkeypatch.setattr(clca.weights, "get_hf_file_metadata", nobody)
    monkeypatch.setattr(clca.weights, "try_to_load_from_cache", lambda *args: "/somewhere/model.safetensors")
    clca.weights.check_reachable("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="two starts"): clca.Spec("vit", 2, pretrained=True, weights="vit.pth")

def test_a_folder_says_how_images_are_prepared(tmp_path):
    from clca.tools.preparation import choose_preparation
    given = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TIMM)
    save_for_hf(given, str(tmp_path))
    config = json.loads((tmp_path/"config.json").read_text())
    config["pretrained_cfg"]["mean"] = [.1, .2, .3]
    (tmp_path/"config.json").write_text(json.dumps(config))
    model = clca.create_model("vit_tiny_patch16_224", 5, weights=str(tmp_path), **SMALL)
    assert choose_preparation(model).mean == (.1, .2, .3) and tuple(model.pretrained_cfg["mean"]) == (.1, .2, .3)

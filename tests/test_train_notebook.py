"The train notebook stops at a bad value with one sentence, before it reads data or makes a folder."
import json
import re

import pytest
from helpers import ROOT, code_cells, is_tagged

from clca.training.protocols import PROTOCOLS

PATH = ROOT/"nbs"/"train.ipynb"

def start(values: str, out) -> dict:
    "Run the cells up to the data as papermill does, with `values` injected; the names that there are then."
    names = dict(In=[])
    for cell in code_cells(PATH):
        if "load_data(" in cell.source: return names
        injected = [f"# Parameters\nout = {str(out)!r}\n{values}\n"] if is_tagged(cell) else []
        for source in [cell.source, *injected]:
            names["In"].append(source)
            exec(re.sub(r"^[%#].*$", "", source, flags=re.M), names)
    raise AssertionError("the notebook loads no data")

@pytest.mark.parametrize(
    "values, message",
    [
        ("kep = 0.1", "'kep' is no parameter of this notebook; did you mean 'keep'"),
        ('keep = "a lot"', r"keep = 'a lot' does not fit its type"),
        ("keep = 0", "keep=0.0 is not a keep rate: use a number above 0 and up to 1"),
        ("keep = 1.5", "keep=1.5 is not a keep rate"),
        ("keep = [0.5, 0.5]", r"keep has 2 rates for 3 stages"),
        ("at = [3, 12]", r"at=\[3, 12\] names block 12, but this model has blocks 0 to 11"),
        ("image_size = 60", "image size 60x60 is not a multiple of the patch size 8x8"),
        ('reducer = "evitt"', "unknown reducer 'evitt': did you mean 'evit'"),
        ('head = "cl"', "unknown head 'cl': did you mean 'cla'"),
        (
            'backbone = "vit_tini_patch16_224"',
            "unknown backbone 'vit_tini_patch16_224': did you mean 'vit_tiny_patch16_224'",
        ),
        ("pretrained = True", "pretrained weights do not fit a backbone with another embed_dim: add -y"),
        ("seed = -1", "seed = -1 is out of range: it must be from 0"),
        ('lr = float("inf")', "lr = inf is out of range: it must be above 0 and finite"),
        ("num_clr = -1", "num_clr=-1 must be 0 or more"),
        ('backbone = "resnet50"', "'resnet50' is not a flat ViT"),
        ('backbone_kwargs = {"reducer": "topk"}', "backbone_kwargs must not set reducer"),
        ('backbone_kwargs = {"patchsize": 8}', "'vit_tiny_patch16_224' cannot be built with .*patchsize=8"),
        ('teacher = "runs/none"', "runs/none does not exist: give"),
        ("epochs = 0", "epochs = 0 is out of range: it must be at least 1"),
        ('protocol = "moderm"', "unknown protocol 'moderm': did you mean 'modern'"),
        ('protocol = "modern"\nbatch_size = 9', "batch_size = 9 cannot be mixed: mixup and cutmix take two images"),
        ('protocol = "paper"\nepochs = 5', "cooldown_epochs = 5.0 is out of range: it must be from 0 to the epochs after"),
        ('augmentation = "strong"', "augmentation = 'strong' is out of range: it must be one of weak, trivial, rand"),
        ("lr_search = [0.001]", r"lr_search = \[0.001\] is out of range: it must be two or more different rates"),
        ("lr_search = [0.001, 0.01]\nlr = 0.1", "lr = 0.1 and lr_search = .* are both given: leave out lr"),
        ("layer_decay = 1.5", "layer_decay = 1.5 is out of range: it must be above 0, up to 1"),
        (
            'protocol = "modern"\nbackbone_kwargs = {"drop_path_rate": 0.2}',
            "backbone_kwargs has drop_path_rate = 0.2 and the protocol drop_path = 0.1: leave it out",
        ),
        ('precision = "fp16"', "precision = 'fp16' is out of range: it must be one of auto, 32-true"),
    ],
    ids=lambda v: v.split(" = ")[0] if " = " in v else "",
)
def test_bad_values(values, message, tmp_path, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as caught:
        start(values, tmp_path/"run")
    assert "\n" not in str(caught.value) and not (tmp_path/"run").exists()

def test_good_values(tmp_path, monkeypatch):
    "What papermill gives as text becomes what the annotation says; the folder is named when it is not given."
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path))
    names = start('keep = "[0.7, 0.5, 0.25]"\nlr = 1\nat = "[2, 4, 6]"\nout = ""', "")
    assert names["spec"].keep == (.7, .5, .25) and names["recipe"].lr == 1. and names["spec"].at == (2, 4, 6)
    folder = names["folder"]
    assert folder.parent == tmp_path/"runs" and folder.name.startswith("typefaces-evit-") and not folder.exists()

def test_a_folder_of_another_run_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    (tmp_path/"parameters.json").write_text('{"keep": 0.1}')
    with pytest.raises(ValueError, match="holds a run with keep = 0.1, not 0.5"): start("keep = 0.5", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["parameters.json"]

@pytest.mark.parametrize("mark", ["1", "0"])
def test_the_mark_of_a_test_changes_no_run(tmp_path, monkeypatch, mark):
    "`IN_TEST` stayed in the environment: what papermill was given holds, and what it was not given has its default."
    monkeypatch.setenv("IN_TEST", mark)
    names = start("epochs = 7", tmp_path/"run")
    assert names["recipe"].epochs == 7 and names["batch_size"] == 32 and names["folder"] == tmp_path/"run"

@pytest.mark.parametrize("name", ["typefaces", "paper", "modern"])
def test_what_is_not_given_the_protocol_says(name, tmp_path, monkeypatch):
    "And what is given holds; recorded is what is done. The rate at which blocks are skipped goes to the model."
    monkeypatch.delenv("IN_TEST", raising=False)
    names = start(f"protocol = {name!r}\nweight_decay = 0.2\nepochs = 20", tmp_path/"run")
    table = PROTOCOLS[name] | dict(weight_decay=.2, epochs=20)
    assert vars(names["recipe"]).items() >= {k: v for k, v in table.items() if k != "preparation"}.items()
    assert table.items() <= names["settings"].items() and names["epochs"] == 20
    assert dict(names["spec"].timm_kwargs).get("drop_path_rate", 0) == table["drop_path"]
    assert names["settings"]["backbone_kwargs"] == dict(names["spec"].timm_kwargs)

def test_folders_have_the_names_that_they_had(tmp_path, monkeypatch):
    "Before there were protocols: a run of the default goes on in its folder."
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path))
    assert start("", "")["folder"].name == "typefaces-evit-keep0.1-seed0-91ac13a0"
    assert start("epochs = 3", "")["folder"].name != start("", "")["folder"].name

def test_a_run_that_has_begun_needs_no_other_weights(tmp_path, monkeypatch):
    "It has its own by now; what the folder of the others said of images is what the run did. From nothing, they are missed."
    monkeypatch.delenv("IN_TEST", raising=False)
    (weights := tmp_path/"deit").mkdir()
    (weights/"model.safetensors").write_text("bytes")
    (weights/"config.json").write_text('{"pretrained_cfg": {"crop_pct": 0.5}}')
    given = f"weights = {str(weights)!r}"
    settings = start(given, out := tmp_path/"run")["settings"]
    assert len(settings["weights_hash"]) == 16 and settings["preparation_used"]["crop_pct"] == 0.5
    for path in list(weights.iterdir()): path.unlink()
    with pytest.raises(FileNotFoundError, match="is a folder without model.safetensors"): start(given, out)
    out.mkdir()
    known = {k: v for k, v in settings.items() if k != "out"}
    (out/"parameters.json").write_text(json.dumps(known))
    (out/"last.ckpt").write_text("")
    names = start(given, out)
    assert names["start"].weights is None and names["spec"].weights == str(weights)
    assert names["settings"]["preparation_used"]["crop_pct"] == 0.5

"A finished run is asked: what comes out is what the run itself said of its test images, however they are given."
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers import tinted_noise

from clca import create_model, trace
from clca.tools.tracing import survival
from clca.training import Predictor, Recipe, load_data, predictor as room, train

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Noise with a tint, of many sizes, one turned by EXIF and one with an alpha channel."
    root = tmp_path_factory.mktemp("photos")
    for place, pixels in tinted_noise(root, lambda k: (20 + 9*k, 31), train=8, val=2, test=3):
        image, exif = Image.fromarray(pixels), Image.Exif()
        if place.stem == "1": exif[0x112] = 6
        if place.stem == "2": image.putalpha(Image.fromarray(pixels[..., 0]))
        image.save(place, exif=exif)
    return root

@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    "A finished run with a preparation of its own."
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", 3, image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=4, at=(1, 2), keep=.5)
    data = load_data("folder", str(photos), image_size=16)
    for images in (data.train, data.val, data.test): assert images.preparation.crop_pct == .875
    train(model, data, out := tmp_path_factory.mktemp("runs")/"run", Recipe(epochs=2, batch_size=8, lr=3e-3, logger="none"))
    return out

def said(run) -> pd.DataFrame: return pd.read_csv(run/"predictions.csv")

@pytest.mark.parametrize("workers", [0, 1])
def test_answers_are_those_of_the_run(run, photos, workers):
    "Of paths, images and arrays alike: the same answers, the same shares."
    truth = said(run)
    predictor = Predictor.load(run, workers=workers, batch_size=4, progress=False)
    files = truth.path.tolist()
    upright = [np.array(room.as_picture(path)) for path in files]
    for given in (files, [Path(path) for path in files], [Image.open(path) for path in files], upright):
        table = predictor(given, top=1)
        assert table.answer_1.tolist() == truth.prediction.tolist()
        assert table.share_1.tolist() == pytest.approx(truth.share.tolist(), abs=6e-5)
    below = predictor(photos/"test")
    assert below.path.tolist() == sorted(files) and list(below)[1:] == [f"{name}_{k}" for k in (1, 2, 3) for name in ("answer", "share")]
    assert below[["share_1", "share_2", "share_3"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=2e-4)

def test_tokens_that_were_looked_at(run):
    predictor, files = Predictor.load(run, progress=False), said(run).path.tolist()
    table = predictor(files, tokens=True)
    assert table.drop(columns="tokens").equals(predictor(files))
    traced = trace(predictor.model, torch.stack([image for image, _ in predictor.images(files)]))
    for stage, maps in enumerate(survival(traced, (4, 4))):
        assert np.array_equal(np.stack([each[stage] for each in table.tokens]), maps.numpy())
    assert {each.shape for each in table.tokens} == {(2, 4, 4)}
    plain = create_model("vit_tiny_patch16_224", 3, reducer="none", cache=False, image_size=16, patch_size=4, embed_dim=16, num_heads=2)
    with pytest.raises(ValueError, match="tokens=True is for a model that reduces tokens"):
        Predictor(plain, "abc", progress=False)(files, tokens=True)

def test_every_file_of_a_folder_is_accounted_for(run, photos, tmp_path):
    "Also in folders within folders; a file that is named must be good."
    (tmp_path/"in"/"deep").mkdir(parents=True)
    good = tmp_path/"in"/"deep"/"a.png"
    good.write_bytes((photos/"test"/"red"/"0.png").read_bytes())
    (tmp_path/"notes.txt").write_text("x"); (tmp_path/".hidden.png").write_text("x")
    (tmp_path/"old").mkdir(); (tmp_path/"old"/"prediction.json").write_text("{}")
    predictor = Predictor.load(run, progress=False)
    with pytest.warns(UserWarning, match="3 of 4 files .* are left out, the first is .*: attrs"): table = predictor(tmp_path)
    assert table.path.tolist() == [str(good)] and len(table.attrs["left_out"]) == 3
    assert table.attrs["left_out"][str(tmp_path/"notes.txt")] == "not an image"
    with pytest.warns(UserWarning, match="3 of 4 files"): again = predictor([good, tmp_path])
    assert again.path.tolist() == [str(good)] * 2 and again.attrs == table.attrs
    with warnings.catch_warnings(action="error"): predictor(good.parent)
    with pytest.raises(ValueError, match="notes.txt cannot be read as an image: not an image"):
        predictor([good, tmp_path/"notes.txt"])
    with pytest.raises(ValueError, match=r"old holds no file that can be read as an image: 1 are left out, the first is .*old.prediction.json \("):
        predictor(tmp_path/"old")
    (tmp_path/"void").mkdir()
    with pytest.raises(ValueError, match="void holds no file that can be read as an image$"): predictor(tmp_path/"void")
    with pytest.raises(FileNotFoundError, match="gone.png does not exist"): predictor(tmp_path/"gone.png")

@pytest.mark.parametrize("how, message", [
    (dict(batch_size=0), "batch_size = 0 is out of range"), (dict(workers=-1), "workers = -1 is out of range"),
    (dict(device="gpu"), "unknown device 'gpu'"), (dict(device=None), "unknown device 'None'"),
    (dict(device="auto:1"), "no such device here"), (dict(device=f"cuda:{torch.cuda.device_count()}"), "no such device here")])
def test_options_that_cannot_be(run, how, message):
    with pytest.raises(ValueError, match=message): Predictor.load(run, **how)

@pytest.mark.parametrize("names", [["red"], ["red", "green", "blue", "grey"]])
def test_names_that_are_not_one_for_each_class(run, names):
    "Whoever asked would be told a wrong class."
    model = Predictor.load(run).model
    with pytest.raises(ValueError, match=f"there are {len(names)} names of classes, and the model has 3"): Predictor(model, names)

def test_top_that_cannot_be(run):
    for top in 0, 1.5, "3":
        with pytest.raises(ValueError, match=f"top = {top!r} is out of range"): Predictor.load(run)(said(run).path[0], top=top)
    assert len(Predictor.load(run)(said(run).path[0], top=9).columns) == 1 + 2*3, "there are three classes"

def test_a_model_whose_answers_are_no_numbers(run):
    predictor = Predictor.load(run, progress=False)
    with torch.no_grad(): next(predictor.model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="answers are no numbers, for .*png and perhaps others"): predictor(said(run).path.tolist())

def test_to_the_hub_and_back(run, tmp_path, monkeypatch):
    "What is uploaded is a folder that answers as the run does; what cannot be fetched is one sentence."
    hub = tmp_path/"hub"
    class Hub:
        def create_repo(self, name, exist_ok, token): assert exist_ok and name == "me/leaves"
        def upload_folder(self, repo_id, folder_path, **more): return os.rename(folder_path, hub) or os.mkdir(folder_path) or repo_id
    monkeypatch.setattr(room, "HfApi", Hub)
    monkeypatch.setattr(room, "snapshot_download", lambda name, allow_patterns: hub)
    predictor, files = Predictor.load(run, progress=False), said(run).path.tolist()
    assert predictor.push_to_hub("me/leaves") == "me/leaves" and {p.name for p in hub.iterdir()} == {"config.json", "model.safetensors"}
    back = Predictor.load("hf-hub:me/leaves", progress=False)
    assert back(files).equals(predictor(files)) and back.classes == json.loads((run/"config.json").read_text())["classes"]
    def none(*names, **options): raise OSError("no route\nto host")
    monkeypatch.setattr(Hub, "create_repo", none)
    with pytest.raises(ConnectionError, match="me/leaves cannot be put on the hub .OSError no route to host.: log in by"):
        predictor.push_to_hub("me/leaves")
    monkeypatch.setattr(room, "snapshot_download", none)
    with pytest.raises(ConnectionError, match="hf-hub:me/leaves cannot be fetched .OSError no route to host.: fetch config.json"):
        Predictor.load("hf-hub:me/leaves")

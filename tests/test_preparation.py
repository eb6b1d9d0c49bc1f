"Training, a run's record, prediction, an exported file and timm say the same of how images are prepared."
import json
from dataclasses import replace

import numpy as np, pytest, timm, torch
from helpers import ROOT, code_cells
from models import SMALL, build
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from clca import create_model, export, load_checkpoint
from clca.lab.plans import PRESETS, all_runs, check_runs
from clca.tools import exporting
from clca.tools.checkpoints import to_reference_state
from clca.tools.preparation import Preparation, changeable_values, choose_preparation, preparation_of, record_of, set_preparation
from clca.training import load_data, train
from clca.training.images import Images, hold, read_image
from clca.training.protocols import PROTOCOLS
from clca.training.recipe import Recipe
from clca.training.records import check_folder, folder_name
from test_train_notebook import start

OTHER = dict(mean=[.5, .4, .3], std=[.5, .25, .2], crop_pct=.8, interpolation="bilinear")
SHALLOW = SMALL | dict(depth=2, at=(0,))
# an image that is no square and larger than any size here
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))

@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"root"))
    monkeypatch.delenv("IN_TEST", raising=False)

@pytest.fixture
def folder(tmp_path):
    "Two classes of a few photographs."
    for name in "ab":
        (tmp_path/"photos"/name).mkdir(parents=True)
        for i in range(6): PHOTO.rotate(10*i + (name == "b")).save(tmp_path/"photos"/name/f"{i}.png")
    return tmp_path/"photos"

def timm_sees(model, path) -> torch.Tensor:
    "An image as timm's own recipe prepares it for a model."
    return create_transform(**resolve_model_data_config(model), is_training=False)(read_image(path))

def predict_notebook(run, images) -> dict:
    "The names of the predict notebook when it has found its photographs."
    names = dict(In=[], display=print)
    for cell in code_cells(ROOT/"nbs"/"predict.ipynb"):
        source = "\n".join(line for line in cell.source.splitlines() if line[:1] not in "%#")
        exec(source, names)
        if "parameters" in cell.metadata.get("tags", []): names |= dict(model=str(run), images=str(images), out=str(run/"answers"))
        if "photos" in names: return names

@pytest.mark.parametrize("size, values", [((32, 32), {}), ((32, 48), OTHER)], ids=["default", "other"])
def test_all_say_the_same(tmp_path, folder, size, values):
    prepared = Preparation(size, **values)
    data = load_data("folder", str(folder), image_size=size, preparation=prepared)
    model = create_model("vit_tiny_patch16_224", 2, **SHALLOW | dict(image_size=size))
    train(model, data, tmp_path/"run", Recipe(epochs=1, batch_size=4))
    path, want = data.test.paths[0], data.test[0][0]
    again = load_checkpoint(tmp_path/"run")
    for each in (model, again):
        assert preparation_of(each) == prepared and (timm_sees(each, path) - want).abs().max() < 1e-6
        assert each.backbone.pretrained_cfg["input_size"] == (3, 224, 224), "timm's own dictionary is left alone"
    config = json.loads((tmp_path/"run"/"config.json").read_text())
    assert record_of(prepared).items() <= config.items()
    photos = predict_notebook(tmp_path/"run", folder)["photos"]
    assert torch.equal(photos[photos.paths.index(path)][0], want)
    file = export(tmp_path/"run", tmp_path/"m.pt2")
    about = json.loads(file.with_suffix(".json").read_text())
    assert record_of(prepared) | dict(image_size=list(size), resize=list(prepared.resize)) == {
        name: about[name] for name in [*record_of(prepared), "resize"]}
    assert np.abs(lines_of(file)["load"](path) - want.numpy()).max() < 1e-5

def lines_of(file) -> dict:
    "The names of the lines beside an exported file, up to where they ask it."
    lines = file.with_suffix(".md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(lines.split("program = ")[0].replace(f"{file.stem}.json", str(file.with_suffix(".json"))), names)
    return names

def test_a_fresh_model_says_what_timm_knows():
    "As its backbone does, but for its own size, channels and classes."
    model = create_model("vit_tiny_patch16_384", 5, **SMALL | dict(image_size=(32, 48), in_chans=1))
    right = resolve_model_data_config(model.backbone) | dict(input_size=(1, 32, 48))
    assert resolve_model_data_config(model) == right and model.pretrained_cfg["num_classes"] == 5
    assert preparation_of(model) == Preparation((32, 48), [.5]*3, [.5]*3, 1.)
    set_preparation(model, Preparation((32, 48)))
    assert resolve_model_data_config(model)["input_size"] == (1, 32, 48)

def test_a_set_in_memory_and_its_crops():
    "A rectangle is held as it is, and cut at random within the resized image."
    prepared = Preparation((16, 24), crop_pct=.8)
    data = load_data("typefaces", image_size=(16, 24), images_per_class=1, preparation=prepared)
    assert data.train.memory.shape[1:] == (3, 20, 30) and data.train[0][0].shape == data.test[0][0].shape == (3, 16, 24)
    with pytest.raises(ValueError, match=r"image_size is 16 and that of the preparation \(16, 24\): make them agree"):
        load_data("typefaces", image_size=16, images_per_class=1, preparation=prepared)
    some = Images(data.test.paths[:2], [0, 0], prepared)
    read = some[0][0]
    hold([some])
    assert torch.equal(some[0][0], read) and torch.equal(read, data.test[0][0])

# Whose values --------------------------------------------------------------------------------------------------------

@pytest.fixture
def weights(tmp_path):
    "A file of weights that want pixels between -1 and 1, in place of a download."
    for classes in (2, 1000):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=classes)
        torch.save(vit.state_dict(), tmp_path/f"{classes}.pth")
    return tmp_path

def chosen(values: str, out) -> tuple[Preparation, dict]:
    "What the train notebook decides before it reads data, and what it would record."
    names = start(f"image_size = 32\n{values}", out)
    return preparation_of(names["trial"]), names["settings"]

def test_the_weights_decide(tmp_path, weights):
    "Downloaded or local; from nothing it is the default; and single values may be given."
    local = dict(depth=2, checkpoint_path=str(weights/"2.pth"))
    overlay = dict(pretrained_cfg_overlay=dict(file=str(weights/"1000.pth")))
    theirs, out = Preparation(32, [.5]*3, [.5]*3, .9), tmp_path/"run"
    assert chosen("", out)[0] == Preparation(32)
    assert chosen(f"at = [0]\nbackbone_kwargs = {local}", out)[0] == theirs
    assert chosen(f"pretrained = True\nbackbone_kwargs = {overlay}", out)[0] == theirs
    assert chosen(f"pretrained = True\nbackbone_kwargs = {overlay}\npreparation = dict(crop_pct=1)", out)[0] == \
        replace(theirs, crop_pct=1)
    prepared, settings = chosen(f"preparation = {OTHER}", out)
    assert prepared == Preparation(32, **OTHER) and settings["preparation_used"] == settings["preparation"] == OTHER

@pytest.mark.parametrize("values, message", [
    ("dict(mena=[.5]*3)", "preparation has no value 'mena' that can be changed: it has mean, std, crop_pct"),
    ("dict(mean=.5)", "mean=0.5 must be three numbers"),
    ("dict(mean=['a', 'b', 'c'])", "must be three numbers"),
    ("dict(std=[1, 1, -1])", r"std=\[1, 1, -1\] must be three positive numbers"),
    ("dict(std=[1, 1, float('nan')])", "must be three positive numbers"),
    ("dict(crop_pct=0)", "crop_pct=0 must be a share"),
    ("dict(interpolation='area')", "interpolation='area' is not one that timm knows"),
    ("dict(image_size=64)", "has no value 'image_size' that can be changed")])
def test_bad_values(tmp_path, values, message):
    with pytest.raises(ValueError, match=message) as caught: start(f"preparation = {values}", tmp_path/"run")
    assert "\n" not in str(caught.value) and not (tmp_path/"run").exists()
    with pytest.raises(ValueError, match=message): export(build(), tmp_path/"m.pt2", preparation=eval(values))

def test_export_takes_other_values(tmp_path, monkeypatch):
    for name in ("program", "difference"): monkeypatch.setattr(exporting, name, lambda *_: 0.)
    monkeypatch.setitem(exporting.WRITERS, ".pt2", lambda graph, path: path.write_text(""))
    model = build(depth=2, at=(0,))
    about = json.loads(export(model, tmp_path/"m.pt2", preparation=OTHER).with_suffix(".json").read_text())
    assert OTHER.items() <= about.items() and about["resize"] == [40, 40] and about["difference"] == 0
    assert preparation_of(model).crop_pct == .9, "the model is left alone"

def test_published_weights_had_the_default(tmp_path):
    "Their authors normalised by ImageNet's values, whatever the weights were trained with."
    args = dict(model="evit_vit_tiny_patch16_224", keep_rate=[.5], reduction_loc=[1, 2], ifa_head=True, clc=True)
    weights = to_reference_state(build(depth=12, embed_dim=24, num_heads=3))
    torch.save(dict(config=args, model={n: t.float() for n, t in weights.items()}), tmp_path/"m.pth")
    assert preparation_of(load_checkpoint(tmp_path/"m.pth")) == Preparation(32)
    assert PRESETS["paper"]["protocol"] == "paper"
    assert choose_preparation(build(), PROTOCOLS["paper"]["preparation"]) == Preparation(32)

# Folders -------------------------------------------------------------------------------------------------------------

def test_a_run_from_before(tmp_path, folder):
    "It has no crop and no interpolation in its record: it is the same run, and was prepared by default."
    def go(**values):
        data = load_data("folder", str(folder), image_size=32, preparation=Preparation(32, **values))
        torch.manual_seed(0)
        model = create_model("vit_tiny_patch16_224", 2, **SHALLOW)
        return model, train(model, data, tmp_path/"run", Recipe(epochs=1, batch_size=4))
    _, metrics = go()
    note, config = (tmp_path/"run"/name for name in ("parameters.json", "config.json"))
    old = json.loads(note.read_text())
    assert old.pop("preparation_used") and json.loads(metrics["preparation_used"])["crop_pct"] == .875
    note.write_text(json.dumps(old))
    said = json.loads(config.read_text())
    single = torch.tensor(said["mean"]).tolist() # as runs wrote it then
    config.write_text(json.dumps({k: v for k, v in said.items() if k not in ("crop_pct", "interpolation")} | dict(mean=single)))
    model, again = go()
    assert again == metrics and preparation_of(model) == preparation_of(load_checkpoint(tmp_path/"run")) == Preparation(32)
    with pytest.raises(ValueError, match="holds a run with preparation_used = .*0.875.*, not .*0.8"): go(crop_pct=.8)
    with pytest.raises(ValueError, match="holds a run with preparation_used = .*0.485.*, not .*0.5"):
        check_folder(tmp_path/"run", dict(preparation_used=changeable_values(Preparation(32, [.5]*3))), some=True)

def test_names_of_folders_stay():
    "The default gives the name that a run had before there was this parameter; other values give another."
    before = dict(dataset="typefaces", seed=0)
    def name(**values):
        return folder_name(before | dict(preparation=values, preparation_used=changeable_values(Preparation(32, **values))))
    assert name() == name(crop_pct=.875) == folder_name(before) != name(crop_pct=.8)

def test_a_damaged_record(tmp_path, folder):
    data = load_data("folder", str(folder), image_size=32)
    train(create_model("vit_tiny_patch16_224", 2, **SHALLOW), data, tmp_path/"run", Recipe(epochs=1, batch_size=4))
    config = tmp_path/"run"/"config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(std=[0, 1, 1])))
    with pytest.raises(ValueError, match=r"config\.json does not say how images are prepared: std=\[0, 1, 1\]"):
        load_checkpoint(tmp_path/"run")

def test_a_sweep_checks_and_passes_it_on():
    runs = all_runs(keep=[.5], preparation=OTHER, image_size=32, images_per_class=1)
    assert [run["preparation"] for run in runs] == [OTHER]
    check_runs(runs, ROOT/"nbs"/"train.ipynb")
    with pytest.raises(ValueError, match="crop_pct=2 must be a share"):
        check_runs([runs[0] | dict(preparation=dict(crop_pct=2))], ROOT/"nbs"/"train.ipynb")

def test_a_teacher_sees_the_same_colours(tmp_path, folder):
    build = dict(SMALL, backbone="vit_tiny_patch16_224", num_classes=2)
    data = load_data("folder", str(folder), image_size=32)
    train(create_model(**build, reducer="none"), data, tmp_path/"teacher", Recipe(epochs=1, batch_size=4))
    other = load_data("folder", str(folder), image_size=32, preparation=Preparation(32, [.5]*3))
    taught = Recipe(epochs=1, batch_size=4, teacher=str(tmp_path/"teacher"))
    with pytest.raises(ValueError, match=r"mean is \(0\.485, .* in the teacher and \(0\.5, 0\.5, 0\.5\) in the student"):
        train(create_model(**build, reducer="dyvit"), other, tmp_path/"student", taught)

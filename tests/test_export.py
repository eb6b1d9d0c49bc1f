"Exported files answer as the model does, whatever the batch."
import json, runpy, shutil, subprocess, sys
from contextlib import contextmanager
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import save_file
from clca.tools import exporting
from clca.tools.exporting import difference, export, program, run_file
from clca.model import create_model
from clca.reducers import names
from clca.reducers.ats import ats
from clca.tools.preparation import preparation_of
from clca.training.images import Images
from helpers import ROOT
from models import BACKBONES, PLAIN, SMALL, build, noise, perturbed
from test_reading import grey_tiff

CASES = [("vit", r, {}) for r in names() if r != "none"] + [("vit", "none", PLAIN), ("rope", "tome", {})]
SHALLOW = dict(depth=2, at=(0,))

@pytest.mark.parametrize("backbone,reducer,kw", CASES,
                         ids=lambda v: v if isinstance(v, str) else "-".join(v) or "clca")
def test_onnx(tmp_path, backbone, reducer, kw):
    pytest.importorskip("onnxruntime", reason="pip install clca[export]")
    model = build(reducer, BACKBONES[backbone], **kw)
    path = export(model, tmp_path / "m.onnx")
    for n in (1, 5):
        x = noise(n, seed=n)
        with torch.no_grad(): assert (run_file(path, x) - model(x)).abs().max() < 1e-4
    assert json.loads((tmp_path / "m.json").read_text())["difference"] < 1e-4

@pytest.mark.parametrize("backbone,reducer", [("rope", "dpcknn"), ("vit", "ats")])
def test_program(tmp_path, backbone, reducer):
    model = build(reducer, BACKBONES[backbone])
    path = export(model, tmp_path / "m.pt2", classes=list("abcdefg"))
    x = noise(5)
    with torch.no_grad(): assert (run_file(path, x) - model(x)).abs().max() < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.md", "m.pt2"]
    Image.new("RGB", (40, 60), "red").save(tmp_path / "photo.png")
    (tmp_path / "run.py").write_text((tmp_path / "m.md").read_text().split("```python\n")[1].split("```")[0])
    out = subprocess.run([sys.executable, "run.py", "photo.png", "photo.png"], cwd=tmp_path, capture_output=True,
                         text=True)
    assert out.returncode == 0 and out.stdout.count("photo.png") == 2, out.stderr

def test_a_run_folder(tmp_path):
    run = tmp_path / "run"; run.mkdir()
    spec = dict(SMALL | SHALLOW, backbone="deit_tiny_patch16_224", num_classes=2, reducer="topk")
    save_file(perturbed(create_model(**spec)).state_dict(), run / "model.safetensors")
    (run / "config.json").write_text(json.dumps(dict(model=spec, classes=["cat", "dog"], mean=[.1] * 3, std=[.2] * 3)))
    about = json.loads(export(run, tmp_path / "out" / "m.pt2").with_suffix(".json").read_text())
    want = dict(classes=["cat", "dog"], mean=[.1] * 3, std=[.2] * 3, image_size=[32, 32])
    assert {n: about[n] for n in want} == want

def test_the_model_is_left_alone(tmp_path):
    model = build(**SHALLOW).double().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    program(model)
    assert model.training
    for n, t in model.state_dict().items(): assert torch.equal(before[n], t) and t.dtype == before[n].dtype

def test_a_wrong_file_is_not_kept(tmp_path, monkeypatch):
    other = build("none", **SHALLOW)
    monkeypatch.setitem(exporting.WRITERS, ".pt2", lambda graph, path: torch.export.save(program(other), path))
    with pytest.raises(RuntimeError, match="differs from the model"): export(build(**SHALLOW), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())

def test_what_cannot_be_exported_is_said_first(tmp_path):
    broken = build(**SHALLOW)
    with torch.no_grad(): broken.backbone.blocks[0].norm1.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"values in backbone.blocks.0.norm1.weight that are no finite numbers"):
        export(broken, tmp_path/"m.pt2")
    (tmp_path/"file").write_text("x")
    with pytest.raises(OSError, match="file.m.pt2 cannot be written .*: name another place"):
        export(build(**SHALLOW), tmp_path/"file"/"m.pt2")

def test_weights_beside_the_file(tmp_path, monkeypatch):
    "Large weights go into a second file, that the first one names; a failed export leaves an earlier one whole."
    pytest.importorskip("onnxruntime", reason="pip install clca[export]")
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    model, x = build(**SHALLOW), noise(3)
    export(model, tmp_path / "a" / "m.onnx")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert sorted(before) == ["m.json", "m.md", "m.onnx", "m.onnx.data"] and b"`m.onnx.data`" in before["m.md"]
    with monkeypatch.context() as m:
        m.setattr(exporting, "difference", lambda *_: float("nan"))
        with pytest.raises(RuntimeError, match="differs from the model"):
            export(build("topk", **SHALLOW), tmp_path / "a" / "m.onnx")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    export(model, tmp_path / "a" / "m.onnx")
    shutil.move(tmp_path / "a", tmp_path / "b")
    with torch.no_grad(): assert (run_file(tmp_path / "b" / "m.onnx", x) - model(x)).abs().max() < 1e-4

@pytest.mark.parametrize("backbone", ["vit", "rope"])
def test_channels(tmp_path, backbone):
    model = build(backbone=BACKBONES[backbone], **SHALLOW, in_chans=1)
    exporting.WRITERS[".pt2"](program(model), tmp_path / "m.pt2")
    assert difference(model, tmp_path / "m.pt2") < 1e-4
    assert exporting.describe(model, list("abcdefg"))["input"] == {"images": ["batch", 1, 32, 32]}
    with pytest.raises(ValueError, match="RGB photographs and the model takes in_chans=1"):
        export(model, tmp_path / "n" / "m.pt2")
    assert not (tmp_path / "n").exists()

def test_a_compiled_model(tmp_path):
    model = torch.compile(build(**SHALLOW))
    assert difference(model, export(model, tmp_path / "m.pt2")) < 1e-4
    assert len(list(program(model).graph.nodes)) == len(list(program(model._orig_mod).graph.nodes))

@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_published_ats(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(exporting, "_need", lambda *_: None)
    monkeypatch.setattr(exporting, "program", lambda model: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="reference=True with reducer='ats' cannot be exported"):
        export(build("ats", reference=True), tmp_path / "n" / f"m{suffix}")
    assert not list(tmp_path.iterdir())

def test_refusals(tmp_path, monkeypatch):
    model = build(**SHALLOW)
    with pytest.raises(ValueError, match="'m.tflite' does not end in .onnx or .pt2"):
        export(model, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="2 classes are given for 7 logits"):
        export(model, tmp_path / "m.onnx", classes=["a", "b"])
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'clca\[export\]'"): export(model, tmp_path / "m.onnx")

@contextmanager
def a_used_notebook():
    "All at once that may be switched on."
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        torch.set_default_dtype(torch.float64)
        try: yield
        finally: torch.set_default_dtype(torch.float32)

def state(): return torch.ones(1) @ torch.ones(1), torch.ones(1)

@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_state_of_a_notebook(tmp_path, suffix):
    "Whatever is switched on while a model is made and exported, the file is right and runs; the state stays."
    if suffix == ".onnx": pytest.importorskip("onnxruntime", reason="pip install clca[export]")
    x = noise(5)
    with torch.inference_mode(): model = build(**SHALLOW)
    with torch.no_grad(): want = model(x)
    with a_used_notebook():
        before = state()
        path = export(model, tmp_path/f"m{suffix}")
        inside = run_file(path, x.to(torch.float64))
        after = state()
    assert [(t.dtype, t.device, t.is_inference()) for t in before] == [(t.dtype, t.device, t.is_inference()) for t in after]
    for logits in (inside, run_file(path, x)): assert (logits - want).abs().max() < 1e-4

class Samples(torch.nn.Module):
    "The sampling of ATS for many numbers of points at once."
    def __init__(self, counts): super().__init__(); self.counts = counts
    def forward(self, images):
        plans = [ats(images, k, trim=False) for k in self.counts]
        return torch.cat([x.float() for plan in plans for x in (plan.idx, plan.valid)], 1)

def test_ats_has_the_same_points_in_onnx(tmp_path):
    "A range of floats would have one more in ONNX Runtime for nearly half of these."
    pytest.importorskip("onnxruntime", reason="pip install clca[export]")
    model, scores = Samples(range(2, 198, 19)), noise(2).flatten(1)[:, :196].abs()
    graph = torch.export.export(model, (scores,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    exporting.WRITERS[".onnx"](graph, tmp_path/"m.onnx")
    assert torch.equal(run_file(tmp_path/"m.onnx", scores), model(scores))

def test_arguments_become_what_json_can_hold(tmp_path):
    model = build(**SHALLOW)
    classes = np.array(list("abcdefg")) # neither this nor a number of NumPy is anything that JSON knows
    preparation = dict(crop_pct=np.float32(.5), mean=tuple(np.float32([.5, .25, .125])))
    about = json.loads(export(model, str(tmp_path/"m.pt2"), classes=classes, preparation=preparation)
                       .with_suffix(".json").read_text())
    assert (about["classes"], about["crop_pct"], about["mean"]) == (list("abcdefg"), .5, [.5, .25, .125])
    assert about["resize"] == [64, 64]

def test_checks_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "program", lambda model: pytest.fail("work was done"))
    (tmp_path/"d.pt2").mkdir()
    (tmp_path/"file").write_text("")
    model = build(**SHALLOW)
    for path, options, message in [("d.pt2", {}, "is a folder"), ("m.pt2", dict(classes="abcdefg"), "is one text"),
                                   ("m.pt2", dict(preparation=.5), "must be a dictionary"),
                                   ("m.pt2", dict(preparation=dict(crop=1)), "no value 'crop'")]:
        with pytest.raises(ValueError, match=message): export(model, tmp_path/path, **options)
    with pytest.raises(OSError, match="file"): export(model, tmp_path/"file"/"m.pt2")
    with pytest.raises(TypeError, match="Linear is not a token-reduced model"):
        export(torch.nn.Linear(1, 1), tmp_path/"m.pt2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.pt2", "file"]

def test_a_file_that_does_not_run_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.WRITERS, ".pt2", lambda graph, path: path.write_text("nothing"))
    with pytest.raises(RuntimeError, match="does not run: it is not kept"): export(build(**SHALLOW), tmp_path/"m.pt2")
    assert not list(tmp_path.iterdir())

FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from clca.tools.exporting import export
from models import build
model, folder = build(depth=2, at=(0,), embed_dim=96), Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for name in ("m.pt2", "m.onnx"):
    try: export(model, folder/name)
    except OSError as e: print(name, type(e).__name__, e)
    assert not list(folder.iterdir())
"""

def test_a_full_disk(tmp_path):
    "An exception, and nothing that is left; a limit on the size of a file stands for the disk."
    pytest.importorskip("onnxruntime", reason="pip install clca[export]")
    command = [sys.executable, "-c", FULL, str(tmp_path), str(ROOT/"tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == 2, done.stdout + done.stderr[-2000:]
    assert all("could not be written, and nothing is left of it" in line for line in said)

def pictures(folder):
    "Files of kinds whose conversion to RGB is a choice."
    shades = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    rgba = Image.fromarray(shades)
    palette = Image.fromarray(shades[..., :3]).quantize(16)
    exif = Image.Exif()
    exif[274] = 6
    rgba.save(folder/"rgba.png")
    rgba.convert("LA").save(folder/"la.png")
    palette.save(folder/"palette.png")
    palette.save(folder/"transparent.png", transparency=3)
    Image.fromarray(shades[..., :3]).save(folder/"colour.png", transparency=tuple(map(int, shades[0, 0, :3])))
    Image.fromarray(shades[..., 0].astype(np.uint16)*257 + 100).save(folder/"deep.png")
    Image.fromarray(shades[..., 0].astype(np.uint16)*257 + 100).save(folder/"deep.tif")
    Image.fromarray(shades[..., :3]).convert("CMYK").save(folder/"cmyk.jpg")
    Image.fromarray(shades[..., 0].astype(np.uint16)*257).save(folder/"deep and clear.png", transparency=int(shades[0, 0, 0])*257)
    (folder/"twelve.tif").write_bytes(grey_tiff([0, 4095, 2048, 1024], 12))
    (folder/"white is zero.tif").write_bytes(grey_tiff([0, 65535, 257*100], 16, photometric=0))
    Image.fromarray(shades[..., 0] > 128).save(folder/"bits.png")
    Image.fromarray(shades[..., :3]).save(folder/"turned.jpg", exif=exif, quality=95)
    return sorted(map(str, folder.iterdir()))

def test_the_lines_prepare_images_as_training_does(tmp_path, monkeypatch):
    (tmp_path/"photos").mkdir()
    paths, path = pictures(tmp_path/"photos"), export(build(**SHALLOW), tmp_path/'it is "m".pt2')
    lines = path.with_suffix(".md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path/"run.py").write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *paths])
    images = torch.from_numpy(runpy.run_path("run.py")["images"])
    trained = Images(paths, [0]*len(paths), preparation_of(build(**SHALLOW)))
    for i, name in enumerate(paths): assert (images[i] - trained[i][0]).abs().max() < 1e-5, name

def test_two_formats_of_one_name_have_a_note_each(tmp_path):
    "The first has the short name, and keeps it; the lines of either run its own file."
    pytest.importorskip("onnxruntime", reason="pip install clca[export]")
    model, kept = build(**SHALLOW), {}
    for name, classes in (("m.pt2", "abcdefg"), ("m.onnx", "tuvwxyz"), ("m.pt2", "ABCDEFG")):
        export(model, tmp_path/name, classes=list(classes))
        kept[name] = classes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.md", "m.onnx", "m.onnx.json", "m.onnx.md", "m.pt2"]
    for name, note in (("m.pt2", "m.md"), ("m.onnx", "m.onnx.md")):
        text = (tmp_path/note).read_text()
        record = text.split('json.load(open("')[1].split('"')[0]
        about = json.loads((tmp_path/record).read_text())
        assert text.startswith(f"# {name}\n") and about["file"] == name and "".join(about["classes"]) == kept[name]
    (tmp_path/"m.pt2").unlink()
    export(model, tmp_path/"m.onnx")
    assert json.loads((tmp_path/"m.json").read_text())["file"] == "m.onnx" and not (tmp_path/"m.onnx.json").exists()

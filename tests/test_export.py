"Exported files answer as the model does, whatever the batch."
import json, shutil, subprocess, sys
import pytest, torch
from PIL import Image
from safetensors.torch import save_file
from clca.tools import exporting
from clca.tools.exporting import difference, export, program, run_file
from clca.model import create_model
from clca.reducers import names
from models import BACKBONES, PLAIN, SMALL, build, noise, perturbed

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
    with pytest.raises(ImportError, match=r"pip install clca\[export\]"): export(model, tmp_path / "m.onnx")

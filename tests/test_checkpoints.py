"What is no published checkpoint is refused in a sentence, and runs no code."
import argparse, os
import pytest, torch
from clca.tools.checkpoints import load_checkpoint, read_published, to_reference_state
from models import build

ARGS = dict(model="evit_deit_tiny_patch16_224", keep_rate=[.5], reduction_loc=[1, 2], ifa_head=True, clc=True)
STATE = {n: t.float() for n, t in to_reference_state(build(depth=12, embed_dim=24, num_heads=3)).items()}
less = lambda name, **kw: {n: t for n, t in STATE.items() if n != name} | kw

CASES = dict(
    no_dict=([1], "needs `config` and `model`, and has list"), no_config=({3: 1, "model": STATE}, "needs `config`"),
    config_none=(dict(config=None, model=STATE), "`config` must hold"),
    config_list=(dict(config=[1], model=STATE), "`config` must hold"),
    nameless=(dict(config={}, model=STATE), "`config` must hold"),
    number=(dict(config=argparse.Namespace(model=3), model=STATE), "`config` must hold"),
    state_list=(dict(config=ARGS, model=[torch.zeros(1)]), "`model` must hold tensors"),
    state_numbers=(dict(config=ARGS, model={"clr": 3}), "`model` must hold tensors"),
    state_names=(dict(config=ARGS, model={3: torch.zeros(1)}), "`model` must hold tensors"),
    empty_state=(dict(config=ARGS, model={}), "'ifa_head.0.4.weight' must have 3 dimensions and is missing"),
    no_patches=(dict(config=ARGS, model=less("patch_embed.proj.weight")),
                "'patch_embed.proj.weight' must have 4 dimensions and is missing"),
    flat_pos=(dict(config=ARGS, model=less("", pos_embed=torch.zeros(3))),
              r"'pos_embed' must have 3 dimensions and is \[3\]"),
    no_vit=(dict(config=ARGS | {"model": "resnet18"}, model=STATE), "cannot be built: 'resnet18' is not a flat ViT"),
    unknown=(dict(config=ARGS | {"model": "evit_"}, model=STATE), "unknown backbone"),
    words=(dict(config=ARGS | {"keep_rate": "half", "reduction_loc": 1}, model=STATE), "half"))

@pytest.mark.parametrize("content,message", CASES.values(), ids=CASES)
def test_wrong_content(tmp_path, content, message):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=message): load_checkpoint(tmp_path / "m.pth")

@pytest.mark.parametrize("data",
                         [b"", b"a text\n", b"\x80", b"PK\x03\x04", b"\x80\x02}q\x00.", bytes(range(256)), b"{}",
                          b"config: 1", b"\x89PNG\r\n\x1a\n"], ids=repr)
def test_other_files(tmp_path, data):
    (tmp_path / "m.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"m\.pth (cannot be read as a checkpoint|is refused|is not a published)"):
        load_checkpoint(tmp_path / "m.pth")

@pytest.mark.parametrize("cut", [.1, .5, .99])
def test_half_a_file(tmp_path, cut):
    torch.save(dict(config=ARGS, model=STATE), path := tmp_path / "m.pth")
    assert load_checkpoint(path).reference
    path.write_bytes(path.read_bytes()[:int(cut * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"m\.pth (cannot be read as a checkpoint|is refused)"): load_checkpoint(path)

class Code:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)

@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_runs(tmp_path, legacy):
    torch.save(dict(config=ARGS, model=STATE, hook=Code(str(tmp_path / "ran"))), tmp_path / "m.pth",
               _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="is refused"): load_checkpoint(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()

def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError): load_checkpoint(tmp_path / "m.pth")
    with pytest.raises(FileNotFoundError): read_published(tmp_path / "m.pth")

"The published models on tiny fixed weights: their cases, and how to make the weights (data: golden/README.md)."
import json, zlib
from functools import cache
from pathlib import Path
import numpy as np, torch
from clca.tools.checkpoints import load_reference_state
from clca.model import create_model

GOLDEN = Path(__file__).parent / "golden"
TINY = dict(image_size=32, patch_size=4, embed_dim=48, num_heads=3)
VARIANTS = dict(
    base=dict(head="linear", cache=False), cla=dict(head="cla", cache=False), clc=dict(head="linear", cache=True), clca={},
    clca_clr4=dict(num_clr=4), clca_gap_only=dict(num_clr=0), clca_clr_only=dict(gap=False), clca_no_last=dict(recover_last=False))

@cache
def cases() -> list[dict]: return json.loads((GOLDEN / "reference_logits.json").read_text())

@cache
def _shapes() -> dict: return json.loads((GOLDEN / "reference_shapes.json").read_text())

def shapes(case: dict) -> dict[str, list[int]]:
    key = f"{case['flavour']}/{case['reducer']}/{case['variant']}"
    change = _shapes()["cases"].get(key) or _shapes()["cases"][f"{key}/{case['keep']}"]
    plain = {k: v for k, v in _shapes()["vit"][case["flavour"]].items() if k not in change["removed"]}
    return plain | change["changed_or_added"]

def fill(name: str, shape: list[int]) -> torch.Tensor:
    if name.endswith("num_batches_tracked"): return torch.tensor(0)
    a = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.split(".")[-1]
    rule = {"running_var": lambda: 1 + .2 * abs(a), "running_mean": lambda: .2 * a, "queries": lambda: .3 * a, "gamma": lambda: .6 + .2 * a,
            "scale": lambda: 1 + .2 * a, "bias": lambda: .1 * a} | {n: lambda: .5 * a for n in ("cls_token", "reg_token", "pos_embed", "clr")}
    if last in rule: return torch.from_numpy(np.asarray(rule[last]()))
    return torch.from_numpy(1 + .2 * a if len(shape) == 1 else a / np.sqrt(np.prod(shape[1:])))

def images(dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(20241231).standard_normal((3, 3, 32, 32))).to(dtype)

def reference_model(case: dict, reference: bool = True, **kw) -> torch.nn.Module:
    dtype = getattr(torch, case["dtype"])
    model = create_model(case["timm_name"], 7, reducer=case["reducer"], keep=case["keep"], at=case["at"], reference=reference,
                         **TINY | VARIANTS[case["variant"]] | kw).eval().to(dtype)
    return load_reference_state(model, {n: fill(n, s).to(dtype) if not n.endswith("tracked") else fill(n, s) for n, s in shapes(case).items()})

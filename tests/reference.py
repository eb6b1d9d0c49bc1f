"The published models on the fixed weights of models.py: their cases, and how to build them."
import json
from functools import cache
from pathlib import Path
import numpy as np, torch
from clca.tools.checkpoints import load_reference_state
from clca.model import create_model
from models import fill

GOLDEN = Path(__file__).parent / "golden"
TINY = dict(image_size=32, patch_size=4, embed_dim=48, num_heads=3)
VARIANTS = dict(
    base=dict(head="linear", cache=False), cla=dict(head="cla", cache=False), clc=dict(head="linear", cache=True),
    clca={}, clca_clr4=dict(num_clr=4), clca_gap_only=dict(num_clr=0), clca_clr_only=dict(gap=False),
    clca_no_last=dict(recover_last=False))

@cache
def cases() -> list[dict]: return json.loads((GOLDEN / "reference_logits.json").read_text())

@cache
def _shapes() -> dict: return json.loads((GOLDEN / "reference_shapes.json").read_text())

def shapes(case: dict) -> dict[str, list[int]]:
    key = f"{case['flavour']}/{case['reducer']}/{case['variant']}"
    change = _shapes()["cases"].get(key) or _shapes()["cases"][f"{key}/{case['keep']}"]
    plain = {k: v for k, v in _shapes()["vit"][case["flavour"]].items() if k not in change["removed"]}
    return plain | change["changed_or_added"]

def images(dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(20241231).standard_normal((3, 3, 32, 32))).to(dtype)

def reference_model(case: dict, reference: bool = True, **kw) -> torch.nn.Module:
    dtype = getattr(torch, case["dtype"])
    model = create_model(case["timm_name"], 7, reducer=case["reducer"], keep=case["keep"], at=case["at"],
                         reference=reference, **TINY | VARIANTS[case["variant"]] | kw).eval().to(dtype)
    weights = {n: fill(n, s) for n, s in shapes(case).items()}
    return load_reference_state(model, {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()})

"Models without golden logits, CLIP and DINOv2 with registers, against the oracle of naive.py; and that oracle against golden logits."
from collections import Counter
from functools import cache
import pytest, timm, torch
from clca import create_model, load_reference_state, trace
from clca.reducers import names
import naive, reference
from reference import TINY, fill, images

FLAVOURS = dict(clip=("vit_base_patch16_clip_224", 1e-5), reg4=("vit_small_patch14_reg4_dinov2", 1e-6)) # with the epsilon of their LayerNorm
VARIANTS = reference.VARIANTS | dict(ifa=dict(head="ifa"))
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}

@cache
def plain(name: str) -> dict[str, list[int]]:
    model = timm.create_model(name, num_classes=7, **{"img_size" if k == "image_size" else k: v for k, v in TINY.items()})
    return {n: list(t.shape) for n, t in model.state_dict().items()}

@cache
def tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return fill(name, shape).to(torch.long if name.endswith("tracked") else dtype)

def weights(shapes: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]: return {n: tensor(n, tuple(s), dtype) for n, s in shapes.items()}

def settings(reducer: str): # variant, keep, at
    yield from ((v, k, [3, 6, 9]) for v in reference.VARIANTS for k in (.1, .5, .9))
    yield from ((v, k, at) for v in ("base", "clca", "clca_clr4") for k in (.1, .5) for at in ([2, 5, 8, 10], [3, 4], [9, 10]))
    yield from (("ifa", .5, at) for at in ([3, 6, 9], [3, 4]))
    if reducer in ("topk", "evit", "dyvit"):
        yield from ((v, k, [3, 6, 9]) for v in ("base", "clca", "clca_clr4") for k in ([.5, .7, .9], [.9, .5, .3], [.7, 1., .5]))

def compare(flavour: str, reducer: str, variant: str, keep: float | list[float], at: list[int]) -> str: # what came of it
    (name, eps), dtype = FLAVOURS[flavour], torch.float32 if reducer == "ats" else torch.float64
    w, x = weights(naive.shapes(plain(name), reducer, variant, keep, at), dtype), images(dtype)
    try: logits, tokens_in, tokens_out = naive.forward(w, x, reducer, keep, at, variant, eps)
    except naive.Crash: return "crash"
    model = create_model(name, 7, reducer=reducer, keep=keep, at=at, reference=True, **TINY | VARIANTS[variant]).eval().to(dtype)
    t = trace(load_reference_state(model, w), x)
    assert (t.tokens_in, t.tokens_out) == (tokens_in, tokens_out), (variant, keep, at)
    torch.testing.assert_close(t.logits, logits, rtol=0, atol=TOLERANCE[dtype], equal_nan=True, msg=lambda m: f"{variant} {keep} {at}: {m}")
    return "nan" if logits.isnan().any() else "number"

EXPECTED = {}

@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavour(flavour, reducer):
    assert Counter(compare(flavour, reducer, *s) for s in settings(reducer)) == EXPECTED[reducer]

@pytest.mark.parametrize("flavour", ["deit", "deit3"])
def test_oracle_on_golden_logits(flavour):
    sample = [c for c in reference.cases() if c["flavour"] == flavour and (c["variant"], c["keep"]) in
              {("base", .7), ("clca_clr4", .25)} | {("base", 1.), ("clca_clr4", 1.)} * (c["reducer"] == "none")]
    for c in sample:
        shapes = naive.shapes()

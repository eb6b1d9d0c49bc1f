"""Models without golden logits, CLIP and DINOv2 with registers, against the oracle of naive.py; and that oracle
against the golden logits."""
from collections import Counter
from functools import cache
import pytest, timm, torch
from clca import create_model, load_reference_state, trace
from clca.reducers import names
import naive
from models import fill
from reference import TINY, VARIANTS, cases, images, shapes

pytestmark = pytest.mark.usefixtures("one_thread")

# name, epsilon of the blocks' LayerNorm
FLAVOURS = dict(clip=("vit_base_patch16_clip_224", 1e-5), reg4=("vit_small_patch14_reg4_dinov2", 1e-6))
BUILD = {v: TINY | kw | dict(weight_init="skip") for v, kw in (VARIANTS | dict(ifa=dict(head="ifa"))).items()}
SOME = ("base", "clca", "clca_clr4")
LISTS = ("topk", "evit", "dyvit") # the published code fails for lists of keep rates in the others

@cache
def plain(name: str) -> dict[str, list[int]]:
    model = timm.create_model(name, num_classes=7, **{k.replace("image", "img"): v for k, v in TINY.items()})
    return {n: list(t.shape) for n, t in model.state_dict().items()}

@cache
def weight(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return fill(name, shape).to(torch.long if name.endswith("tracked") else dtype)

def weights(shapes: dict[str, list[int]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {n: weight(n, tuple(s), dtype) for n, s in shapes.items()}

@pytest.mark.parametrize("flavour", ["deit", "deit3"])
def test_oracle_on_golden_logits(flavour):
    chosen = [c for c in cases() if c["flavour"] == flavour]
    assert len(chosen) == 8 * 17 # variants; two keep rates of eight reducers, and none
    for c in chosen:
        case, dtype = (c["reducer"], c["variant"], c["keep"], c["at"]), getattr(torch, c["dtype"])
        assert naive.shapes(plain(c["timm_name"]), *case) == shapes(c), case
        logits, tokens_in, tokens_out = naive.forward(weights(shapes(c), dtype), images(dtype), *case)
        assert (tokens_in, tokens_out) == (c["tokens_in"], c["tokens_out"]), case
        tolerance = 1e-4 if c["reducer"] == "ats" else 1e-6
        assert (logits - torch.tensor(c["logits"], dtype=dtype)).abs().max() < tolerance, case

def settings(reducer: str): # variant, keep, at
    yield from ((v, k, [3, 6, 9]) for v in VARIANTS for k in (.1, .5, .9))
    yield from ((v, k, at) for v in SOME for k in (.1, .5) for at in ([2, 5, 8, 10], [3, 4], [9, 10]))
    yield from (("ifa", .5, at) for at in ([3, 6, 9], [3, 4]))
    if reducer in LISTS:
        yield from ((v, k, [3, 6, 9]) for v in SOME for k in ([.5, .7, .9], [.9, .5, .3], [.7, 1., .5]))

def compare(flavour: str, *case) -> str: # reducer, variant, keep, at -> what came of it
    (name, eps), (reducer, variant, keep, at) = FLAVOURS[flavour], case
    dtype, tolerance = (torch.float32, 1e-4) if reducer == "ats" else (torch.float64, 1e-8)
    w = weights(naive.shapes(plain(name), *case), dtype)
    try: logits, tokens_in, tokens_out = naive.forward(w, images(dtype), *case, eps=eps)
    except naive.Crash: return "crash"
    model = create_model(name, 7, reducer=reducer, keep=keep, at=at, reference=True, **BUILD[variant])
    t = trace(load_reference_state(model.to(dtype), w), images(dtype))
    assert (t.tokens_in, t.tokens_out) == (tokens_in, tokens_out), case
    torch.testing.assert_close(t.logits, logits, rtol=0, atol=tolerance, equal_nan=True, msg=lambda m: f"{case}: {m}")
    return "nan" if logits.isnan().any() else "number"

# At a keep rate of .1 Top-K may be left with one candidate, which crashes, and others with CLS alone: the mean that
# the cache puts aside is nan then.
CRASH, NAN = dict(topk=3), dict(clip=dict(dyvit=4, ats=9, sit=9, patchmerger=9), reg4=dict(dyvit=4, ats=9))

@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavour(flavour, reducer):
    came = Counter(compare(flavour, reducer, *s) for s in settings(reducer))
    crash, nan = CRASH.get(reducer, 0), NAN[flavour].get(reducer, 0)
    assert (came["crash"], came["nan"], came["number"]) == (crash, nan, (53 if reducer in LISTS else 44) - crash - nan)

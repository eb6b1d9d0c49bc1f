"Every published model, token counts and logits, and the published costs."
import pytest, torch
from clca.tools.cost import macs
from clca.model import create_model
from clca.reducers import names
from clca.tools.tracing import trace
from models import fill
from reference import cases, images, reference_model

pytestmark = pytest.mark.usefixtures("one_thread")

def _id(c): return f"{c['flavour']}-{c['reducer']}-{c['variant']}-{c['keep']}"

def test_weights_are_the_published_ones():
    w = fill("blocks.0.attn.qkv.weight", [144, 48]).flatten()[:3]
    assert torch.allclose(w, torch.tensor([0.15923516, 0.17864492, -0.06352931], dtype=w.dtype), atol=1e-8)

@pytest.mark.parametrize("case", [c for c in cases() if c["reducer"] in names()], ids=_id)
def test_golden(case):
    model, x = reference_model(case), images(getattr(torch, case["dtype"]))
    t = trace(model, x)
    assert (t.tokens_in, t.tokens_out) == (case["tokens_in"], case["tokens_out"])
    tolerance = 1e-4 if case["reducer"] == "ats" else 1e-6
    with torch.no_grad(): logits = model(x)
    assert (logits - torch.tensor(case["logits"], dtype=logits.dtype)).abs().max() < tolerance
    assert torch.allclose(t.logits, logits, atol=tolerance)

PUBLISHED = {("none", 1., False): 78.53,
             **{("evit", k, False): g for k, g in zip((.7, .5, .25, .1), (50.18, 38.22, 28.57, 24.80))},
             **{("evit", k, True): g for k, g in zip((.7, .5, .25, .1), (50.87, 38.78, 29.00, 25.18))}}

@pytest.mark.parametrize("reducer,keep,clca", PUBLISHED)
def test_published_macs(reducer, keep, clca):
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", 1110, reducer=reducer, keep=keep, image_size=448, reference=True,
                                                     head="cla" if clca else "linear", cache=clca)
    assert macs(model, 448) == pytest.approx(PUBLISHED[reducer, keep, clca], rel=.005)

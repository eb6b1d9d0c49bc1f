"torch.compile: one whole graph, compiled once, with the answers of eager."
import shutil
import pytest, torch
from torch._dynamo.testing import CompileCounterWithBackend
from clca.model import create_model
from clca.reducers import names

TINY = dict(image_size=32, patch_size=4, embed_dim=24, num_heads=3, depth=4, at=(1, 2), keep=.5)
BACKBONES = dict(vit="deit_tiny_patch16_224", rope="vit_small_patch16_dinov3")
PLAIN = dict(head="linear", cache=False)

def tiny(backbone="vit", **kw):
    "A model whose attention is not flat, so that tokens differ."
    torch.manual_seed(0)
    model = create_model(BACKBONES[backbone], 7, **TINY | kw).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * .1)
    return model

def batches(n=3): return torch.randn(n, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

@pytest.fixture
def compiled():
    "Compile into a counter of graphs: (compiled model, counter)."
    torch._dynamo.reset()
    def make(model, backend="eager"):
        counter = CompileCounterWithBackend(backend)
        return torch.compile(model, fullgraph=True, dynamic=False, backend=counter), counter
    yield make
    torch._dynamo.reset()

CASES = [("vit", r, kw) for r in names() for kw in ({}, PLAIN)] + [("rope", r, {}) for r in ("evit", "ats", "tome")] + [("vit", "evit", dict(reference=True))]

@pytest.mark.parametrize("backbone,reducer,kw", CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "clca")
def test_one_graph(compiled, backbone, reducer, kw):
    model = tiny(backbone, reducer=reducer, **kw)
    fast, counter = compiled(model)
    with torch.inference_mode():
        for x in batches(): assert (fast(x) - model(x)).abs().max() < 1e-4
    assert counter.frame_count == 1

@pytest.mark.parametrize("reducer", ["dpcknn", "tome"])
def test_aot(compiled, reducer):
    "The same below autograd, where views and in-place writes are taken apart."
    model = tiny(reducer=reducer)
    fast, counter = compiled(model, "aot_eager")
    with torch.inference_mode():
        for x in batches(): assert (fast(x) - model(x)).abs().max() < 1e-4
    assert counter.frame_count == 1

def test_training_step(compiled):
    model, x, y = tiny().train(), batches(2), torch.tensor([0, 3, 6])
    fast, counter = compiled(model, "aot_eager")
    def gradients(f, x):
        model.zero_grad()
        torch.nn.functional.cross_entropy(f(x), y).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}
    for b in x:
        eager, ours = gradients(model, b), gradients(fast, b)
        assert all(torch.allclose(ours[n], g, atol=1e-4) for n, g in eager.items())
    assert counter.frame_count == 1

@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="inductor needs a C++ compiler: g++ or clang++")
def test_inductor(compiled):
    model = tiny()
    fast, counter = compiled(model, "inductor")
    with torch.inference_mode():
        for x in batches(): assert (fast(x) - model(x)).abs().max() < 1e-4
    assert counter.frame_count == 1

"torch.compile: one whole graph, compiled once, with the answers of eager."
import shutil
import pytest, torch
from torch._dynamo.testing import CompileCounterWithBackend
from clca.reducers import names
from models import BACKBONES, PLAIN, build, noise

def batches(n=3): return [noise(3, seed=i) for i in range(n)]

@pytest.fixture
def compiled():
    "Compile into a counter of graphs: (compiled model, counter)."
    torch._dynamo.reset()
    def make(model, backend="eager"):
        counter = CompileCounterWithBackend(backend)
        return torch.compile(model, fullgraph=True, dynamic=False, backend=counter), counter
    yield make
    torch._dynamo.reset()

CASES = [*(("vit", r, kw) for r in names() for kw in ({}, PLAIN)), *(("rope", r, {}) for r in ("evit", "ats", "tome")),
         ("vit", "evit", dict(reference=True))]

@pytest.mark.parametrize("backbone,reducer,kw", CASES,
                         ids=lambda v: v if isinstance(v, str) else "-".join(v) or "clca")
def test_one_graph(compiled, backbone, reducer, kw):
    model = build(reducer, BACKBONES[backbone], **kw)
    fast, counter = compiled(model)
    with torch.inference_mode():
        for x in batches(): assert (fast(x) - model(x)).abs().max() < 1e-4
    assert counter.frame_count == 1

@pytest.mark.parametrize("reducer", ["dpcknn", "tome"])
def test_aot(compiled, reducer):
    "The same below autograd, where views and in-place writes are taken apart."
    model = build(reducer)
    fast, counter = compiled(model, "aot_eager")
    with torch.inference_mode():
        for x in batches(): assert (fast(x) - model(x)).abs().max() < 1e-4
    assert counter.frame_count == 1

def test_training_step(compiled):
    model, x, y = build().train(), batches(2), torch.tensor([0, 3, 6])
    fast, counter = compiled(model, "aot_eager")
    def gradients(f, x):
        model.zero_grad()
        torch.nn.functional.cross_entropy(f(x), y).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}
    for b in x:
        eager, ours = gradients(model, b), gradients(fast, b)
        assert all(torch.allclose(ours[n], g, atol=1e-4) for n, g in eager.items())
    assert counter.frame_count == 1

@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))),
                    reason="inductor needs a C++ compiler: g++ or clang++")
def test_inductor(compiled):
    model = build()
    fast, counter = compiled(model, "inductor")
    with torch.inference_mode():
        for x in batches(): assert (fast(x) - model(x)).abs().max() < 1e-4
    assert counter.frame_count == 1

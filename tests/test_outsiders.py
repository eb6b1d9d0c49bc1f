"""A reducer from outside, between attention and MLP, whose plan is any linear map: its weights need not sum to one.
The model equals attention and projection of all tokens first, then the plan, with all parameters perturbed."""
import pytest, torch
import unfused
from clca.reducers import Reducer
from clca.tokens import Fuse, Merge, Mix, Select, merge
from clca import register_reducer
from models import build, noise

pytestmark = pytest.mark.usefixtures("one_thread")

def half(view) -> int: return (view.n + 1) // 2

class Mixing(Reducer):
    "Every token that is left is some sum of all candidates."
    def forward(self, view) -> Mix: return Mix(torch.randn(view.x.shape[0], half(view), view.n, dtype=view.x.dtype))

class Merging(Reducer):
    "Neighbours become one, and lose a little of their weight."
    def forward(self, view) -> Merge:
        slot = (torch.arange(view.n) // 2).expand(view.x.shape[0], -1)
        return merge(slot, torch.rand(slot.shape, dtype=view.x.dtype),
                     2 * torch.arange(half(view)).expand(view.x.shape[0], -1), eps=.1)

class Fusing(Reducer):
    "One more token is some sum of all candidates, kept ones too."
    def forward(self, view) -> Fuse:
        idx = torch.stack([torch.randperm(view.n)[:half(view)] for _ in view.x])
        return Fuse(idx, torch.randn(view.x.shape[0], view.n, dtype=view.x.dtype))

class Selecting(Reducer):
    "Some are left, in some order."
    def forward(self, view) -> Select:
        return Select(torch.stack([torch.randperm(view.n)[:half(view)] for _ in view.x]))

OUTSIDERS = dict(mixing=Mixing, merging=Merging, fusing=Fusing, selecting=Selecting)

@pytest.fixture(scope="module", autouse=True)
def registered():
    for name, reducer in OUTSIDERS.items(): register_reducer(name)(reducer)

BACKBONES = dict(
    vit=("vit_tiny_patch16_224", {}), layerscale=("vit_small_patch14_reg4_dinov2", dict(head="linear")),
    norms=("vit_tiny_patch16_224", dict(qk_norm=True, scale_attn_norm=True)),
    no_bias=("vit_tiny_patch16_224", dict(proj_bias=False)),
    average=("vit_tiny_patch16_224", dict(global_pool="avg", class_token=False, no_embed_class=True, head="linear")),
    rope=("vit_small_patch16_dinov3", {}), eva=("eva02_tiny_patch14_224", dict(head="linear")))

@pytest.mark.parametrize("score", ["auto", "update"])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("outsider", OUTSIDERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_order_does_not_matter(backbone, outsider, cache, score):
    name, options = BACKBONES[backbone]
    image, model = noise(1, dtype=torch.float64), build(outsider, name, cache=cache, score=score, **options).double()
    with torch.no_grad(), unfused.recorded(model) as decided: logits = model(image)
    assert len(decided) == 2 and all(plan is not None for _, plan in decided.values())
    plainly, _ = unfused.forward(model, image, decided, at=(1, 2))
    assert torch.allclose(logits, plainly, rtol=0, atol=1e-10), (logits - plainly).abs().max()

@pytest.mark.parametrize("outsider", OUTSIDERS)
def test_with_gradient_checkpointing(outsider):
    """A plan that chance decides is the same when a block runs again in backward, and training gives what evaluation
    gives."""
    def gradients(again):
        model = build(outsider).train()
        model.backbone.set_grad_checkpointing(again)
        if model.head is not None: model.head.eval()
        torch.manual_seed(2)
        model(noise()).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}
    plain, again = gradients(False), gradients(True)
    assert all(torch.allclose(plain[n], g, atol=1e-6, rtol=1e-4) for n, g in again.items())

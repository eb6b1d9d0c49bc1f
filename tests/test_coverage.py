"Every flat ViT of timm: bit-equal to timm when nothing is reduced, and reducible; or refused by name."
import math
from functools import partial
import pandas as pd, pytest, timm, torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn
from clca.lab.coverage import coverage, coverage_file, kinds, on_meta
from clca.model import create_model
from clca.reducers import names
from clca.reducers.base import Reducer
from clca.tokens import Merge, Select
from clca.tools.tracing import trace
from clca.walk import walk
from clca import register_reducer
from models import noise, perturbed

TABLE = kinds(pd.read_csv(coverage_file(), keep_default_na=False))
SUPPORTED, REFUSED = TABLE[TABLE.reason == ""], TABLE[TABLE.reason != ""]
NAMES = names()
pytestmark = pytest.mark.usefixtures("one_thread")

def test_the_table_is_what_timm_has():
    now, then = coverage(), pd.read_csv(coverage_file(), keep_default_na=False)
    pd.testing.assert_frame_equal(now, then)
    assert len(now) >= 285 and now.name.is_unique

@pytest.mark.parametrize("name", REFUSED.example)
def test_refused_by_name(name):
    row = TABLE.set_index("example").loc[name]
    part = next(p for p in (row.attention, row.block, row.family) if p in row.reason)
    with torch.device("meta"), pytest.raises(TypeError, match=part): create_model(name, 7, depth=2)

def tiny(name: str, **options): # a function that builds the model with reducers, the timm model, images
    """A small model of the same make, where its size can be chosen, and images on which it has a grid that is not
    square."""
    meta = on_meta(name)
    grouped = lambda vit: any(getattr(b.attn, "num_kv_groups", 1) > 1 for b in vit.blocks)
    size = tuple(r * n for r, n in zip(meta.patch_embed.feat_ratio(as_scalar=False), (4, 5)))
    if "sapiens2" in name: options |= dict(num_heads=4, num_kv_heads=(4, 2, 2, 4))
    for dims in (dict(embed_dim=64, num_heads=2), dict(embed_dim=96, num_heads=2), {}):
        try: vit = timm.create_model(name, num_classes=5, img_size=size, depth=4, **dims | options)
        except (TypeError, AssertionError, ValueError): continue
        assert grouped(vit) or not grouped(meta)
        make = partial(reducing, perturbed(vit).eval(), name, 5, image_size=size, at=(1, 2), depth=4, **dims | options)
        return make, vit, noise(2, size)

def reducing(vit: nn.Module, *args, **options) -> nn.Module:
    "The same weights with reducers, and everything else perturbed as well."
    model, weights = create_model(*args, **options).eval(), vit.state_dict()
    # but for the classifier, where the head is another
    model.backbone.load_state_dict({n: weights[n] for n in model.backbone.state_dict()})
    for part in (model.stages, model.cache, model.head):
        if part is not None: perturbed(part)
    return model

class Shuffle(Reducer):
    "Puts the candidates in another order: nothing that depends on a token's place in the sequence may be left."
    merge = False
    def forward(self, view):
        idx = torch.stack([torch.randperm(view.n) for _ in view.x])
        return Merge(idx.argsort(1), view.x.new_ones(view.x.shape[0], view.n), idx) if self.merge else Select(idx)

class MergeShuffle(Shuffle): merge = True

@pytest.fixture(scope="module", autouse=True)
def shuffles():
    register_reducer("shuffle")(Shuffle)
    register_reducer("merge_shuffle")(MergeShuffle)

def near(a, b): return torch.allclose(a, b, rtol=0, atol=1e-5 * max(1, b.abs().max().item()))

@pytest.mark.parametrize("name", SUPPORTED.example)
def test_reducible(name): check(*tiny(name))

OPTIONS = [dict(global_pool="avg"), dict(global_pool="avg", pool_include_prefix=True),
           dict(global_pool="map", class_token=False),
           dict(pos_embed="none"), dict(qk_norm=True, scale_attn_norm=True, qkv_bias=False, proj_bias=False),
           dict(dynamic_img_size=True)]

@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o))
def test_options(options): check(*tiny("vit_base_patch14_reg4_dinov2", **options))

@torch.no_grad()
def check(make, vit, images):
    """Equal to timm when nothing is reduced or tokens only change places; finite, with the right number of tokens and
    images for themselves, when reduced."""
    logits, linear = vit(images), partial(make, head="linear", cache=False)
    plain = linear(keep=1.)
    assert torch.equal(plain(images), logits)
    assert near(walk(plain, images).logits, logits) and near(trace(plain, images).logits, logits)
    for shuffle in ("shuffle", "merge_shuffle"): assert near(linear(reducer=shuffle, keep=.5)(images), logits), shuffle
    small = sum(p.numel() for p in vit.parameters()) < 1e6
    # a head of ours takes no attention pooling by name
    whole = partial(make, head="linear") if make.keywords.get("global_pool") == "map" else make
    for reducer in NAMES if small else ("evit", "ats"): reduces(whole, images, reducer)

def reduces(make, images, reducer):
    model = make(reducer=reducer, keep=.5)
    assert torch.isfinite(out := model(images)).all() and out.shape == (2, 5)
    t = trace(model, images)
    assert near(t.logits, out) and near(model(images[1:]), out[1:]), f"{reducer}: an image is seen by its neighbour"
    if reducer != "ats": assert t.tokens_out == tokens_out(model.backbone, reducer)

KEPT = dict(none=lambda n, s: n, topk=lambda n, s: math.ceil(n / 2), evit=lambda n, s: math.ceil(n / 2) + 1,
            dyvit=lambda n, s: (n - 1) // 2,
            tome=lambda n, s: n - min(10 >> s, n // 2),
            **dict.fromkeys(("dpcknn", "sit", "patchmerger"), lambda n, s: 10 >> s))

def tokens_out(vit, reducer):
    """20 patches and a register of the cache; blocks 1 and 2 reduce, then a pooled token and a register come back. All
    tokens before the patches are left alone where their place matters, or where the method does so; else CLS alone."""
    N, tail = 20 + vit.num_prefix_tokens + 1, int(reducer == "dpcknn")
    by_place = vit.cls_token is None or getattr(vit, "rope", None) is not None
    by_place = by_place or isinstance(vit, VisionTransformerDistilled) or vit.global_pool != "token"
    first = vit.num_prefix_tokens if by_place or reducer in ("dpcknn", "sit", "patchmerger") else 1
    out = [N]
    for s in range(2):
        out.append(first + KEPT[reducer](N - first - tail, s) + tail)
        N, tail = out[-1] + 2, tail + 2 * (reducer == "dpcknn")
    return out + [N]

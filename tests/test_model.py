"What PyTorch users do with a model: train, checkpoint, copy, save, distribute, cast, resize."
import copy, pickle
import pytest, timm, torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from timm.layers import DropPath
from torch.nn.parallel import DistributedDataParallel
import clca
from clca.tools.cost import macs
from clca.model import create_model
from clca.reducers import names
from clca.tools.restore import restore, spread
from clca.tools.tracing import Shares, survival, trace
from clca.walk import walk
from models import build, noise

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = names()
each = pytest.mark.parametrize("reducer", NAMES)

def gradients(model, x, seed=2):
    torch.manual_seed(seed)
    model.zero_grad()
    out = model(x, full=True)
    loss = out.logits.square().sum() + (model.auxiliary_loss(out) if model.has_auxiliary_loss else 0.)
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}

@each
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_gradient_checkpointing(reducer, name):
    model = build(reducer, name, proj_drop_rate=.1, drop_path_rate=.1).train()
    plain = gradients(model, noise())
    model.backbone.set_grad_checkpointing()
    again = gradients(model, noise())
    same = lambda other: all(torch.allclose(plain[n], g, atol=1e-6, rtol=1e-4) for n, g in other.items())
    assert same(again) and not same(gradients(model, noise(), seed=3)), "chance has a part in it"

DROPS = dict(stochastic_depth=("drop_path1", "drop_path2"), projection=("attn.proj_drop", "drop_path2"),
             attention=("attn.attn_drop", "drop_path2"))

# the policy has no attention dropout
@pytest.mark.parametrize("reducer,drops", [(r, d) for r in NAMES for d in DROPS if (r, d) != ("dyvit", "attention")])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("keep", [.5, .999]) # the second leaves some methods nothing to do
@torch.no_grad()
def test_dropout(keep, name, reducer, drops):
    """What certainly drops the update of each half of every block leaves CLS as it was, in training; and nothing is
    dropped in evaluation."""
    model, x = build(reducer, name, keep=keep), noise()
    logits, cls, position = model(x), model.backbone.cls_token[0, 0], model.backbone.pos_embed
    if position is not None: cls = cls + position[0, 0]
    for block in model.backbone.blocks:
        for part in DROPS[drops]:
            owner, _, attribute = part.rpartition(".")
            setattr(block.get_submodule(owner), attribute,
                    DropPath(1.) if "path" in attribute else torch.nn.Dropout(1.))
    assert torch.equal(model.eval()(x), logits)
    for block in model.backbone.blocks:
        if drops == "attention": torch.nn.init.zeros_(block.attn.proj.bias)
    assert torch.allclose(model.train()(x, full=True).tokens[:, 0], cls.expand(2, -1))

@each
@torch.no_grad()
def test_copies(reducer, tmp_path):
    model, x = build(reducer).eval(), noise()
    logits = model(x)
    save_file(model.state_dict(), tmp_path/"model.safetensors")
    other = build(reducer)
    for p in other.parameters(): p.zero_()
    other.load_state_dict(load_file(tmp_path/"model.safetensors"))
    for m in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other.eval()): assert torch.equal(m(x), logits)
    with torch.inference_mode(): assert torch.equal(model(x), logits)
    assert torch.allclose(model(x.to(memory_format=torch.channels_last)), logits, atol=1e-6)

@pytest.fixture(scope="module")
def group(tmp_path_factory):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('ddp')/'store'}", rank=0,
                            world_size=1)
    yield
    dist.destroy_process_group()

FAMILIES = dict(vit_tiny_patch16_224={}, vit_base_patch16_siglip_224={}, vit_small_patch16_dinov3={},
                deit_tiny_distilled_patch16_224={}, vit_base_patch16_gap_224={})

@each
@pytest.mark.parametrize("head", ["cla", "linear", "ifa", "cla_last"])
def test_distributed(reducer, head, group):
    model = DistributedDataParallel(build(reducer, head=head).train())
    for _ in range(2):
        out = model(noise(), full=True)
        (out.logits.sum() + (model.module.auxiliary_loss(out) if model.module.has_auxiliary_loss else 0.)).backward()

@each
@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns(reducer, name):
    for head in ("cla", "linear"):
        for cache in (True, False):
            assert not [n for n, g in gradients(build(reducer, name, head=head, cache=cache).train(), noise()).items()
                        if g is None]

@each
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision(reducer, name, dtype):
    model, x = build(reducer, name).train(), noise()
    with torch.autocast("cpu", dtype): grads = gradients(model, x)
    assert all(g.isfinite().all() for g in grads.values())
    with torch.no_grad():
        with torch.autocast("cpu", dtype): assert model.eval()(x).isfinite().all()
        out = model.to(dtype)(x.to(dtype))
        assert out.dtype == dtype and out.isfinite().all()

def test_no_weight_decay():
    "What is a token or is added to one: of timm's own, and of the cache."
    own = {"backbone.cls_token", "backbone.pos_embed", "cache.clr", "cache.pos"}
    assert {n for n in build().no_weight_decay() if n in dict(build().named_parameters())} == own

@pytest.mark.parametrize("head", ["cla", "ifa", "cla_last", "linear"])
def test_reset_classifier(head):
    "Only the last layer is new."
    model = build(head=head)
    before = model.state_dict()
    model.reset_classifier(5)
    new = {n for n, t in model.state_dict().items() if n not in before or not torch.equal(t, before[n])}
    last = "backbone.head" if head == "linear" else "head.classifier"
    assert new == {f"{last}.weight", f"{last}.bias"} and model(noise()).shape == (2, model.num_classes) == (2, 5)

@pytest.mark.parametrize("patch,size", [(8, (32, 32)), (14, (56, 28)), (16, (32, 64)), (32, (64, 128))])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
@torch.no_grad()
def test_sizes(name, patch, size):
    grid = tuple(s // patch for s in size)
    for reducer in ("topk", "tome", "ats"):
        model = build(reducer, name, image_size=size, patch_size=patch).eval()
        t = trace(model, noise(size=size))
        assert all(s.shape == (2, *grid) for s in survival(t, grid))
        assert restore(model, noise(size=size)).shape == (2, 32, *grid)
    plain = build("none", name, image_size=size, patch_size=patch, head="linear", cache=False).eval()
    own = timm.create_model(name, num_classes=7, img_size=size, patch_size=patch, embed_dim=32, num_heads=2,
                            depth=4).eval()
    own.load_state_dict(plain.backbone.state_dict())
    assert torch.equal(plain(noise(size=size)), own(noise(size=size)))
    assert torch.allclose(walk(plain, noise(size=size)).logits, own(noise(size=size)), atol=1e-5)

@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
@torch.no_grad()
def test_any_size(name):
    "A model with `dynamic_img_size` takes images of another size than it was made for."
    x = noise(size=(16, 48))
    for reducer in NAMES:
        model = build(reducer, name, dynamic_img_size=True).eval()
        assert model(x).isfinite().all() and restore(model, x).shape == (2, 32, 2, 6)
    plain = build("none", name, dynamic_img_size=True, head="linear", cache=False).eval()
    assert torch.allclose(walk(plain, x).logits, plain.backbone(x), atol=1e-5)

def test_another_size_is_refused():
    with pytest.raises(ValueError, match="are 40x40 pixels and the model takes 32x32"): build()(noise(size=(40, 40)))

@torch.no_grad()
def test_features():
    plain, model = build("none", head="linear", cache=False).eval(), build("tome").eval()
    assert torch.allclose(plain.forward_features(noise()), plain.backbone.forward_features(noise()), atol=1e-5)
    tokens = model(noise(), full=True).tokens
    assert torch.equal(model.forward_features(noise())[:, :tokens.shape[1]], tokens)
    with pytest.raises(NotImplementedError, match="clca.restore"): model.forward_intermediates(noise())

@each
@torch.no_grad()
def test_restore(reducer):
    whole = build(reducer, keep=1., head="linear", cache=False).eval()
    own = whole.backbone.forward_intermediates(noise(), indices=1, norm=True, intermediates_only=True)[0]
    assert torch.allclose(restore(whole, noise()), own, atol=1e-5), "nothing reduced, nothing changed"
    for cache in (True, False):
        walk(build(reducer, cache=cache).eval(), noise(), watcher=(shares := Shares()))
        share = shares.now
        flat = spread(torch.ones(*share.shape[:2], 4), share)
        if reducer in ("none", "tome", "dpcknn", "sit", "patchmerger"):
            assert torch.allclose(flat, torch.ones(2, 16, 4))
        else: assert ((flat - 1).abs() < 1e-5).logical_or(flat == 0).all()

@torch.no_grad()
def test_kept_patches_return_to_their_place():
    model, x = build("topk", cache=False).eval(), noise()
    seen, tokens = trace(model, x), walk(model, x, full=True).tokens
    maps = restore(model, x).flatten(2).transpose(1, 2)
    for b, kept in enumerate(seen.kept[-1]): assert torch.allclose(maps[b, kept], tokens[b, 1:], atol=1e-6)

def test_macs_of_any_head():
    "Pooling by attention, and other numbers of channels."
    siglip = dict(img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=4)
    model = create_model("vit_base_patch16_siglip_224", 5, at=[1, 2], head="linear", **siglip)
    grey = create_model("vit_tiny_patch16_224", 5, at=[1, 2], in_chans=1, **siglip)
    colour = create_model("vit_tiny_patch16_224", 5, at=[1, 2], **siglip)
    assert macs(model, 32) > 0 and 0 < macs(grey, 32) < macs(colour, 32)

def test_a_look_leaves_every_mode_as_it_was():
    model = create_model("vit_tiny_patch16_224", 5, img_size=32, patch_size=8, embed_dim=32, num_heads=2).train()
    model.backbone.eval()
    before = [m.training for m in model.modules()]
    trace(model, torch.zeros(1, 3, 32, 32)); restore(model, torch.zeros(1, 3, 32, 32)); macs(model, 32)
    assert [m.training for m in model.modules()] == before

@pytest.mark.parametrize("kw, says", [
    (dict(num_clr=-1), "num_clr=-1 must be 0 or more"), (dict(num_classes=-1), "num_classes=-1 must be"),
    (dict(num_clr=0, gap=False), "caches nothing"),
    (dict(backbone="eva02_tiny_patch14_224", patch_drop_rate=.25), "patch dropout"),
    (dict(backbone="resnet50", image_size=32), "not a flat ViT"),
    (dict(backbone="vit_tinny_patch16_224"), "did you mean 'vit_tiny_patch16_224'"),
    (dict(head="CLA"), "did you mean 'cla'")])
def test_what_cannot_be_built(kw, says):
    with pytest.raises((ValueError, TypeError), match=says) as e:
        create_model(**{"backbone": "vit_tiny_patch16_224", "num_classes": 5} | kw)
    assert "\n" not in str(e.value)

def test_macs_without_storage():
    "On the meta device ATS counts its largest number of tokens."
    with torch.device("meta"): assert all(macs(build(r), 32) > 0 for r in NAMES)

@pytest.mark.parametrize("kw", [dict(at=()), dict(at=(), recover_last=False), dict(at=(0,)), dict(at=(3,)), dict(at=(0, 3))])
@torch.no_grad()
def test_edges_of_a_schedule(kw):
    for reducer in names(): assert build(reducer, **kw)(noise()).isfinite().all()

def test_what_is_added_to_attention_is_added_to_every_token():
    """A fused token of EViT gets as much of what a hook, an adapter or LayerScale adds after attention as of the tokens
    that it sums up."""
    from clca.tools.properties import everything_first
    model, x = build("evit", keep=.5, head="linear", cache=False).double(), noise(dtype=torch.float64)
    for block in model.backbone.blocks:
        for part in (block.attn, block.ls1, block.drop_path1): part.register_forward_hook(lambda part, args, out: out + .3)
    with torch.no_grad():
        logits = model(x)
        with everything_first(): assert torch.allclose(model(x), logits, atol=1e-10)

def test_a_spec_is_a_key():
    a, b = (build("evit").spec for _ in range(2))
    assert len({a, b}) == 1 and clca.Spec("vit", 2, at=range(1, 3)) == clca.Spec("vit", 2, at=[1, 2])

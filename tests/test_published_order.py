"""The default, which leaves out what no one reads, equals the published order on one image: attention and projection
of all tokens first, then the reduction. All parameters are perturbed, everything is in double precision, and every
difference that is meant has its name."""
import math
import pytest, torch
from torch import nn
import naive, unfused
from clca import create_model, to_reference_state, trace
from clca.reducers import names
from models import build, noise, perturbed
from reference import TINY, VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGE = noise(1, dtype=torch.float64)
ALL = VARIANTS | dict(ifa=dict(head="ifa"))
# the second has registers and LayerScale
BACKBONES = dict(deit="deit_tiny_patch16_224", reg4="vit_small_patch14_reg4_dinov2")
BEFORE = ("dyvit", "dpcknn", "sit", "patchmerger")

def near(a, b): return torch.allclose(a, b, rtol=0, atol=1e-10)

def default(backbone: str, reducer: str, variant: str, keep: float, at: list[int]) -> nn.Module:
    model = create_model(BACKBONES[backbone], 7, reducer=reducer, keep=keep, at=at, weight_init="skip",
                         **TINY | ALL[variant])
    return perturbed(model.double()).eval()

def difference(model: nn.Module, reducer: str, variant: str, keep: float | list[float], at: list[int],
               **repaired) -> float:
    "Largest difference of a logit from the oracle's, with and without a record; infinite if token counts differ."
    logits, *tokens = naive.forward(to_reference_state(model), IMAGE, reducer, variant, keep, at, **repaired)
    t = trace(model, IMAGE)
    if [t.tokens_in, t.tokens_out] != tokens: return math.inf
    with torch.no_grad():
        return max((model(IMAGE) - logits).abs().max().item(), (t.logits - logits).abs().max().item())

def schedules(backbone: str, reducer: str): # variant, keep, at
    if backbone == "deit": yield from ((v, k, [3, 6, 9]) for v in ALL for k in (.25, .7))
    else: yield from ((v, .5, [3, 6, 9]) for v in ("base", "clca", "clca_clr4"))
    if reducer != "none":
        yield from ((v, k, at) for v in ("base", "clca") for k, at in ((.5, [2, 5, 8, 10]), (.25, [9, 10])))
    # where the published cache crashes
    if reducer != "none" and backbone == "deit": yield from (("base", .5, at) for at in ([0, 4], [5, 11]))

@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("backbone", BACKBONES)
def test_oracle(backbone, reducer):
    """The one repair that acts here: DynamicViT counts what the cache gives back among the living, as it does in
    training (Q12, Q13), and so does the oracle, when told."""
    for variant, keep, at in schedules(backbone, reducer):
        model = default(backbone, reducer, variant, keep, at)
        assert difference(model, reducer, variant, keep, at, living=True) < 1e-10, (variant, keep, at)

def test_dynamicvit_counts_what_the_cache_gives_back():
    "Where nothing was given back before a stage, the published count is the same; else it is another model."
    apart = lambda at: difference(default("deit", "dyvit", "clca", .5, at), "dyvit", "clca", .5, at)
    assert apart([3]) < 1e-10 and apart([3, 6, 9]) > 1e-3

@pytest.mark.parametrize("reducer", ["dyvit", "ats", "sit", "patchmerger"])
def test_at_least_one_token(reducer):
    "Published counts reach zero at a small keep rate; the default is the published model of a rate that leaves one."
    keep, at = .1, [3, 6, 9]
    model = default("deit", reducer, "base", keep, at)
    assert difference(model, reducer, "base", [max(keep ** (s + 1), 1 / 64) for s in range(3)], at) < 1e-10

@pytest.mark.parametrize("reducer", ["topk", "evit"])
def test_nothing_to_drop(reducer):
    "A keep rate at which no token is dropped stops the published code (Q1); the default is the model that keeps all."
    with pytest.raises(naive.Crash):
        difference(default("deit", reducer, "clca", .999, [3, 6]), reducer, "clca", .999, [3, 6])
    assert difference(default("deit", reducer, "clca", .999, [3, 6]), reducer, "clca", 1., [3, 6]) < 1e-10

def test_dpcknn_leaves_clusters_of_one_token_alone():
    "Published, each token is divided by its weight + 1e-6 then, and tokens change places."
    keep, at = .25, [2, 5, 8, 10] # 16 and 5 tokens; then 5 of 5, and 1
    assert 1e-10 < difference(default("deit", "dpcknn", "base", keep, at), "dpcknn", "base", keep, at) < 1e-5

VIT, NO_CLS = "vit_tiny_patch16_224", dict(class_token=False, no_embed_class=True)
MAKES = dict( # backbone, options
    vit=(VIT, {}), registers=("vit_small_patch14_reg4_dinov2", dict(head="linear")),
    layerscale=("deit3_small_patch16_224", {}),
    registers_average=("vit_small_patch14_reg4_dinov2", dict(global_pool="avg", head="linear")),
    norms=(VIT, dict(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True)),
    no_bias=(VIT, dict(proj_bias=False, qkv_bias=False)), gate=(VIT, dict(scale_attn_norm=True)),
    average=(VIT, dict(global_pool="avg", head="linear")),
    no_cls=(VIT, NO_CLS | dict(global_pool="avg", head="linear")),
    no_cls_cla=(VIT, NO_CLS | dict(global_pool="avg", reg_tokens=4)),
    map=(VIT, dict(global_pool="map", reg_tokens=4, head="linear")),
    no_cls_map=(VIT, NO_CLS | dict(global_pool="map", head="linear")),
    average_of_all=(VIT, dict(global_pool="avg", reg_tokens=4, pool_include_prefix=True, head="linear")),
    distilled=("deit_tiny_distilled_patch16_224", dict(head="linear")), rope=("vit_small_patch16_dinov3", {}),
    eva=("eva02_tiny_patch14_224", dict(head="linear")),
    eva_bias_apart=("eva02_tiny_patch14_224", dict(head="linear")))

WITHOUT_CLS = [m for m, (_, options) in MAKES.items() if NO_CLS.items() <= options.items()]

def made(make: str, reducer: str, **options) -> nn.Module:
    """A small model in double precision; a gate and a separate bias are what timm's attention can have, and no
    registered name asks for."""
    backbone, own = MAKES[make]
    model = build(reducer, backbone, **own | options)
    if make == "gate":
        for block in model.backbone.blocks: block.attn.gate = nn.Linear(model.backbone.embed_dim, block.attn.attn_dim)
        perturbed(model)
    if make == "eva_bias_apart":
        for block in model.backbone.blocks: block.attn.qkv_bias_separate = True
    return model.double()

def run(model: nn.Module, reducer: str, at: tuple[int, ...] = (1, 2), **cached):
    """Logits of the default and of the unfused order, what attention did in each block, and what the reducers saw and
    decided."""
    with torch.no_grad(), unfused.recorded(model) as decided: logits = model(IMAGE)
    plainly, attended = unfused.forward(model, IMAGE, decided, at=at, before=reducer in BEFORE,
                                        merging=reducer == "tome", **cached)
    return logits, plainly, attended, decided

@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("make", MAKES)
def test_unfused(make, reducer):
    "Backbones of every make, by timm's own modules; the decisions are those of the model."
    for cached in ({}, dict(protect=True, num_clr=2), dict(at=(0, 2, 4), depth=6, recover_last=False, gap=False),
                   dict(cache=False)):
        known = {n: v for n, v in cached.items() if n in ("at", "protect", "recover_last")}
        logits, plainly, *_ = run(made(make, reducer, **cached), reducer, **known)
        assert near(logits, plainly), (cached, (logits - plainly).abs().max())

def test_tome_whose_first_stage_merges_nothing():
    "The published code has no sizes to go on with then, and stops; the default counts one patch a token."
    logits, plainly, *_ = run(made("vit", "tome", keep=[1., .5]), "tome")
    assert near(logits, plainly)

def test_the_mean_of_a_single_token():
    "ATS leaves one token, which is the mean that a model without CLS reads."
    logits, plainly, _, decided = run(made("no_cls", "ats", keep=.01, cache=False), "ats")
    assert decided[2][1].idx.shape == (1, 1) and near(logits, plainly)

@pytest.mark.parametrize("reducer", ["topk", "evit", "ats", "tome"])
@pytest.mark.parametrize("make", MAKES)
def test_what_a_reducer_sees(make, reducer):
    "Queries, keys and values give timm's attention and its output; a merged token attracts as many as it stands for."
    model = made(make, reducer)
    _, _, attended, decided = run(model, reducer)
    assert len(decided) == 2
    for i, (view, _) in decided.items():
        size = torch.ones(1, view.x.shape[1]) if view.size is None else view.size
        logits = view.p.q @ view.p.k.transpose(2, 3) * model.backbone.blocks[i].attn.scale
        assert near((logits + size.log()[:, None, None]).softmax(-1), attended[i].weight)
        assert near((attended[i].weight @ view.p.v).transpose(1, 2).flatten(2), attended[i].heads)

@torch.no_grad()
def test_the_score_that_is_not_named():
    "What CLS attends to, or in models without CLS what the mean query attends to."
    for make, score in (("vit", "cls"), ("no_cls", "mean")):
        assert torch.equal(made(make, "evit")(IMAGE), made(make, "evit", score=score)(IMAGE))

def sampled(score: torch.Tensor, k: int) -> list[int]: # [n]
    "ATS: the tokens nearest to a grid on the cumulative score."
    grid = torch.arange(1 / (2 * k), (2 * k - 1) / (2 * k), 2 / (2 * k)).double()
    total = (score / (score.sum() + 1e-6)).cumsum(0)
    return sorted({(total - point).abs().argmin().item() for point in grid})

SCORED = [(m, s) for m in MAKES for s in ("cls", "mean", "update") if s != "cls" or m not in WITHOUT_CLS]

@pytest.mark.parametrize("reducer", ["topk", "evit", "ats"])
@pytest.mark.parametrize("make,score", SCORED)
def test_scores(make, score, reducer):
    """By what CLS attends to; by what the mean query attends to, which is the softmax of the mean logarithm over rows
    of attention; or by the length of what attention adds. The first two are weighted by values in ATS."""
    model = made(make, reducer, score=score)
    _, _, attended, decided = run(model, reducer)
    for stage, (i, (view, plan)) in enumerate(decided.items()):
        weight, n = attended[i].weight, view.hi - view.lo
        row = weight[:, :, 0] if score == "cls" else weight.log().mean(2).softmax(-1)
        if reducer == "ats": row = (row * view.p.v.norm(dim=-1)).sum(1)
        else: row = row.mean(1)
        if score == "update": row = attended[i].update.norm(dim=-1)
        row = row[0, view.lo:view.hi]
        if reducer == "ats": assert plan.idx[0].tolist() == sampled(row, int(16 * .5 ** (stage + 1)) + 1)
        else:
            kept, dropped = row.argsort(descending=True).split([m := -(-n // 2), n - m])
            assert plan.idx[0].tolist() == kept.tolist()
            if reducer == "evit":
                share = row / row.sum() if score == "update" else row
                assert near(plan.weight[0, dropped], share[dropped]) and (plan.weight[0, kept] == 0).all()

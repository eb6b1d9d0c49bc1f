"What holds for every reducer, whatever the schedule, the cache and the head."
import math
from collections import Counter
import pytest, timm, torch
from hypothesis import given, settings, strategies as st
import models as small
from clca.reducers import names, tome
from clca.reducers.ats import grid
from clca.reducers.dyvit import DynamicViT, KeepPredictor, kept_count
from clca.tokens import Fuse, Merge, Mix, Select, Weigh, merge
from clca.tools.tracing import survival, trace
from models import noise

pytestmark = pytest.mark.usefixtures("one_thread")
P, D, PATCH = 16, 24, 4
TINY = dict(patch_size=PATCH, embed_dim=D, num_heads=2)
REDUCED = [n for n in names() if n != "none"]
each = pytest.mark.parametrize("reducer", REDUCED)

def images(b=3, scale=True):
    "Pictures of different contrast, so that ATS keeps different numbers of tokens."
    x = noise(b, (16, 16), dtype=torch.float64)
    return x * torch.logspace(-1, 1, b)[:, None, None, None] if scale else x

def build(reducer, backbone="vit_tiny_patch16_224", sharpness=2., **kw):
    "A small model in double precision, whose attention is sharp."
    return small.build(reducer, backbone, sharpness=sharpness,
                       **TINY | dict(image_size=16, at=(1, 2, 4), depth=6, keep=.1) | kw).double()

@st.composite
def schedules(draw, depths=st.integers(2, 13)):
    depth = draw(depths)
    at = sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1, max_size=min(depth, 4))))
    rate = st.sampled_from([.01, .1, .25, .5, .7, .9, .999])
    return dict(depth=depth, at=at, keep=draw(rate | st.lists(rate | st.just(1.), min_size=len(at), max_size=len(at))))

@st.composite
def models(draw, depths=st.integers(2, 13)):
    clr, gap = draw(st.sampled_from([(0, True), (1, True), (1, False), (2, True), (4, False), (4, True)]))
    choice = dict(head=st.sampled_from(["cla", "linear", "cla_last", "ifa"]), cache=st.booleans(),
                  recover_last=st.booleans(), protect=st.booleans(),
                  reg_tokens=st.sampled_from([0, 2]))
    return draw(schedules(depths)) | {k: draw(v) for k, v in choice.items()} | dict(num_clr=clr, gap=gap)

def recovery(kw):
    "Blocks after which the cache is given back."
    return sorted({*kw["at"]} | ({kw["depth"] - 2} if kw["recover_last"] else set())) if kw["cache"] else []

def rates(kw): return kw["keep"] if isinstance(kw["keep"], list) else [kw["keep"]] * len(kw["at"])

def left(reducer, n, stage, kw, start):
    "Tokens that a method leaves of `n` candidates, by its paper and the published code."
    keep, last = rates(kw)[stage], stage == len(kw["at"]) - 1
    same = len(set(rates(kw))) == 1
    total = [keep ** s if same else math.prod(rates(kw)[:s]) for s in (stage, stage + 1)]
    if keep == 1: return n
    if reducer in ("topk", "evit"): return n if (m := math.ceil(keep * n)) >= n else m + (reducer == "evit")
    if reducer == "dyvit": return min(max(int((n - 1) * keep) if kw["cache"] else int(start * total[1]), 1), n)
    if reducer == "dpcknn": return min(max(int(P * total[1]), 1 if last else 5), n)
    if reducer == "tome": return n - max(0, min(int(P * total[0]) - int(P * total[1]), n // 2))
    if reducer == "ats": return min(len(grid(max(int(P * total[1]) + 1, 2), torch.ones(1))), n)
    return max(int(P * total[1]), 1)

def expected(reducer, kw, observed):
    "Tokens entering and leaving every block; for ATS `observed` is taken where it is within the bound."
    clr, prefix = kw["num_clr"] if kw["cache"] else 0, 1 + kw["reg_tokens"]
    lo = prefix if kw["protect"] or reducer in ("dpcknn", "sit", "patchmerger") else 1
    tail = clr if kw["protect"] or reducer == "dpcknn" else 0
    n, memory, into, out = P + prefix - lo + clr - tail, 0, [], []
    start, before = n, reducer in ("dyvit", "dpcknn", "sit", "patchmerger")
    recover = recovery(kw)
    for i in range(kw["depth"]):
        m = left(reducer, n, kw["at"].index(i), kw, start) if i in kw["at"] else n
        if reducer == "ats" and i in kw["at"] and 1 <= observed[i] - lo - tail <= m: m = observed[i] - lo - tail
        into.append(lo + (m if before else n) + tail); out.append(lo + m + tail); n = m
        if not kw["cache"]: continue
        if i in recover:
            if reducer == "dpcknn": tail += memory
            else: n += memory
            memory = 0
        if i < recover[-1]: memory += clr + kw["gap"]
    return into, out

def sources(t, reducer):
    for kept in t.kept if reducer in ("topk", "evit", "dyvit", "ats") else []:
        for row in kept.tolist():
            patches = [p for p in row if p >= 0]
            assert len(set(patches)) == len(patches) and all(p < P for p in patches)

@each
@settings(max_examples=14)
@given(kw=models())
def test_any_schedule(reducer, kw):
    model, x = build(reducer, **kw), images(2)
    state = torch.get_rng_state()
    with torch.no_grad(): once, twice = model(x), model(x)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(once, twice) and once.isfinite().all()
    t = trace(model, x)
    assert torch.allclose(t.logits, once, atol=1e-9)
    assert (t.tokens_in, t.tokens_out) == expected(reducer, kw, t.tokens_out)
    sources(t, reducer)
    assert all(s.min() >= 0 and s.max() <= 1 for s in survival(t, (4, 4)))

def follow(plan, rows):
    "What one image's plan does to its tokens, each a dict patch → share; one token after the other."
    if plan is None: return rows
    def total(pairs):
        out = Counter()
        for w, r in pairs:
            for p, s in r.items(): out[p] += w * s
        return out
    if isinstance(plan, (Select, Fuse)):
        valid = [True] * len(plan.idx) if isinstance(plan, Fuse) or plan.valid is None else plan.valid.tolist()
        new = [rows[i] if v else {} for i, v in zip(plan.idx.tolist(), valid)]
        return new + ([total(zip(plan.weight.tolist(), rows))] if isinstance(plan, Fuse) else [])
    if isinstance(plan, Mix): return [total(zip(w, rows)) for w in plan.weight.tolist()]
    slot, w = plan.slot.tolist(), plan.share.tolist()
    clusters = [[n for n in range(len(rows)) if slot[n] == m] for m in range(len(plan.place))]
    return [total((w[n], rows[n]) for n in c) for c in clusters]

@each
@settings(max_examples=6)
@given(kw=models(st.integers(3, 7)))
def test_trace_composes(reducer, kw):
    model, plans = build(reducer, **kw), {}
    for s in model.stages:
        s.register_forward_hook(lambda s, args, plan: plans.update({s.stage.block: (args[0], plan)}))
    t = trace(model, images(2))
    prefix, clr, u = 1 + kw["reg_tokens"], *((kw["num_clr"], kw["num_clr"] + kw["gap"]) if kw["cache"] else (0, 0))
    for b in range(2):
        rows, memory, stage = [{}] * prefix + [{p: 1.} for p in range(P)] + [{}] * clr, 0, 0
        for i in range(kw["depth"]):
            fused = 0
            if i in plans:
                view, plan = plans[i]
                one = None if plan is None else type(plan)(*(f[b] if isinstance(f, torch.Tensor) else f for f in plan))
                rows = rows[:view.lo] + follow(one, rows[view.lo:view.hi]) + rows[view.hi:]
                fused = isinstance(plan, Fuse)
            if i in kw["at"]:
                shares = torch.tensor([[r.get(p, 0.) for p in range(P)] for r in rows], dtype=torch.float64)
                assert torch.allclose(t.shares[stage][b], shares, atol=1e-12)
                kept = t.kept[stage][b]
                if i in plans and isinstance(plan, (Select, Fuse)):
                    at = rows[view.lo:len(rows) - (view.x.shape[1] - view.hi) - fused]
                    want = [next((p for p, s in r.items() if s == 1), -1) if len(r) == 1 else -1 for r in at]
                    assert kept.tolist() == want
                elif i in plans and isinstance(plan, (Merge, Mix)):
                    end = len(rows) - (view.x.shape[1] - view.hi)
                    assert torch.equal(kept, shares[view.lo:end].argmax(0))
                stage += 1
            if i in recovery(kw):
                at = len(rows) - (clr if kw["protect"] else 0)
                rows, memory = rows[:at] + [{}] * memory + rows[at:], 0
            if kw["cache"] and i < recovery(kw)[-1]: memory += u

@pytest.mark.parametrize("reducer", ["none", "topk", "evit", "dyvit", "dpcknn", "sit", "patchmerger"])
@settings(max_examples=6)
@given(kw=models(st.integers(2, 8)), seed=st.integers(0, 99))
def test_order_of_patches_is_irrelevant(reducer, kw, seed):
    """Without positions. ATS walks along the sequence and ToMe splits it in even and odd: they promise nothing of the
    kind."""
    model, x, perm = build(reducer, **kw), images(2, scale=False), torch.randperm(P, generator=torch.manual_seed(seed))
    torch.nn.init.zeros_(model.backbone.pos_embed)
    patches = torch.nn.functional.unfold(x, PATCH, stride=PATCH)[..., perm]
    t, s = trace(model, x), trace(model, torch.nn.functional.fold(patches, (16, 16), PATCH, stride=PATCH))
    assert torch.allclose(t.logits, s.logits, atol=1e-8)
    if reducer in ("topk", "evit", "dyvit"):
        for a, b in zip(t.kept, s.kept):
            assert torch.equal(a.sort(1).values, torch.where(b < 0, b, perm[b.clamp(min=0)]).sort(1).values)

@settings(max_examples=30)
@given(n=st.integers(1, 40), seed=st.integers(0, 99), data=st.data())
def test_tome_conserves(n, seed, data):
    "The size-weighted sum and the number of patches stay; the order within A and within B is irrelevant."
    g, r = torch.manual_seed(seed), data.draw(st.integers(0, n // 2))
    x, size = torch.randn(2, n, 5, generator=g, dtype=torch.float64), torch.randint(1, 9, (2, n), generator=g).double()
    plan = tome(x, r, size)
    new = plan.sum(size)
    assert new.shape == (2, n - r) and torch.equal(new.sum(1), size.sum(1)) and (new > 0).all()
    assert torch.allclose((plan(x) * new.unsqueeze(2)).sum(1), (x * size.unsqueeze(2)).sum(1))
    assert all(len(set(row.tolist())) == n - r and max(row) < n for row in plan.place)
    perm = torch.empty(n, dtype=torch.long)
    for k in (0, 1): perm[k::2] = torch.arange(k, n, 2)[torch.randperm(len(range(k, n, 2)), generator=g)]
    groups = lambda slot: {frozenset(i for i in range(n) if slot[i] == m) for m in slot}
    moved = tome(x[:, perm], r, size[:, perm]).slot
    back = torch.empty_like(moved); back[:, perm] = moved
    for a, b in zip(plan.slot.tolist(), back.tolist()): assert groups(a) == groups(b)

@pytest.mark.parametrize("reducer", names())
@settings(max_examples=8)
@given(kw=models(st.integers(2, 8)), score=st.sampled_from(["cls", "mean", "update"]))
def test_an_image_is_alone_in_its_batch(reducer, kw, score):
    model, x = build(reducer, score=score, **kw), images(3)
    with torch.no_grad(): assert torch.allclose(model(x), torch.cat([model(i[None]) for i in x]), atol=1e-8)

@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("pool,head", [("avg", "linear"), ("map", "linear"), ("avg", "cla")])
def test_without_cls(reducer, pool, head):
    "Models without CLS, with a cache: alone and in a batch, gradients everywhere."
    model, x = build(reducer, keep=.5, global_pool=pool, class_token=False, no_embed_class=True, head=head), images(3)
    with torch.no_grad(): assert torch.allclose(model(x), torch.cat([model(i[None]) for i in x]), atol=1e-8)
    model.train()(x).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

@pytest.mark.parametrize("score", ["cls", "mean", "update"])
def test_ats_keeps_other_numbers_for_other_images(score):
    "In a batch there is padding, which changes nothing for anyone."
    model, x = build("ats", keep=.9, score=score), images(3)
    counts = (trace(model, x).kept[0] >= 0).sum(1).tolist()
    assert len(set(counts)) > 1
    with torch.no_grad(): assert torch.allclose(model(x), torch.cat([model(i[None]) for i in x]), atol=1e-8)

@pytest.mark.parametrize("reducer", names())
def test_cla_last_reads_the_end(reducer):
    model = build(reducer, head="cla_last")
    with torch.no_grad():
        out = model(images(2), full=True)
        assert torch.allclose(model.head(out.tokens[:, :1].transpose(1, 2)), out.logits, atol=1e-10)

def test_padding_holds_no_patch():
    "What fills up an image with few tokens repeats one of them, and has no share of its patch."
    model, x = build("ats", keep=.5), images(3)
    t, alone = trace(model, x), [trace(model, i[None]) for i in x]
    for s, (shares, kept) in enumerate(zip(t.shares, t.kept)):
        assert (kept < 0).any(), "nothing to trip over"
        assert torch.equal(shares.sum(1), torch.cat([a.shares[s].sum(1) for a in alone]))
    for shares, a in zip(t.shares[0], alone):
        n = a.shares[0].shape[1]
        assert torch.equal(shares[:n], a.shares[0][0]) and not shares[n:].any()

@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("keep", [.5, .01])
@pytest.mark.parametrize("head", ["cla", "linear"])
def test_gradients(reducer, keep, head):
    """Finite, and non-zero for all that must learn: every block, the registers, the head, and what the method has of
    its own."""
    model, x = build(reducer, keep=keep, head=head, num_clr=2).train(), images(4)
    out = model(x, full=True)
    loss = torch.nn.functional.cross_entropy(out.logits, torch.tensor([0, 1, 2, 0]))
    if model.has_auxiliary_loss: loss = loss + model.auxiliary_loss(out)
    loss.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    must = {n for n, p in model.named_parameters() if n.split(".")[0] in ("cache", "head")
            or n.startswith("backbone.patch_embed.proj.weight") or ".mlp.fc1.weight" in n}
    own = {"dyvit": "stages.{}.in_conv.1.weight", "dpcknn": "stages.{}.score.weight",
           "sit": "stages.{}.weight.1.weight", "patchmerger": "stages.{}.queries"}
    if reducer in own:
        must |= {own[reducer].format(s) for s in ((0, 1, 2) if keep == .5 or reducer == "dyvit" else (0,))}
    assert must <= moved, must - moved

@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", [.5, .01])
def test_half_precision(reducer, dtype, keep):
    # the gradient of sharp attention overflows float16
    model, x = build(reducer, keep=keep, sharpness=1.).to(dtype), images(3).to(dtype)
    with torch.no_grad(): assert model(x).isfinite().all()
    model.float().train()
    with torch.autocast("cpu", dtype): out = model(x.float(), full=True); loss = out.logits.float().square().mean()
    if model.has_auxiliary_loss: loss = loss + model.auxiliary_loss(out)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

@pytest.mark.parametrize("reducer", names())
@pytest.mark.parametrize("backbone",
                         ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"])
def test_keep_all_is_timm(reducer, backbone):
    "Bit by bit."
    model = small.build(reducer, backbone, keep=1., head="linear", cache=False, depth=3, image_size=16, **TINY)
    plain = timm.create_model(backbone, num_classes=7, depth=3, img_size=16, **TINY).eval()
    plain.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        x = images(2).float()
        assert torch.equal(model(x), plain(x)) and torch.equal(model(x, full=True).logits, plain(x))

def decide(self, view):
    "In place of chance: what inference would keep of the living."
    if not self.training: return DynamicViT.forward(self, view)
    alive = view.body.new_ones(view.body.shape[:2]) if view.size is None else view.cut(view.size)
    score = KeepPredictor.forward(self, view.body, alive)[..., 0].masked_fill(alive == 0, -math.inf)
    m = kept_count(self, view._replace(hi=view.lo + int(alive[0].sum())))
    return Weigh(torch.zeros_like(alive).scatter(1, score.topk(m, 1).indices, 1.), alive, self.stage.keep)

@settings(max_examples=25)
@given(kw=models())
def test_dynamicvit_trains_what_it_does(kw):
    "With the same decisions, all tokens under a policy give the logits that the tokens left over give."
    model, x = build("dyvit", **kw), images(2)
    with torch.no_grad():
        want = model(x)
        model.train()
        model.head.eval()
        for s in model.stages:
            if isinstance(s, DynamicViT): s.forward = decide.__get__(s)
        assert torch.allclose(model(x), want, atol=1e-8)

@each
@settings(max_examples=6)
@given(kw=models(st.integers(3, 8)))
def test_protected_tokens(reducer, kw):
    """Blocks that change nothing show whose token is where: CLS and registers first, live registers of the cache last,
    what the cache gave before them."""
    kw |= dict(protect=True, cache=True, reg_tokens=2)
    model, x, seen = build(reducer, **kw), images(2), []
    for block in model.backbone.blocks:
        for p in (*block.attn.proj.parameters(), *block.mlp.fc2.parameters()): torch.nn.init.zeros_(p)
    for s in model.stages: s.register_forward_pre_hook(lambda s, args: seen.append(args[0]))
    with torch.no_grad(): out, first = model(x, full=True), model.backbone._pos_embed(model.backbone.patch_embed(x))
    clr = (model.cache.clr + model.cache.pos).expand(2, -1, -1) if kw["num_clr"] else first[:, :0]
    c, u = kw["num_clr"], kw["num_clr"] + kw["gap"]
    assert torch.equal(out.tokens[:, :3], first[:, :3]) and torch.equal(out.tokens[:, out.tokens.shape[1] - c:], clr)
    for view in seen:
        assert view.lo == 3 and view.x.shape[1] - view.hi >= c and torch.equal(view.x[:, view.x.shape[1] - c:], clr)
        if reducer != "dpcknn": assert view.x.shape[1] - view.hi == c
    if recovery(kw)[-1] == kw["depth"] - 2 and c:
        back = out.tokens[:, out.tokens.shape[1] - c - u:out.tokens.shape[1] - c]
        assert torch.equal(back[:, u - c:], clr), "registers that were put aside come back right before the live ones"

def test_update_norms_are_shares_when_they_fuse():
    "The fused token is no larger than the tokens that it is made of, in half precision too."
    model, seen = build("evit", score="update", keep=.25, head="linear", cache=False), []
    model.stages[0].register_forward_hook(lambda m, args, plan: seen.append(plan.weight.sum(1)))
    with torch.no_grad(): assert model(images(3)).isfinite().all() and model.half()(images(3).half()).isfinite().all()
    assert (seen[0] < 1).all()

def test_dpcknn_learns_where_nothing_is_merged():
    "Every parameter has a gradient, or distributed training stops."
    model = build("dpcknn", keep=.05).train()
    model(images(4)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())

@pytest.mark.parametrize("reducer", ["tome", "dpcknn", "sit", "patchmerger"])
def test_kept_has_one_form(reducer):
    "For merging methods always the token that every patch went to, even where a stage keeps all."
    assert [tuple(k.shape) for k in trace(build(reducer, keep=[.5, 1., .5]), images(2)).kept] == [(2, P)] * 3

@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(.1, 9)), min_size=4, max_size=9))
def test_merge_is_a_weighted_mean(tokens):
    "Written out token by token, for slots in any order and sizes of any kind."
    tokens = [*tokens, *((k, 1.) for k in range(4))] # every slot has a token
    slot, weight = torch.tensor([[s for s, _ in tokens]]), torch.tensor([[w for _, w in tokens]])
    x = torch.randn(1, len(tokens), 3, generator=torch.manual_seed(0))
    for eps in (0., 1e-6):
        out = merge(slot, weight, torch.zeros(1, 4, dtype=torch.long), eps)(x)
        for k in range(4):
            mine = [n for n, (s, _) in enumerate(tokens) if s == k]
            total = sum(weight[0, n] for n in mine) + eps
            assert torch.allclose(out[0, k], sum(weight[0, n] * x[0, n] for n in mine) / total, atol=1e-5)

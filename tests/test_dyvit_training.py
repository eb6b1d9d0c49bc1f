"DynamicViT in training, against the rules of the published code written down once more with plain operations."
import math
from dataclasses import replace
import numpy as np, pytest, torch, torch.nn.functional as F
from clca.tools.checkpoints import load_checkpoint, to_reference_state
from clca.model import create_model
from clca.reducers.base import View
from clca.reducers.dyvit import DynamicViT, KeepPredictor, distillation_loss, policy_softmax, ratio_loss
from clca.schedule import make_stages
from clca.tokens import Weigh
from clca.training.loop import train
from models import build

pytestmark = pytest.mark.usefixtures("one_thread")

def draw(*shape): return torch.randn(*shape, generator=torch.manual_seed(3), dtype=torch.float64)

@pytest.mark.parametrize("eps", [0., 1e-6])
def test_policy_softmax(eps):
    logits, policy = draw(2, 3, 5, 5).float(), torch.tensor([[1., 0, 1, 1, 0], [1., 1, 1, 0, 1]])
    a = np.zeros((2, 3, 5, 5))
    for b, h, q in np.ndindex(2, 3, 5):
        row = logits[b, h, q].double().numpy()
        e = np.exp(row - row.max()) * [1 if k == q else policy[b, k].item() for k in range(5)]
        a[b, h, q] = (e + eps / 5) / (e.sum() + eps)
    assert np.allclose(policy_softmax(logits, policy, eps).numpy(), a, atol=1e-7)

def test_the_dropped_token_that_was_largest():
    "The row's maximum counts dropped tokens as well, so that nothing overflows; what is left may be tiny."
    a = policy_softmax(torch.tensor([[[[0., 50.], [0., 0.]]]]), torch.tensor([[1., 0.]]))
    assert a[0, 0, 0].tolist() == [1, 0] and a.isfinite().all()

def test_predictor():
    "Some, all, one or none of the tokens are alive."
    prev = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
                        dtype=torch.float64)
    p, x = KeepPredictor(8).double(), draw(4, 6, 8)
    for q in p.parameters(): torch.nn.init.normal_(q, std=.5)
    w = {n: q.detach().numpy() for n, q in p.named_parameters()}
    gelu = lambda z: z * .5 * (1 + np.vectorize(math.erf)(z / 2 ** .5))
    for b in range(4):
        z = x[b].numpy()
        z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
        z = z * w["in_conv.0.weight"] + w["in_conv.0.bias"]
        h = gelu(z @ w["in_conv.1.weight"].T + w["in_conv.1.bias"])
        everyone = sum(prev[b, n].item() * h[n, 4:] for n in range(6)) / max(prev[b].sum().item(), 1) + 1e-6
        y = np.stack([np.concatenate([h[n, :4], everyone]) for n in range(6)])
        for i in (0, 2, 4):
            y = y @ w[f"out_conv.{i}.weight"].T + w[f"out_conv.{i}.bias"]
            if i < 4: y = gelu(y)
        y = y - np.log(np.exp(y).sum(1, keepdims=True))
        assert np.allclose(p(x, prev)[b].detach().numpy(), y, rtol=0, atol=1e-12)

def test_decisions_are_hard_with_a_soft_gradient():
    """Gumbel noise is minus the logarithm of an exponential; with two choices the softmax is a sigmoid of the
    difference."""
    r = DynamicViT(8, make_stages(.5, (0,), 1)[0], 6).train()
    torch.manual_seed(0)
    for q in r.parameters(): torch.nn.init.normal_(q, std=.5)
    prev = torch.tensor([[1., 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]])
    x, c = draw(3, 6, 8).float(), draw(3, 6).float()
    logp = KeepPredictor.forward(r, x, prev).detach()
    torch.manual_seed(11); plan = r(View(x, 0, 6, 6, 6, size=prev, body=x))
    torch.manual_seed(11); g = -torch.empty(3, 6, 2).exponential_().log()
    y = torch.sigmoid(logp[..., 0] + g[..., 0] - logp[..., 1] - g[..., 1])
    assert torch.allclose(plan.decision, (y > .5) * prev, atol=1e-6) and torch.equal(plan.alive, prev)
    (plan.decision * c).sum().backward()
    slope = (c * prev * y * (1 - y)).sum()
    assert torch.allclose(r.out_conv[4].bias.grad, torch.stack([slope, -slope]), atol=1e-5)

def test_ratio_loss():
    d0, d1 = torch.tensor([[1., 1, 0, 0], [1, 0, 0, 0]]), torch.tensor([[1., 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1]])
    published = [Weigh(d0, None, .5), Weigh(d1, None, .25)]
    by_hand = np.mean([np.mean([(2/4 - .5) ** 2, (1/4 - .5) ** 2]), np.mean([(3/6 - .25) ** 2, (2/6 - .25) ** 2])])
    assert ratio_loss(published).item() == pytest.approx(by_hand)
    alive = torch.cat([d0, torch.ones(2, 2)], 1)
    ours = [Weigh(d0, torch.ones(2, 4), .5), Weigh(d1, alive, .5)]
    by_hand = np.mean([np.mean([0, (1/4 - .5) ** 2]), np.mean([(3/4 - .5) ** 2, (2/3 - .5) ** 2])])
    assert ratio_loss(ours).item() == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="train"): ratio_loss([])

def by_hand(w, x, at, keep, reference, heads=2, eps=1e-6):
    "A forward in training with cache (one register, pooled token), DeiT, by published names: logits and decisions."
    ln = lambda n, t, e=1e-6: F.layer_norm(t, t.shape[-1:], w[f"{n}.weight"], w[f"{n}.bias"], e)
    lin = lambda n, t: t @ w[f"{n}.weight"].T + w[f"{n}.bias"]
    B, depth = len(x), 1 + max(int(n.split(".")[1]) for n in w if n.startswith("blocks."))
    k = w["patch_embed.proj.weight"]
    t = F.conv2d(x, k, w["patch_embed.proj.bias"], k.shape[-1]).flatten(2).transpose(1, 2)
    t = torch.cat([w["cls_token"].expand(B, -1, -1), t, w["clr"].expand(B, -1, -1)], 1) + w["pos_embed"]
    prev, policy, cache, decisions = torch.ones(B, t.shape[1] - 1), torch.ones(B, t.shape[1]), [], []
    pool_end, recover = t.shape[1] - 1, sorted({*at, depth - 2})
    for i in range(depth):
        if i in at:
            n = f"score_predictor.{at.index(i)}"
            h = F.gelu(lin(f"{n}.in_conv.1", ln(f"{n}.in_conv.0", t[:, 1:], 1e-5)))
            half = h.shape[2] // 2
            mean = (h[..., half:] * prev[..., None]).sum(1, keepdim=True) / prev.sum(1)[:, None, None] + 1e-6
            z = torch.cat([h[..., :half], mean.expand(-1, h.shape[1], -1)], -1)
            for j in (0, 2, 4): z = lin(f"{n}.out_conv.{j}", z) if j == 0 else lin(f"{n}.out_conv.{j}", F.gelu(z))
            noisy = z.log_softmax(-1).float() - torch.empty(B, t.shape[1] - 1, 2).exponential_().log()
            prev = (noisy[..., 0] > noisy[..., 1]) * prev
            decisions.append(prev); policy = torch.cat([torch.ones(B, 1), prev], 1)
        N, D = t.shape[1:]
        qkv = lin(f"blocks.{i}.attn.qkv", ln(f"blocks.{i}.norm1", t))
        q, key, v = qkv.view(B, N, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        logits = q @ key.transpose(2, 3) / (D // heads) ** .5
        seen = torch.stack([torch.stack([policy[b].where(torch.arange(N) != r, torch.ones(())) for r in range(N)])
                            for b in range(B)])
        e = (logits - logits.amax(-1, keepdim=True)).exp() * seen[:, None]
        small = eps if reference else 0.
        a = (e + small / N) / (e.sum(-1, keepdim=True) + small)
        t = t + lin(f"blocks.{i}.attn.proj", (a @ v).transpose(1, 2).reshape(B, N, D))
        t = t + lin(f"blocks.{i}.mlp.fc2", F.gelu(lin(f"blocks.{i}.mlp.fc1", ln(f"blocks.{i}.norm2", t))))
        if i in recover:
            pool_end, m = N, sum(c.shape[1] for c in cache)
            if m:
                t, prev, policy = (torch.cat(parts, 1) for parts in ([t, *cache], [prev, torch.ones(B, m)],
                                                                     [policy, torch.ones(B, m)]))
            cache = []
        if i < recover[-1]:
            alive = torch.ones_like(policy[:, 1:pool_end]) if reference else policy[:, 1:pool_end]
            cache += [(t[:, 1:pool_end] * alive[..., None]).sum(1, keepdim=True) / alive.sum(1)[:, None, None],
                      t[:, -1:]]
    return lin("head", ln("norm", t)[:, 0]), decisions

@pytest.mark.parametrize("reference", [True, False])
def test_training_forward(reference):
    """All of it: policy from the first block on, decisions and their composition, what the cache gives back, pooling,
    loss."""
    at, keep = (1, 3), .5
    model = build("dyvit", at=at, keep=keep, head="linear", reference=reference, image_size=16, patch_size=4,
                  embed_dim=24, depth=7).double().train()
    x, w = draw(3, 3, 16, 16), {n: p.detach() for n, p in to_reference_state(model).items()}
    torch.manual_seed(5); out = model(x, full=True)
    torch.manual_seed(5); logits, decisions = by_hand(w, x, at, keep, reference)
    assert [d.shape[1] for d in decisions] == [17, 19]
    assert all(0 < d.sum() < d.numel() for d in decisions), "a test of decisions needs some"
    for ours, hand in zip(out.decisions, decisions): assert torch.allclose(ours.decision, hand.double(), atol=1e-6)
    assert torch.allclose(out.logits, logits, atol=1e-5)
    if reference: loss = np.mean([((d.mean(1) - keep ** (s + 1)) ** 2).mean().item() for s, d in enumerate(decisions)])
    else:
        alive = [torch.ones(3, 17), torch.cat([decisions[0], torch.ones(3, 2)], 1)]
        loss = np.mean([((d.sum(1) / a.sum(1) - keep) ** 2).mean().item() for d, a in zip(decisions, alive)])
    assert model.auxiliary_loss(out).item() == pytest.approx(2 * loss, abs=1e-6), "weight 2 as published"

def test_the_loss_teaches_the_keep_rate():
    "From keeping half, a few steps lead to the rates that inference will use."
    torch.manual_seed(0)
    model = create_model("deit_tiny_patch16_224", 4, reducer="dyvit", keep=.25, at=(1, 2), head="linear",
                         image_size=32, patch_size=4, embed_dim=24, num_heads=2, depth=4, cache=False).train()
    x, optimizer = torch.randn(8, 3, 32, 32), torch.optim.Adam(model.stages.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad(); out = model(x, full=True); model.auxiliary_loss(out).backward(); optimizer.step()
    shares = [(d.decision.sum() / d.alive.sum()).item() for d in out.decisions]
    assert shares == pytest.approx([.25, .25], abs=.08), shares

def test_distillation_by_hand():
    z, zt, t, tt = draw(2, 3), 2 * draw(2, 3), draw(2, 4, 5), draw(2, 4, 5).flip(1)
    kept = torch.tensor([[1., 0, 1, 0], [0, 1, 0, 0]])
    p, pt = (np.exp(a.numpy()) / np.exp(a.numpy()).sum(1, keepdims=True) for a in (z, zt))
    kl = (pt * (np.log(pt) - np.log(p))).sum() / 2
    norm = lambda a: (a.numpy() - a.numpy().mean(-1, keepdims=True)) / np.sqrt(a.numpy().var(-1, keepdims=True) + 1e-5)
    error = ((norm(t) - norm(tt)) ** 2).mean(-1)
    want = .5 * kl + .5 * np.mean([error[0, 0], error[0, 2], error[1, 1]])
    assert distillation_loss(z, t, zt, tt, kept).item() == pytest.approx(want)

def test_a_teacher_in_training(tmp_path):
    """A run without reduction teaches a run of DynamicViT: another result than without, and the teacher stays as it
    was."""
    from tiny import RECIPE, data
    build = dict(backbone="deit_tiny_patch16_224", num_classes=3, image_size=16, patch_size=4, embed_dim=16,
                 num_heads=2, depth=4, at=[1, 2], keep=.5)
    recipe = replace(RECIPE, epochs=1, log_gradients=False)
    def run(name, reducer, **kw):
        torch.manual_seed(0)
        train(create_model(**build, reducer=reducer), data(), tmp_path/name, replace(recipe, **kw))
        return load_checkpoint(tmp_path/name).state_dict()
    before = run("teacher", "none")
    alone, taught = run("alone", "dyvit"), run("taught", "dyvit", teacher=str(tmp_path/"teacher"))
    assert any(not torch.equal(alone[n], taught[n]) for n in alone) and set(alone) == set(taught)
    assert all(torch.equal(t, before[n]) for n, t in load_checkpoint(tmp_path/"teacher").state_dict().items())
    with pytest.raises(ValueError, match="dyvit"): run("wrong", "topk", teacher=str(tmp_path/"teacher"))

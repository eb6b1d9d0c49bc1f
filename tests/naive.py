"""The published models once more, from their description alone and on published weights: an oracle where there are no
golden logits. Numbers name sections of that description (1 backbone, 2 methods, 3 cache, 4 head); Q and a number is
one of its list of defects, all kept."""
import math
from typing import NamedTuple
import torch, torch.nn.functional as F
from torch import Tensor

class Crash(Exception): "The published code fails here: there is nothing to compare with."

class Variant(NamedTuple):
    "What a model has of CLCA."
    head: str = "cla"; num_clr: int = 1; gap: bool = True; recover_last: bool = True

VARIANTS = dict(
    base=Variant("linear", 0, False), cla=Variant("cla", 0, False), clc=Variant("linear"), clca=Variant(),
    clca_clr4=Variant(num_clr=4),
    clca_gap_only=Variant(num_clr=0), clca_clr_only=Variant(gap=False), clca_no_last=Variant(recover_last=False),
    ifa=Variant("ifa"))
STAGES = dict( # layers of a stage, of width D and with m outputs
    dyvit=lambda D, m: {"in_conv.0": [D], "in_conv.1": [D, D], "out_conv.0": [D // 2, D],
                        "out_conv.2": [D // 4, D // 2], "out_conv.4": [2, D // 4]},
    sit=lambda D, m: {"weight.0": [D], "weight.1": [D // 2, D], "weight.3": [m, D // 2]},
    dpcknn=lambda D, m: {"score": [1, D]}, patchmerger=lambda D, m: {"norm": [D]})

def shapes(plain: dict[str, list[int]], reducer: str, variant: str, keep: float | list[float], at: list[int],
           patches: int = 64) -> dict:
    """Published names and shapes, from those of the plain ViT; a head over depth leaves a dead classifier (2, 3, 4,
    Q19)."""
    v, s, (C, D), p = VARIANTS[variant], dict(plain), plain["head.weight"], "ifa_head.0."
    L = (3 if reducer == "none" else len(at)) + 1
    def layers(prefix, named):
        kinds = lambda shape: (("weight", shape), ("bias", shape[:1]))
        return {f"{prefix}{n}.{kind}": part for n, shape in named.items() for kind, part in kinds(shape)}
    if v.num_clr: s["clr"] = [1, v.num_clr, D]
    if v.num_clr and s["pos_embed"][1] != patches: s["pos_embed"] = [1, s["pos_embed"][1] + v.num_clr, D]
    if v.head != "linear":
        s = {n: t for n, t in s.items() if not n.startswith("norm.")} | {"head.weight": [1000, D], "head.bias": [1000]}
    if v.head == "ifa": s |= layers(p, {"0": [1, L], "3": [D], "4": [C, D]})
    if v.head == "cla":
        s |= layers(p, {"0": [D], "1": [2 * D, 1, L], "2": [2 * D], "4": [C, 2 * D, 1]})
        for i, n in ((0, D), (2, 2 * D)):
            s |= {f"{p}{i}.running_mean": [n], f"{p}{i}.running_var": [n], f"{p}{i}.num_batches_tracked": []}
    for i in range(len(at) if reducer in STAGES else 0):
        p, m = f"{'score_predictor' if reducer == 'dyvit' else 'cluster_layers'}.{i}.", int(patches * total(keep, i))
        s |= layers(p, STAGES[reducer](D, m)) | dict(sit={p + "scale": [1, 1, 1]},
                                                     patchmerger={p + "queries": [m, D]}).get(reducer, {})
    return s

def rate(keep: float | list[float], s: int) -> float: return keep[s] if isinstance(keep, list) else keep
def total(keep: float | list[float], s: int) -> float: return keep[s] if isinstance(keep, list) else keep ** (s + 1)
def linear(w: dict, name: str, x: Tensor) -> Tensor: return F.linear(x, w[name + ".weight"], w[name + ".bias"])
def layer_scale(w: dict, name: str, x: Tensor) -> Tensor: return x * w[name + ".gamma"] if name + ".gamma" in w else x
def batch_norm(w: dict, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, *(w[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))
def layer_norm(w: dict, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)

def embed(w: dict, images: Tensor, eps: float) -> Tensor: # [B, N, D] CLS, registers, patches, CLR
    "1: there are positions of the patches alone, or of all tokens."
    kernel = w["patch_embed.proj.weight"]
    x = F.conv2d(images, kernel, w.get("patch_embed.proj.bias"), stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    some = lambda *names: [w[n].expand(len(x), -1, -1) for n in names if n in w]
    alone = w["pos_embed"].shape[1] == x.shape[1]
    x = torch.cat([*some("cls_token", "reg_token"), x + w["pos_embed"] if alone else x, *some("clr")], 1)
    if not alone: x = x + w["pos_embed"]
    return layer_norm(w, "norm_pre", x, eps) if "norm_pre.weight" in w else x

class Run:
    """One forward under way: the sequence, and all that travels with it. A plain ViT has stages at 3, 6 and 9 whatever
    `at` says (Q17)."""
    def __init__(self, w: dict, images: Tensor, reducer: str, variant: str, keep: float | list[float], at: list[int],
                 eps: float, heads: int, living: bool):
        self.living = living # what the cache gave back counts among the living
        self.w, self.reducer, self.variant = w, reducer, VARIANTS[variant]
        self.keep, self.eps, self.heads = keep, eps, heads
        self.at, self.depth = [3, 6, 9] if reducer == "none" else list(at), sum("attn.qkv.weight" in n for n in w)
        self.x = embed(w, images, eps)
        # all tokens; CLS and registers
        self.start, self.prefix = self.x.shape[1], 1 + (w["reg_token"].shape[1] if "reg_token" in w else 0)
        self.patches = self.start - self.prefix - self.variant.num_clr
        # for dyvit; for ats: no padding
        self.alive, self.valid = torch.ones_like(self.x[:, 1:, :1]), torch.ones_like(self.x[..., 0]) > 0
        self.size = None # [B, N] for tome, once it has merged
        # recovered: tokens that the cache gave back
        self.cache, self.pool_end, self.recovered = [], self.start - self.variant.num_clr, 0

def dyvit(r: Run, s: int) -> None:
    """2.3 DynamicViT: another count with the cache; epsilon beside the division, and what the cache gave back is not
    in the mean (Q12, Q13)."""
    p, z, half = f"score_predictor.{s}.", r.x[:, 1:], r.x.shape[2] // 2
    h = F.gelu(linear(r.w, p + "in_conv.1", layer_norm(r.w, p + "in_conv.0", z)))
    mean = (h[..., half:] * r.alive).sum(1, keepdim=True) / r.alive.sum(1, keepdim=True) + 1e-6
    h = torch.cat([h[..., :half], mean.expand(-1, z.shape[1], -1)], -1)
    h = linear(r.w, p + "out_conv.4", F.gelu(linear(r.w, p + "out_conv.2", F.gelu(linear(r.w, p + "out_conv.0", h)))))
    cached = r.variant.num_clr or r.variant.gap
    n = int((r.x.shape[1] - 2) * rate(r.keep, 0)) if cached else int((r.start - 1) * total(r.keep, s))
    best = torch.argsort(torch.log_softmax(h, -1)[..., 0], dim=1, descending=True)[:, :n]
    r.x = torch.stack([torch.cat([x[:1], x[1:][i]]) for x, i in zip(r.x, best)])
    r.alive = torch.stack([a[i] for a, i in zip(r.alive, best)])

def dpcknn(r: Run, s: int) -> None:
    "2.5 DPC-KNN: registers, CLR and what the cache gave back are protected; no noise."
    m = max(int(r.patches * total(r.keep, s)), 5 if s < len(r.at) - 1 else 1)
    end = r.x.shape[1] - r.variant.num_clr - r.recovered
    weight = torch.exp(linear(r.w, f"cluster_layers.{s}.score", r.x[:, r.prefix:end]))[..., 0]
    r.x = torch.stack([torch.cat([x[:r.prefix], _clusters(x[r.prefix:end], w, m), x[end:]])
                       for x, w in zip(r.x, weight)])

def _clusters(z: Tensor, weight: Tensor, m: int) -> Tensor: # [n, D], [n] -> [m, D]
    "2.5: peaks of density by five neighbours, and weighted means of what is nearest to each."
    if len(z) < 5 or m > len(z): raise Crash("fewer tokens than neighbours or clusters (Q14)")
    d = torch.cdist(z, z) / math.sqrt(z.shape[1])
    density = torch.exp(-(d.sort(1).values[:, :5] ** 2).mean(1))
    to_denser = torch.stack([row[density > own].min() if (density > own).any() else d.max()
                             for row, own in zip(d, density)])
    centres = torch.argsort(density * to_denser, descending=True)[:m]
    cluster = d[:, centres].argmin(1)
    cluster[centres] = torch.arange(m)
    share = F.one_hot(cluster, m).T * weight
    return share @ z / (share.sum(1, keepdim=True) + 1e-6)

def sit(r: Run, s: int) -> None:
    "2.7 SiT: sums over all tokens but the prefix, with weights from a small network."
    p, z = f"cluster_layers.{s}.", r.x[:, r.prefix:]
    h = linear(r.w, p + "weight.3", F.gelu(linear(r.w, p + "weight.1", layer_norm(r.w, p + "weight.0", z))))
    r.x = torch.cat([r.x[:, :r.prefix], torch.softmax(h * r.w[p + "scale"], 1).transpose(1, 2) @ z], 1)

def patchmerger(r: Run, s: int) -> None:
    "2.8 PatchMerger: queries attend, unscaled, to all normalised tokens but the prefix."
    z = layer_norm(r.w, f"cluster_layers.{s}.norm", r.x[:, r.prefix:])
    weight = torch.softmax(r.w[f"cluster_layers.{s}.queries"] @ z.transpose(1, 2), -1)
    r.x = torch.cat([r.x[:, :r.prefix], weight @ z], 1)

def ats(r: Run, s: int, a: Tensor, v: Tensor) -> Tensor: # attention [B, H, N, N] -> [B, H, m, N]
    "2.4 ATS: rows nearest to a grid on the cumulative score; padding repeats CLS, and may come back to life (Q7, Q8)."
    k, score = int(r.patches * total(r.keep, s)) + 1, (a[:, :, 0, 1:] * v[:, :, 1:].norm(dim=-1)).sum(1)
    grid = torch.arange(1 / (2 * k), (2 * k - 1) / (2 * k), 2 / (2 * k)).to(a.dtype)
    cdf = torch.cumsum(score / (score.sum(1, keepdim=True) + 1e-6), 1)
    cdf = torch.where(r.valid[:, 1:], cdf, cdf + .1)
    if len(grid) and not cdf.shape[1]: raise Crash("nothing left to sample")
    near = lambda row: torch.cdist(grid[:, None], row[:, None]).argmin(1).tolist() if len(grid) else []
    ids = [sorted({j + 1 for j in near(row)}) for row in cdf]
    ids = torch.tensor([[0] + i + [0] * (max(map(len, ids)) - len(i)) for i in ids])
    r.x, r.valid = torch.stack([x[i] for x, i in zip(r.x, ids)]), (ids > 0) | (torch.arange(ids.shape[1]) == 0)
    return torch.stack([heads[:, i] for heads, i in zip(a, ids)])

def topk(r: Run, s: int, a: Tensor, k: Tensor) -> None:
    """2.1 Top-K and 2.2 EViT, which fuses what it drops: in order of score; CLR, registers and what the cache gave
    back compete (Q1, Q2)."""
    n, score, out = r.x.shape[1] - 1, a[:, :, 0, 1:].mean(1), []
    m = math.ceil(rate(r.keep, s) * n)
    if rate(r.keep, s) == 1: return
    if m == n: raise Crash("nothing to drop (Q1)")
    for x, c in zip(r.x, score):
        kept, dropped = torch.argsort(c, descending=True).split([m, n - m])
        fused = [c[None, dropped] @ x[1:][dropped]] if r.reducer == "evit" else []
        out.append(torch.cat([x[:1], x[1:][kept], *fused]))
    r.x = torch.stack(out)

def tome(r: Run, s: int, a: Tensor, k: Tensor) -> None:
    "2.6 ToMe: how many follows from the patches alone, but at most half (Q9)."
    n = min(int(r.patches * r.keep ** s) - int(r.patches * r.keep ** (s + 1)), (r.x.shape[1] - 1) // 2)
    size, metric = torch.ones_like(r.x[..., 0]) if r.size is None else r.size, F.normalize(k.mean(1), dim=-1)
    if n: r.x, r.size = map(torch.stack, zip(*(_merged(*each, n) for each in zip(r.x, size, metric))))

# [N, D], [N], [N, d] -> [N - n, D], [N - n]
def _merged(x: Tensor, size: Tensor, metric: Tensor, n: int) -> tuple[Tensor, Tensor]:
    "2.6: each even token, but not CLS, has the odd one most like it; the n best pairs become one, by weighted mean."
    like = metric[::2] @ metric[1::2].T
    like[0] = -math.inf
    best, partner = like.max(1)
    gone, stay = torch.argsort(best, descending=True).split([n, len(best) - n])
    stay, mass = stay.sort().values, x * size[:, None]
    odd = size[1::2].index_add(0, partner[gone], size[::2][gone])
    mean = mass[1::2].index_add(0, partner[gone], mass[::2][gone]) / odd[:, None]
    return torch.cat([x[::2][stay], mean]), torch.cat([size[::2][stay], odd])

BEFORE = dict(dyvit=dyvit, dpcknn=dpcknn, sit=sit, patchmerger=patchmerger)
INSIDE = dict(topk=topk, evit=topk, tome=tome)

def block(r: Run, i: int, s: int | None) -> int: # index, stage -> tokens that entered attention
    """1, with reducers before it, in attention (ATS) and before the MLP; ToMe's sizes and ATS's mask are on the logits
    (2.4, 2.6)."""
    if s is not None and r.reducer in BEFORE: BEFORE[r.reducer](r, s)
    w, p, (B, N, D) = r.w, f"blocks.{i}.", r.x.shape
    qkv = linear(w, p + "attn.qkv", layer_norm(w, p + "norm1", r.x, r.eps))
    q, k, v = qkv.view(B, N, 3, r.heads, D // r.heads).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(2, 3) / math.sqrt(D // r.heads)
    if r.size is not None: logits = logits + torch.log(r.size)[:, None, None]
    if r.reducer == "ats":
        logits = torch.where(r.valid[:, None, :, None] & r.valid[:, None, None], logits, torch.finfo(logits.dtype).min)
    a = torch.softmax(logits, -1)
    if s is not None and r.reducer == "ats": a = ats(r, s, a, v)
    r.x = r.x + layer_scale(w, p + "ls1", linear(w, p + "attn.proj", (a @ v).transpose(1, 2).flatten(2)))
    if s is not None and r.reducer in INSIDE: INSIDE[r.reducer](r, s, a, k)
    hidden = F.gelu(linear(w, p + "mlp.fc1", layer_norm(w, p + "norm2", r.x, r.eps)))
    r.x = r.x + layer_scale(w, p + "ls2", linear(w, p + "mlp.fc2", hidden))
    return N

def cache_step(r: Run, i: int) -> None:
    "3: after a block, first give back, then put aside a mean and the last tokens, both by position (Q4, Q5, Q12)."
    c, recovery = r.variant.num_clr, [*r.at, r.depth - 2] if r.variant.recover_last else r.at
    if i in recovery:
        back = torch.cat(r.cache, 1)
        r.cache, r.pool_end, r.recovered = [], r.x.shape[1], r.recovered + back.shape[1]
        ones = torch.ones_like(back[..., 0])
        r.x, r.valid, r.alive = (torch.cat(t, 1)
                                 for t in ((r.x, back), (r.valid, ones > 0), (r.alive, r.living * ones[..., None])))
        if r.reducer == "tome": r.size = torch.cat([r.size, ones], 1)
    if i < recovery[-1]:
        r.cache += [r.x[:, 1:r.pool_end].mean(1, keepdim=True)] * r.variant.gap + [r.x[:, -c:]] * (c > 0)

def head(r: Run, taps: list[Tensor]) -> Tensor:
    "1, or 4 on the CLS tokens of several depths: CLA, or the original IFA."
    w, p = r.w, "ifa_head.0."
    if r.variant.head == "linear": return linear(w, "head", layer_norm(w, "norm", r.x[:, 0], r.eps))
    t = torch.stack(taps, 2) # [B, D, L]
    if r.variant.head == "ifa":
        return linear(w, p + "4", layer_norm(w, p + "3", F.relu(linear(w, p + "0", t))[..., 0]))
    t = F.conv1d(batch_norm(w, p + "0", t), w[p + "1.weight"], w[p + "1.bias"], groups=t.shape[1])
    return F.conv1d(F.gelu(batch_norm(w, p + "2", t)), w[p + "4.weight"], w[p + "4.bias"])[..., 0]

@torch.no_grad()
def forward(w: dict[str, Tensor], images: Tensor, reducer: str, variant: str, keep: float | list[float], at: list[int],
            eps: float = 1e-6, heads: int = 3, *, living: bool = False) -> tuple[Tensor, list[int], list[int]]:
    """Logits, tokens entering and leaving every block. `living` repairs Q12 and Q13 of DynamicViT: what the cache
    gives back is not counted as dropped."""
    r, tokens_in, tokens_out, taps = Run(w, images, reducer, variant, keep, at, eps, heads, living), [], [], []
    for i in range(r.depth):
        tokens_in.append(block(r, i, r.at.index(i) if i in r.at else None))
        tokens_out.append(r.x.shape[1])
        if r.variant.num_clr or r.variant.gap: cache_step(r, i)
        if i in r.at or i == r.depth - 1: taps.append(r.x[:, 0])
    return head(r, taps), tokens_in, tokens_out

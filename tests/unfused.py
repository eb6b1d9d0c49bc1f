"""The order in which the papers reduce, written down with timm's own modules for one image: attention, projection and
residual of all tokens first, then what the reducer decided, then the MLP. Nothing is left out, and nothing is put off.
What the reducers decide is taken from a run of the model."""
from collections.abc import Sequence
from contextlib import contextmanager
from typing import NamedTuple
import torch
from torch import Tensor, nn
from clca.tokens import Fuse, Merge, Mix, Select

class Attended(NamedTuple):
    "What the attention of a block did."
    weight: Tensor # [1, H, N, N]
    heads: Tensor # [1, N, H*d] its output before norm, gate and projection
    update: Tensor # [1, N, D] what is added to the tokens

class Tokens(NamedTuple):
    "The sequence of one image."
    x: Tensor # [1, N, D]
    size: Tensor # [1, N] how many tokens each one stands for
    place: list[int] # source patch of each, -1 for none

    def put(self, start: int, end: int, x: Tensor, size: Tensor, place: list[int]):
        "With other tokens in the place of `start:end`."
        join = lambda t, new: torch.cat([t[:, :start], new, t[:, end:]], 1)
        return Tokens(join(self.x, x), join(self.size, size), self.place[:start] + place + self.place[end:])

    def mean(self, start: int, end: int | None = None) -> Tensor: # [1, D]
        size = self.size[:, start:end, None]
        return (size * self.x[:, start:end]).sum(1) / size.sum(1)

@contextmanager
def recorded(model: nn.Module):
    "Block → (view, plan) of every stage, filled while the model runs."
    decided = {}
    note = lambda stage, args, plan: decided.update({stage.stage.block: (args[0], plan)})
    hooks = [stage.register_forward_hook(note) for stage in model.stages]
    try: yield decided
    finally: [hook.remove() for hook in hooks]

def as_matrix(plan, n: int) -> Tensor: # [m, n] weight of each candidate in each token that is left
    "The linear map of one image's plan."
    if isinstance(plan, Mix): return plan.weight[0].double()
    if isinstance(plan, Merge): return nn.functional.one_hot(plan.slot[0], plan.place.shape[1]).T * plan.share[0]
    assert isinstance(plan, (Select, Fuse)), type(plan)
    rows = torch.eye(n, dtype=torch.float64)[plan.idx[0]]
    return torch.cat([rows, plan.weight[:1]]) if isinstance(plan, Fuse) else rows

def places(plan, place: list[int]) -> list[int]:
    "Source patch of each token that is left."
    if isinstance(plan, Mix): return [-1] * plan.weight.shape[1]
    if isinstance(plan, Merge): return [place[i] for i in plan.place[0].tolist()]
    return [place[i] for i in plan.idx[0].tolist()] + [-1] * isinstance(plan, Fuse)

def reduced(t: Tokens, view, plan, merging: bool, norm: nn.Module) -> Tokens:
    "The candidates as their plan says."
    lo, hi = view.lo, view.hi
    matrix = as_matrix(plan, hi - lo)
    size = (matrix > 0).to(t.x.dtype) @ t.size[:, lo:hi, None] if merging else t.size.new_ones(1, len(matrix), 1)
    return t.put(lo, hi, matrix @ norm(t.x[:, lo:hi]), size.squeeze(2), places(plan, t.place[lo:hi]))

def scaled(block: nn.Module, half: int, update: Tensor) -> Tensor:
    "LayerScale, under the name that it has in timm's Block or EvaBlock."
    if hasattr(block, f"ls{half}"): return getattr(block, f"ls{half}")(update)
    gamma = getattr(block, f"gamma_{half}")
    return update if gamma is None else gamma * update

def attend(block: nn.Module, x: Tensor, rope: dict[str, Tensor], mask: Tensor | None) -> Attended:
    "timm's attention module as it stands, written out instead of fused so that its weights can be seen."
    seen, attn = {}, block.attn
    hooks = [attn.attn_drop.register_forward_pre_hook(lambda m, args: seen.update(weight=args[0])),
             attn.norm.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0]))]
    fused, attn.fused_attn = attn.fused_attn, False
    try: out = attn(block.norm1(x), attn_mask=mask, **rope)
    finally:
        attn.fused_attn = fused
        for hook in hooks: hook.remove()
    return Attended(update=scaled(block, 1, out), **seen)

def rotation(table: Tensor, place: list[int]) -> Tensor: # [1, 1 or H, n, 2d]
    "Rows of timm's rotary table, sines before cosines; a token of no one place is not turned."
    width = table.shape[-1] // 2
    still = torch.cat([torch.zeros(width), torch.ones(width)]).to(table).expand(*table.shape[:-2], 1, -1)
    rows = torch.cat([still, table], -2)[..., torch.tensor(place, dtype=torch.long) + 1, :]
    return rows.reshape(1, -1, len(place), 2 * width)

class Cached:
    "What a cache puts aside and gives back."
    def __init__(self, model: nn.Module, recover: Sequence[int], protect: bool):
        self.cache, self.recover, self.protect, self.memory, self.entered = model.cache, recover, protect, [], None
        self.registers = 0 if self.cache.clr is None else self.cache.clr.shape[1]
        self.start = int(model.backbone.cls_token is not None)
    def embedded(self) -> Tensor: # [1, registers, D]
        return self.cache.clr if self.cache.pos is None else self.cache.clr + self.cache.pos
    def step(self, t: Tokens, i: int) -> Tokens:
        """After a block: first give back, then put aside a mean of the tokens that were there before, and the
        registers."""
        if i in self.recover:
            self.end = len(t.place) - (self.registers if self.protect else 0)
            if self.memory:
                given = torch.cat(self.memory, 1)
                t = t.put(self.end, self.end, given, given.new_ones(given.shape[:2]), [-1] * given.shape[1])
                self.entered = None
            self.memory = []
        if i < self.recover[-1]:
            if self.cache.gap: self.memory.append(t.x[:, self.start:self.end].mean(1, keepdim=True))
            if self.registers: self.memory.append(t.x[:, -self.registers:] if self.entered is None else self.entered)
        return t

def classify(model: nn.Module, t: Tokens) -> Tensor: # [1, C]
    "timm's own classifier; a mean counts a merged token as often as what it was merged from."
    vit = model.backbone
    if vit.global_pool == "token": return vit.forward_head(vit.norm(t.x))
    t = t._replace(x=vit.norm(t.x))
    start = 0 if getattr(vit, "pool_include_prefix", False) else vit.num_prefix_tokens
    if vit.global_pool == "avg": return vit.head(vit.fc_norm(t.mean(start)))
    return vit.head(vit.fc_norm(vit.attn_pool(t.x[:, start:], attn_mask=t.size[:, start:].log()[:, None, None])))

@torch.no_grad()
def forward(model: nn.Module, image: Tensor, decided: dict, *, at: Sequence[int], before: bool = False,
            merging: bool = False, recover_last: bool = True, protect: bool = False,
            ) -> tuple[Tensor, dict[int, Attended]]:
    """Logits [1, C] of an image [1, 3, H, W], and what attention did in every block. `decided` is of `recorded`; with
    `before` its plans are carried out before their blocks, and with `merging` a token counts for as many as were
    merged into it."""
    vit, depth = model.backbone, len(model.backbone.blocks)
    recover = sorted({*at} | ({depth - 2} if recover_last and depth > 1 else set()))
    cache = None if model.cache is None else Cached(model, recover, protect)
    x = vit._pos_embed(vit.patch_embed(image))
    x, table = x if isinstance(x, tuple) else (x, None)
    prefix, end, registers = vit.num_prefix_tokens, x.shape[1], cache.registers if cache else 0
    if registers: x = torch.cat([x, cache.embedded()], 1)
    t = Tokens(vit.norm_pre(x), x.new_ones(x.shape[:2]), [-1] * prefix + list(range(end - prefix)) + [-1] * registers)
    if cache: cache.end = end
    attended, taps = {}, []
    for i, block in enumerate(vit.blocks):
        view, plan = decided.get(i, (None, None))
        # PatchMerger mixes normalised tokens
        norm = getattr(model.stages[at.index(i)], "norm", nn.Identity()) if i in at else None
        if i == 0 and plan is not None and registers and view.hi == len(t.place): cache.entered = t.x[:, -registers:]
        if plan is not None and before: t = reduced(t, view, plan, merging, norm)
        own = table[i] if getattr(vit, "rope_mixed", False) else table # mixed: every block has its own
        rope = {} if table is None else dict(rope=rotation(own, t.place[prefix:]))
        attended[i] = attend(block, t.x, rope, t.size.log()[:, None, None] if merging else None)
        t = t._replace(x=t.x + attended[i].update)
        if plan is not None and not before: t = reduced(t, view, plan, merging, norm)
        t = t._replace(x=t.x + scaled(block, 2, block.mlp(block.norm2(t.x))))
        if cache: t = cache.step(t, i)
        if i in at or i == depth - 1: taps.append(t.x[:, 0] if vit.cls_token is not None else t.mean(prefix))
    return classify(model, t) if model.spec.head == "linear" else model.head(torch.stack(taps, 2)), attended

"Small models and images for all tests, and weights at which every part of a model matters."
import zlib
import numpy as np, torch
from torch import Tensor, nn
from clca import create_model, register_reducer as register_reducer # tests that add reducers take it from here

SMALL = dict(image_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=4, at=(1, 2), keep=.5)
PLAIN = dict(head="linear", cache=False)
BACKBONES = dict(vit="deit_tiny_patch16_224", rope="vit_small_patch16_dinov3")
# parameters that are tokens or are added to them
TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed", "clr", "pos")

def fill(name: str, shape: list[int]) -> Tensor:
    "Fixed weights for a name: the golden logits were made with them."
    if name.endswith("num_batches_tracked"): return torch.tensor(0)
    a = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.split(".")[-1]
    if last in TOKENS: a = .5 * a
    elif last == "running_var": a = 1 + .2 * abs(a)
    elif last == "running_mean": a = .2 * a
    elif last == "queries": a = .3 * a
    elif last == "gamma": a = .6 + .2 * a
    elif last == "scale": a = 1 + .2 * a
    elif last.endswith("bias"): a = .1 * a
    else: a = 1 + .2 * a if len(shape) == 1 else a / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(a))

@torch.no_grad()
def perturbed(model: nn.Module, sharpness: float = 1.) -> nn.Module: # the same model
    """Give every parameter and buffer that is saved a value of its own: no bias is zero, no factor is one, and no
    running statistic that of a new model. A forward that forgets one of them, or uses it twice, gives other logits.
    `sharpness` is a factor on queries and keys."""
    for name, weight in model.state_dict().items():
        weight.copy_(fill(name, weight.shape))
        if ".qkv.weight" in name: weight[:2 * len(weight) // 3] *= sharpness
    return model

def build(reducer: str = "evit", backbone: str = "vit_tiny_patch16_224", num_classes: int = 7, *,
          sharpness: float = 1., **options) -> nn.Module:
    "A small perturbed model in evaluation; `options` are those of `create_model`."
    torch.manual_seed(0) # of chance in training, too
    return perturbed(create_model(backbone, num_classes, reducer=reducer, **SMALL | options), sharpness).eval()

def noise(n: int = 2, size: tuple[int, int] = (32, 32), *, channels: int = 3, seed: int = 1,
          dtype: torch.dtype = torch.float32) -> Tensor:
    "Images [n, channels, *size]."
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)

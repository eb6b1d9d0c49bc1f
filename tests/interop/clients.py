"""What the rows of docs/works_with.md have in common: three models, and the decorator that makes a test a row.

A test asks what a user of a client wants, of a plain timm ViT first: what that one cannot do is no fault of ours."""
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import pytest
import timm
import torch
from models import PLAIN, perturbed
from timm.models import register_model
from torch import Tensor, nn

import clca

NAME, DEPTH, DIM, IMAGE, GRID, CLASSES = "vit_tiny_patch16_224", 4, 32, 32, (8, 8), 3
SIZES = dict(patch_size=4, embed_dim=DIM, num_heads=2, depth=DEPTH)
FULL = dict(reducer="evit", keep=.25, at=(1, 2), image_size=IMAGE) | SIZES
LINEAR = FULL | PLAIN

# The lines by which timm, and whoever builds models by its names, knows a model
@register_model
def interop_plain(pretrained=False, **kwargs):
    return timm.create_model(NAME, pretrained, **dict(img_size=IMAGE) | SIZES | kwargs)

@register_model
def interop_linear(pretrained=False, num_classes=CLASSES, **kwargs):
    return clca.create_model(NAME, num_classes, pretrained=pretrained, **LINEAR | kwargs)

@register_model
def interop_full(pretrained=False, num_classes=CLASSES, **kwargs):
    return clca.create_model(NAME, num_classes, pretrained=pretrained, **FULL | kwargs)

def _maker(name: str, **options) -> Callable[..., nn.Module]:
    def make(num_classes: int = CLASSES, **kwargs) -> nn.Module:
        torch.manual_seed(0)
        return perturbed(timm.create_model(name, num_classes=num_classes, **kwargs))
    make.timm_name, make.options = name, dict(backbone=NAME) | options
    return make

MODELS = dict(
    plain=_maker("interop_plain"), linear=_maker("interop_linear", **LINEAR), full=_maker("interop_full", **FULL))

def client(
    name: str, # the first cell of the row
    *packages: str, # distributions that it takes
    **fails: str, # column=reason, for what does not work
) -> Callable[[Callable], Callable]:
    "Make a test of `make` a row of the table, whose docstring says what works. Skipped where a package is missing."
    def decorate(test: Callable) -> Callable:
        params = [pytest.param(make, id=column, marks=_marks(fails.get(column))) for column, make in MODELS.items()]
        missing = [p for p in packages if installed(p) is None]
        test = pytest.mark.client(name, packages, " ".join(test.__doc__.split()), fails)(test)
        test = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} missing: make interop")(test)
        return pytest.mark.parametrize("make", params)(test)
    return decorate

def _marks(reason: str | None) -> list:
    return [pytest.mark.xfail(strict=True, reason=reason)] if reason else []

def installed(package: str) -> str | None:
    "The version of a distribution that is installed."
    try: return version(package)
    except PackageNotFoundError: return None

def backbone(model: nn.Module) -> nn.Module:
    "The timm model in a model."
    return getattr(model, "backbone", model)

def labels(n: int) -> Tensor: return torch.arange(n) % CLASSES

def logits(model: nn.Module, images: Tensor) -> Tensor:
    "In evaluation, without gradients."
    with torch.no_grad(): return model.eval()(images)

def near(a: Tensor, b: Tensor) -> bool:
    "Alike as a quantised model is: each row of logits points the same way."
    return nn.functional.cosine_similarity(a.float(), b.float()).min().item() > .95

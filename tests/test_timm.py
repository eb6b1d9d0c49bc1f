"A reduced model where a timm ViT is expected: timm's own calls, for every kind of head, backbone and pooling."
import copy
import json
import subprocess
import sys

import pytest
import timm
import torch
from models import PLAIN, SMALL, build, noise, perturbed
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import load_checkpoint, save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import freeze
from torch import nn

import clca
from clca.model import TokenReducedViT
from clca.spec import options_of
from clca.tools.preparation import preparation_of
from clca.tools.rollout import cls_rollout

pytestmark = pytest.mark.usefixtures("one_thread")

VITS = dict(
    vit=("vit_tiny_patch16_224", {}),
    registers=("vit_small_patch14_reg4_dinov2", {}),
    rope=("vit_small_patch16_dinov3", {}),
    eva=("eva02_tiny_patch14_224", {}),
    distilled=("deit_tiny_distilled_patch16_224", {}),
    average=("vit_tiny_patch16_224", dict(global_pool="avg")),
    no_cls=("vit_tiny_patch16_224", dict(global_pool="avg", class_token=False, no_embed_class=True)),
    attention=("vit_tiny_patch16_224", dict(global_pool="map", head="linear")),
)
TIMM = {name: value for name, value in SMALL.items() if name not in ("image_size", "at", "keep")} | dict(img_size=32)
ALL = [(vit, head) for vit, (_, given) in VITS.items() for head in ("linear", "cla", "cla_last", "ifa")
       if given.get("head", head) == head]

def made(vit: str, head: str = "cla", **options) -> TokenReducedViT:
    name, given = VITS[vit]
    return build(backbone=name, **given | dict(head=head, cache=head != "linear") | options)

def plain(vit: str = "vit", **options) -> nn.Module:
    name, given = VITS[vit]
    given = {key: value for key, value in given.items() if key != "head"}
    return perturbed(timm.create_model(name, num_classes=7, **TIMM | given | options)).eval()

# Features and classifier --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("vit,head", ALL)
@pytest.mark.parametrize("reducer", ["evit", "tome", "ats", "sit"])
@torch.no_grad()
def test_two_calls_are_one(vit, head, reducer):
    model, x = made(vit, head, reducer=reducer), noise(3)
    features = model.forward_features(x)
    assert torch.allclose(model.forward_head(features), model(x), atol=1e-5)
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (3, model.head_hidden_size) and features.shape[-1] == model.num_features
    tokens = model.norm(model(x, full=True).tokens)
    assert torch.equal(features[:, :tokens.shape[1]], tokens), "tokens first, in their places"

@pytest.mark.parametrize("vit,head", ALL)
@torch.no_grad()
def test_without_classes(vit, head):
    model, x = made(vit, head), noise()
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert torch.allclose(model(x), before, atol=1e-6) and model.num_classes == 0
    made_so = clca.create_model(VITS[vit][0], 0, **SMALL | VITS[vit][1] | dict(head=head))
    assert made_so.eval()(x).shape == before.shape
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.spec.num_classes == 3

@pytest.mark.parametrize("head", ["linear", "cla"])
@torch.no_grad()
def test_pooling_acts(head):
    "Given at creation or later, the same spec and the same answers; another pooling than CLS gives others."
    model, x = made("vit", head), noise()
    state, before = model.state_dict(), model(x)
    model.reset_classifier(7, "avg")
    told = {name: value for name, value in model.spec.timm_kwargs.items() if name == "global_pool"}
    again = TokenReducedViT(model.spec).eval()
    again.load_state_dict(state), model.load_state_dict(state)
    assert told == dict(global_pool="avg") and torch.equal(again(x), model(x))
    assert not torch.allclose(model(x), before, atol=1e-3)

def test_dropout_acts():
    for head in ("linear", "cla", "cla_last"):
        model = made("vit", head, drop_rate=.5)
        model.train()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d): part.eval()
        assert not torch.equal(model(noise()), model(noise())), head
        assert torch.equal(model.eval()(noise()), model(noise()))
    with pytest.raises(ValueError, match=r"drop_rate=0.5 .* leave it out"): made("vit", "ifa", drop_rate=.5)

@pytest.mark.parametrize("option", [dict(fc_norm=True), dict(final_norm=True), dict(global_pool="map")])
def test_an_option_of_timms_head_is_refused_by_ours(option):
    with pytest.raises(ValueError, match=next(iter(option))): made("vit", "cla", **option)

# Layers, weights, sizes ---------------------------------------------------------------------------------------------

def rates(model: nn.Module, decay: float = .75) -> dict[str, float]:
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1., layer_decay=decay)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    return {name.removeprefix("backbone."): scale[id(p)] for name, p in model.named_parameters()}

@pytest.mark.parametrize("vit,head", [(vit, head) for vit, head in ALL if head in ("linear", "cla")])
def test_layer_decay_gives_the_plain_rates(vit, head):
    ours, timms = rates(made(vit, head)), rates(plain(vit))
    new = {name for name in ours if name.startswith(("head.", "cache.", "stages."))}
    assert {name: ours[name] for name in ours.keys() & timms.keys() - new} == {
        name: timms[name] for name in ours.keys() & timms.keys() - new}
    assert {ours[name] for name in new} <= {1.} and len(set(ours.values())) == len(set(timms.values())) > 4

@pytest.mark.parametrize("vit", VITS)
@torch.no_grad()
def test_timms_weights(vit, tmp_path):
    "By timm's own loader: all goes in, and nothing else changes; a model that reduces nothing answers as timm's."
    given = plain(vit)
    torch.save(given.state_dict(), tmp_path/"vit.pth")
    untouched = made(vit, "linear", keep=1., cache=False)
    load_checkpoint(untouched, str(tmp_path/"vit.pth"))
    assert torch.equal(untouched(noise()), given(noise()))
    if VITS[vit][1].get("head"): return
    full = made(vit)
    own = {name: value.clone() for name, value in full.state_dict().items() if name.startswith(("head.", "cache."))}
    with pytest.warns(UserWarning, match="as they were stay"): load_checkpoint(full, str(tmp_path/"vit.pth"))
    state = full.state_dict()
    assert all(torch.equal(state[name], value) for name, value in own.items())
    blocks = {name: value for name, value in given.state_dict().items() if name.startswith("blocks")}
    assert blocks and all(torch.equal(value, state[f"backbone.{name}"]) for name, value in blocks.items())
    lacking = {name: value for name, value in given.state_dict().items() if name != "blocks.0.norm1.bias"}
    with pytest.raises(RuntimeError, match="blocks.0.norm1.bias"): full.load_state_dict(lacking)

@pytest.mark.parametrize("vit,head", [(vit, head) for vit, head in ALL if head in ("linear", "cla")])
@torch.no_grad()
def test_another_size(vit, head):
    model = made(vit, head, cache=True)
    model.set_input_size((48, 40))
    built = TokenReducedViT(model.spec).eval()
    built.load_state_dict(model.state_dict())
    x = noise(size=(48, 40))
    assert torch.allclose(built(x), model(x), atol=1e-6) and model.spec.image_size == (48, 40)
    assert resolve_model_data_config(model)["input_size"] == (3, 48, 40)

def test_a_size_that_weights_do_not_fit_leaves_the_model_as_it_was():
    model = build("sit")
    before = model(noise())
    with pytest.raises(ValueError, match="create a new model with image_size="): model.set_input_size(64)
    assert torch.equal(model(noise()), before) and model.spec.image_size == 32

def test_names_of_the_backbone():
    model = made("vit")
    freeze(model, ["blocks", "patch_embed"])
    assert not any(p.requires_grad for p in model.blocks.parameters()) and model.head.classifier.weight.requires_grad
    assert model.get_submodule("blocks.1.attn") is model.backbone.blocks[1].attn
    assert {name for name, _ in model.named_children()} == {"backbone", "stages", "cache", "head"}

# A model knows how it was made --------------------------------------------------------------------------------------

READ = """
import json, sys, torch, timm, clca
from clca.spec import options_of
from clca.model import TokenReducedViT
from safetensors.torch import load_file
folder, kind = sys.argv[1:]
torch.set_num_threads(1) # as where the answers were given
model = dict(timm=lambda: timm.create_model("local-dir:" + folder, pretrained=True).eval(),
             hub=lambda: TokenReducedViT.from_pretrained(folder), ours=lambda: clca.load_checkpoint(folder))[kind]()
told = load_file(folder + "/told.safetensors")
assert torch.equal(model(told["images"]), told["logits"]), "other answers"
print(json.dumps(options_of(model.spec), sort_keys=True))
"""

@pytest.mark.parametrize("kind,safe", [("timm", False), ("timm", True), ("hub", True), ("ours", True), ("ours", False)])
def test_another_process_has_the_same_model(kind, safe, tmp_path):
    from safetensors.torch import save_file
    model = made("registers", "cla", keep=(.5, .25), protect=True, num_clr=2, in_chans=1, drop_path_rate=.1)
    model.reset_classifier(5, "avg")
    model.eval()
    x = noise(channels=1)
    if kind == "hub": model.save_pretrained(tmp_path)
    else: save_for_hf(model, str(tmp_path), safe_serialization=safe)
    with torch.no_grad(): save_file(dict(images=x, logits=model(x)), tmp_path/"told.safetensors")
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path), kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = options_of(model.spec)
    if kind != "hub": del expected["drop_path_rate"] # timm never writes rates of dropping down
    assert done.stdout.strip().splitlines()[-1] == json.dumps(expected, sort_keys=True)

def test_a_wrapped_model_knows_what_timm_remembers(tmp_path):
    vit = plain("rope")
    model = clca.wrap(vit, cache=False, keep=.5, at=(1, 2)).eval()
    model.save_pretrained(tmp_path)
    again = TokenReducedViT.from_pretrained(tmp_path)
    assert again.spec == model.spec and torch.equal(again(noise()), model(noise()))

def test_a_folder_of_something_else(tmp_path):
    (tmp_path/"config.json").write_text('{"hidden": 3}')
    with pytest.raises(ValueError, match="has no spec of a model"): TokenReducedViT.from_pretrained(tmp_path)

# Wrapped, plain and wrong -------------------------------------------------------------------------------------------

LOOKS = dict(
    trace=lambda m, x: clca.trace(m, x).logits, restore=lambda m, x: clca.restore(m, x),
    macs=lambda m, x: torch.tensor(clca.macs(m, 32)), rollout=lambda m, x: cls_rollout(m, x)[-1])

@pytest.mark.parametrize("look", LOOKS)
def test_wrapped_models_are_looked_into(look):
    model, x = made("vit"), noise()
    told = LOOKS[look](model, x)
    for wrapped in (nn.DataParallel(model), torch.compile(model), timm.utils.ModelEmaV3(model)):
        assert torch.allclose(LOOKS[look](wrapped, x), told, atol=1e-6)
    if look != "macs":
        with pytest.raises(TypeError, match="clca.wrap"): LOOKS[look](plain(), x)

def test_export_of_a_plain_model_names_the_way(tmp_path):
    with pytest.raises(TypeError, match="clca.create_model, or from a timm model by clca.wrap"):
        clca.export(plain(), tmp_path/"vit.pt2")
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize("options", [dict(), PLAIN | dict(keep=1.)])
@pytest.mark.parametrize("shape,says", [
    ((3, 32, 32), r"images\[None\]"), ((2, 1, 32, 32), "in_chans=1"), ((2, 3, 64, 32), r"set_input_size\(\(64, 32\)\)")])
def test_images_that_do_not_fit(options, shape, says):
    model = build(**options)
    for call in (model, model.forward_features):
        with pytest.raises(ValueError, match=says): call(torch.zeros(shape))

def test_one_image_in_training():
    for head in ("linear", "ifa"): build(head=head).train()(noise(1)).sum().backward()
    for head in ("cla", "cla_last"):
        with pytest.raises(ValueError, match="drop_last=True"): build(head=head).train()(noise(1))
        frozen = build(head=head).train()
        frozen.head.eval()
        assert frozen(noise(1)).shape == (1, 7)

def test_model_hooks_see_who_looks_inside():
    "A hook of the model itself fires, whatever is asked of it."
    model, calls = made("vit"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    clca.trace(model, noise()), clca.restore(model, noise())
    assert len(calls) == 2

def test_gradients_reach_the_image_through_the_map():
    x = noise().requires_grad_()
    clca.restore(made("vit"), x).square().sum().backward()
    assert x.grad.abs().sum() > 0

def test_transforms_of_timm_fit():
    "A picture goes from timm's transform into the model, normalised as its weights want it."
    model = made("vit")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    white = transform(Image.new("RGB", (50, 40), "white"))
    assert white.shape == (3, 32, 32) and torch.allclose(white, torch.ones(3, 32, 32)) # (1 - .5)/.5
    assert model(white[None]).shape == (1, 7)

# What was broken once -------------------------------------------------------------------------------------------------

class Lin(clca.head.Head):
    "Written as documented: nothing in it knows of models without classes."
    def __init__(self, dim, layers, num_classes):
        super().__init__()
        self.classifier = nn.Linear(dim * layers, num_classes)
    def pre_logits(self, cls): return cls.flatten(1)

class Own(Lin):
    "With a forward of its own, so that nobody knows where dropout would act."
    def forward(self, cls): return self.classifier(self.pre_logits(cls))

@torch.no_grad()
def test_heads_of_others():
    model = build(head=f"{__name__}:Lin", num_classes=0)
    assert model(noise()).shape == (2, 96) and model.head_hidden_size == model.num_features == 96
    model.reset_classifier(4)
    assert model(noise()).shape == (2, 4) and build(head=f"{__name__}:Lin", drop_rate=.9).head.drop.p == .9
    with pytest.raises(ValueError, match="drop_rate=0.9"): build(head=f"{__name__}:Own", drop_rate=.9)

@pytest.mark.parametrize("write", ["save_pretrained", "save_for_hf"])
def test_folders_keep_the_preparation(write, tmp_path):
    "Of weights that want other values than the backbone's name says."
    for channels in (3, 1):
        model = build(in_chans=channels, pretrained_cfg_overlay=dict(mean=(.1, .2, .3), crop_pct=.8))
        folder = tmp_path/str(channels)
        if write == "save_pretrained": model.save_pretrained(folder)
        else: save_for_hf(model, str(folder))
        read = [clca.load_checkpoint(folder)]
        if write == "save_pretrained": read.append(TokenReducedViT.from_pretrained(folder))
        else: read.append(timm.create_model(f"local-dir:{folder}", pretrained=True))
        for again in read:
            told = preparation_of(again)
            assert told.crop_pct == .8 and told.image_size == (32, 32)
            assert channels == 1 or told == preparation_of(model)

def test_what_was_done_to_a_wrapped_model_is_known_or_refused(tmp_path):
    vit = plain()
    vit.reset_classifier(5, "avg")
    model = clca.wrap(vit, cache=False, keep=.5, at=(1, 2)).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(TokenReducedViT.from_pretrained(tmp_path)(noise()), model(noise()))
    for change in (lambda: setattr(vit, "blocks", vit.blocks[:3]), lambda: setattr(vit, "head", nn.Linear(32, 9))):
        change()
        with pytest.raises(ValueError, match="builds another model"):
            clca.wrap(vit, cache=False, at=(1,)).save_pretrained(tmp_path/"other")
    assert not (tmp_path/"other").exists()

def test_a_vit_made_by_its_class():
    from timm.models.vision_transformer import VisionTransformer
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=7)
    model = clca.wrap(vit, cache=False, at=(1, 2))
    assert model(noise()).shape == (2, 7)
    with pytest.raises((ValueError, TypeError)): model.save_pretrained("nowhere")

def test_what_cannot_be_assigned():
    model = build()
    for name, value in dict(blocks=model.blocks[:2], norm=nn.Identity(), global_pool="avg", head=None).items():
        with pytest.raises(TypeError): setattr(model, name, value)
    with pytest.raises(TypeError, match="head="): model.head = clca.head.IFAHead(32, 3, 7)
    model.head = copy.deepcopy(model.head)
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "cache", "head"}

def test_part_of_timms_weights():
    given = {name: value for name, value in plain().state_dict().items() if not name.startswith("patch_embed")}
    model = build(**PLAIN)
    with pytest.raises(RuntimeError, match="patch_embed"): model.load_state_dict(given)
    assert len(model.load_state_dict(given, strict=False).missing_keys) == 2
    assert torch.equal(model.blocks[1].attn.qkv.weight, given["blocks.1.attn.qkv.weight"])

def test_device_and_precision_reach_every_part():
    model = clca.create_model("vit_tiny_patch16_224", 7, dtype=torch.bfloat16, device="cpu", **SMALL)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and "dtype" not in model.spec.timm_kwargs
    assert model.eval()(noise().bfloat16()).dtype == torch.bfloat16

def test_another_size_keeps_what_is_frozen():
    model = build("dyvit").requires_grad_(False)
    model.set_input_size(64)
    assert not any(p.requires_grad for p in model.parameters())

def test_a_distilled_backbone_reads_two_tokens():
    with pytest.raises(ValueError, match="distilled backbone"): made("distilled").reset_classifier(3, "avg")

def test_maps_by_timms_wrapper():
    maps = timm.create_model("token_reduced_vit", backbone="vit_tiny_patch16_224", num_classes=0, features_only=True,
                             out_indices=[0, 1], **TIMM, keep=.5, at=(2, 3), head="linear", cache=False)
    assert [tuple(x.shape) for x in maps(noise())] == [(2, 32, 4, 4)] * 2

def test_wrap_takes_a_model_out_of_its_wrapper():
    assert clca.wrap(nn.DataParallel(plain()), cache=False)(noise()).shape == (2, 7)
    with pytest.raises(TypeError, match="reduces tokens already"): clca.wrap(build())
    of_ours = clca.wrap(build(**PLAIN).backbone, 3, head="linear")
    assert of_ours(noise()).shape == (2, 3)

def test_published_names_of_a_wrapped_model():
    model = build()
    state = clca.to_reference_state(torch.compile(model))
    clca.load_reference_state(nn.DataParallel(model), state)
    with pytest.raises(TypeError, match="clca.wrap"): clca.to_reference_state(plain())

@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_jit():
    for reducer in ("evit", "tome", "dpcknn", "sit"):
        model, x = build(reducer), noise(3)
        traced = torch.jit.trace(model, x, check_trace=False)
        assert torch.allclose(traced(x), model(x), atol=1e-5), reducer

@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_a_traced_ats_keeps_the_tokens_of_other_images():
    "How many tokens ATS keeps depends on the image, and a trace must not hold the number of the one that it saw."
    model = build("ats", sharpness=4)
    x = noise(4, (64, 64))*torch.tensor([.01, .3, 1, 3]).view(-1, 1, 1, 1)
    model.set_input_size(64)
    for image in x:
        traced = torch.jit.trace(model, image[None], check_trace=False)
        assert torch.allclose(traced(x), model(x), atol=1e-4)

def test_a_saved_folder_at_another_size(tmp_path):
    "Positions are resampled as when the model itself is resized."
    for vit in ("vit", "registers", "no_cls", "rope"):
        model, folder = made(vit), tmp_path/vit
        save_for_hf(model, str(folder))
        larger = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=48).eval()
        model.set_input_size(48)
        assert torch.allclose(larger(noise(size=(48, 48))), model(noise(size=(48, 48))), atol=1e-5), vit

def test_maps_are_asked_for_in_one_way():
    with pytest.raises(ValueError, match="token_reduced_vit"): build(features_only=True)
    with pytest.raises(NotImplementedError, match="out_indices"):
        timm.create_model("token_reduced_vit", backbone="vit_tiny_patch16_224", features_only=True, **TIMM, at=(1, 2))

"What works with a reduced model as with a timm ViT, of the packages that every environment of this repository has."
import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from clients import CLASSES, DEPTH, DIM, GRID, IMAGE, MODELS, backbone, client, labels, logits, near
from models import noise
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy

import clca

pytestmark = pytest.mark.usefixtures("one_thread")

PLACEHOLDERS = "tokens cannot be counted on torch.fx's placeholders"

# torch --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    from two_processes import in_two_processes
    return in_two_processes(str(tmp_path_factory.mktemp("processes")), noise(4), labels(4))

def same_gradients(make, found):
    "One process with the whole batch has the mean of what two have."
    from two_processes import gradients, without_statistics
    assert not isinstance(found, str), found
    expected = gradients(without_statistics(make()), noise(4), labels(4))
    assert found.keys() == expected.keys()
    for name, g in expected.items(): torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-5, msg=name)

@client("torch: DistributedDataParallel", "torch")
def test_ddp(make, two_processes):
    "Two processes have the gradients of one."
    same_gradients(make, two_processes[column(make), "replicated"])

@client("torch: FSDP2", "torch")
def test_fsdp(make, two_processes):
    "`fully_shard` of each block and of the model: the gradients of one process."
    same_gradients(make, two_processes[column(make), "sharded"])

@client("torch: FSDP2 in bfloat16", "torch")
def test_fsdp_bfloat16(make, tmp_path):
    "`MixedPrecisionPolicy` for the model, and one of 32 bits for a head that has a BatchNorm."
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model, half = make().train(), dict(mesh=init_device_mesh("cpu", (1,)))
        half["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in backbone(model).blocks: fully_shard(block, **half)
        if make is MODELS["full"]: fully_shard(model.head, **half | dict(mp_policy=MixedPrecisionPolicy(torch.float32)))
        fully_shard(model, **half)
        cross_entropy(model(noise(4)).float(), labels(4)).backward()
        assert all(p.grad.full_tensor().isfinite().all() for p in model.parameters())
    finally: dist.destroy_process_group()

def column(make): return next(name for name, m in MODELS.items() if m is make)

@client("torch: save, deepcopy", "torch")
def test_copies(make):
    "A copy and a whole model from a file answer as the model does, and share no weight with it."
    model, file = make().eval(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(logits(other, noise()), logits(model, noise()))
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}

@client("torch: AveragedModel", "torch")
def test_averaged(make):
    "The mean of two states of the weights."
    from torch.optim.swa_utils import AveragedModel
    model = make()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    before = backbone(model).blocks[0].attn.qkv.weight.detach().clone()
    with torch.no_grad():
        for p in model.parameters(): p.add_(1)
    averaged.update_parameters(model)
    assert torch.allclose(backbone(averaged.module).blocks[0].attn.qkv.weight, before + .5, atol=1e-6)
    assert logits(averaged, noise()).isfinite().all()

@client("torch: functional_call", "torch")
def test_functional(make):
    "Other weights for one call; gradients of a function of the weights are those of `backward`."
    model, x = make().eval(), noise()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    assert torch.equal(functional_call(model, weights, (x,)), model(x))
    other = {n: p * 1.1 for n, p in weights.items()}
    assert not torch.equal(functional_call(model, other, (x,)), model(x))
    found = grad(lambda w: cross_entropy(functional_call(model, w, (x,)), labels(2)))(weights)
    cross_entropy(model(x), labels(2)).backward()
    for n, p in model.named_parameters(): torch.testing.assert_close(found[n], p.grad, rtol=1e-4, atol=1e-5, msg=n)

def unfused(make: Callable[[], nn.Module]) -> nn.Module:
    "A model made while timm's switch says that attention is written out."
    timm.layers.set_fused_attn(False)
    try: return make()
    finally: timm.layers.set_fused_attn(True)

@client("torch: jacobians", "torch")
def test_jacobian(make):
    "Of the logits by the pixels: backward, by `jacrev`, and by `jvp` with attention that is not fused."
    model = unfused(make).eval()
    x, v = noise(1), noise(1, seed=2)
    J = torch.autograd.functional.jacobian(model, x)
    assert J.shape == (1, CLASSES, *x.shape) and J.abs().sum() > 0
    torch.testing.assert_close(jacrev(model)(x), J, rtol=1e-3, atol=1e-5)
    _, along = torch.func.jvp(model, (x,), (v,))
    torch.testing.assert_close(along, (J * v).flatten(2).sum(2), rtol=1e-3, atol=1e-5)

@client("torch: double backward", "torch")
def test_double_backward(make):
    "A penalty on the gradient by the pixels reaches the weights, with attention that is not fused."
    model = unfused(make).train()
    x = noise().requires_grad_()
    slope, = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert backbone(model).blocks[-1].attn.qkv.weight.grad.abs().sum() > 0

def per_sample(model, x):
    "Gradients of the loss of each image alone."
    weights = {n: p.detach() for n, p in model.named_parameters()}
    def loss(w, image, label): return cross_entropy(functional_call(model, w, (image[None],)), label[None])
    return vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, labels(len(x)))

@client("torch: per-sample gradients", "torch")
def test_per_sample(make):
    "By `vmap` in evaluation: those of each image alone."
    model, x = make().eval(), noise(3)
    found = per_sample(model, x)
    cross_entropy(model(x[1:2]), labels(3)[1:2]).backward()
    for n, p in model.named_parameters(): torch.testing.assert_close(found[n][1], p.grad, rtol=1e-4, atol=1e-5, msg=n)

@client("torch: per-sample gradients, training", "torch",
        full="the BatchNorm of the head mixes the images of a batch in training")
def test_per_sample_training(make):
    "By `vmap` in training."
    assert all(g.isfinite().all() for g in per_sample(make().train(), noise(3)).values())

@client("torch: dynamic quantisation", "torch")
def test_dynamic_quantisation(make):
    "Each linear layer in 8 bits: nearly the same logits."
    model, x = make().eval(), noise(4)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not [m for m in small.modules() if type(m) is nn.Linear]
    assert near(logits(small, x), logits(model, x))

@client("torch: prune", "torch")
def test_prune(make):
    "Half of the weights of each layer of each block are zero, in what is computed, too."
    from torch.nn.utils import prune
    model, x = make().eval(), noise()
    before = logits(model, x)
    layers = [m for m in backbone(model).blocks.modules() if isinstance(m, nn.Linear)]
    for layer in layers: prune.l1_unstructured(layer, "weight", .5)
    pruned = logits(model, x)
    for layer in layers: prune.remove(layer, "weight")
    assert not torch.allclose(pruned, before) and torch.equal(logits(model, x), pruned)

@client("torch: export", "torch")
def test_export(make):
    "One program for every size of batch, with the same logits."
    model = make().eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (noise(4),), dynamic_shapes=(batch,)).module()
    for n in (2, 5): torch.testing.assert_close(program(noise(n)), model(noise(n)), rtol=1e-4, atol=1e-5)

@client("torch: jit.trace", "torch")
def test_jit(make, tmp_path):
    "A traced module from a file answers as the model does, to other images and another size of batch."
    model = make().eval()
    torch.jit.trace(model, noise(2), check_trace=False).save(tmp_path/"traced.pt")
    traced = torch.jit.load(tmp_path/"traced.pt")
    x = noise(3, seed=5)
    torch.testing.assert_close(logits(traced, x), logits(model, x), rtol=1e-4, atol=1e-5)

@client("torch: fx", "torch", linear=PLACEHOLDERS, full=PLACEHOLDERS)
def test_fx(make):
    "A graph of layers, by timm's `create_feature_extractor`."
    from timm.models._features_fx import create_feature_extractor
    model = make().eval()
    name = next(n for n, m in model.named_modules() if m is backbone(model).blocks[0].mlp)
    assert create_feature_extractor(model, {name: "found"})(noise())["found"].shape == (2, 65, DIM)

# timm ---------------------------------------------------------------------------------------------------------------

def by_name(make, **options):
    "As timm builds it: ours by the name that the package registers."
    if make is MODELS["plain"]: return timm.create_model(make.timm_name, **options)
    return timm.create_model("token_reduced_vit", **make.options, **options)

@client("timm: train script", "timm")
def test_train_script(make, tmp_path):
    """The calls of timm's train.py, ours by `--model token_reduced_vit`, with layer decay, EMA, autocast,
    accumulation, mixup, clipping, gradient checkpointing, a scaled head, a scheduler, a saver and `--resume`."""
    from timm.data import Mixup, resolve_data_config
    from timm.loss import SoftTargetCrossEntropy
    from timm.models import load_checkpoint, model_parameters, resume_checkpoint
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import CheckpointSaver, ModelEmaV3, accuracy, dispatch_clip_grad
    def begin():
        torch.manual_seed(0)
        model = by_name(
            make, pretrained=False, in_chans=3, num_classes=CLASSES, drop_rate=0., drop_path_rate=.1,
            drop_block_rate=None, global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False,
            checkpoint_path="")
        with torch.no_grad():
            model.get_classifier().weight.mul_(.5)
            model.get_classifier().bias.mul_(.5)
        assert model.num_classes == CLASSES
        model.set_grad_checkpointing(enable=True)
        return model, create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=.05, layer_decay=.75)
    model, optimizer = begin()
    config = resolve_data_config(dict(img_size=IMAGE), model=model)
    assert config["input_size"] == (3, IMAGE, IMAGE)
    ema = ModelEmaV3(model, decay=.9, use_warmup=True)
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=2, warmup_epochs=1, updates_per_epoch=2)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    mixup, loss_fn = Mixup(num_classes=CLASSES, cutmix_alpha=1.), SoftTargetCrossEntropy()
    before = logits(model, noise())
    for epoch in range(epochs):
        model.train()
        for step in range(2):
            images, target = mixup(noise(4, seed=step), labels(4))
            with torch.autocast("cpu", torch.bfloat16): loss = loss_fn(model(images), target) / 2
            loss.backward()
            if step % 2: # an update in two steps
                dispatch_clip_grad(model_parameters(model), 1., mode="norm")
                optimizer.step()
                optimizer.zero_grad()
                ema.update(model, step=epoch)
                scheduler.step_update(epoch)
        scheduler.step(epoch + 1, None)
        saver.save_checkpoint(epoch, metric=accuracy(logits(model, noise(4)), labels(4), topk=(1, 2))[0])
    assert not torch.equal(logits(model, noise()), before)
    other, optimizer = begin()
    assert resume_checkpoint(other, str(tmp_path/"last.pth.tar"), optimizer) == epochs
    assert torch.equal(logits(other, noise()), logits(model, noise()))
    load_checkpoint(other, str(tmp_path/"last.pth.tar"), use_ema=True)
    assert torch.equal(logits(other, noise()), logits(ema.module, noise()))

@client("timm: ModelEmaV3", "timm")
def test_ema(make):
    "The average follows the model."
    from timm.utils import ModelEmaV3
    model = make()
    ema = ModelEmaV3(model, decay=.9)
    with torch.no_grad():
        for p in model.parameters(): p.add_(1)
    ema.update(model)
    for p, q in zip(model.parameters(), ema.module.parameters()): assert torch.allclose(q, p - .9, atol=1e-5)
    assert logits(ema, noise()).isfinite().all()

def layer_rates(model):
    "{name in the backbone: factor of the learning rate}."
    from timm.optim import create_optimizer_v2
    rates = {id(p): g["lr_scale"] for g in create_optimizer_v2(model, "adamw", layer_decay=.75).param_groups
             for p in g["params"]}
    return {n.removeprefix("backbone."): rates[id(p)] for n, p in model.named_parameters()}

@client("timm: layer decay", "timm")
def test_layer_decay(make):
    """`create_optimizer_v2(layer_decay=.75)` gives layers the rates that they have in the plain ViT, new ones the
    highest."""
    plain, found = layer_rates(MODELS["plain"]()), layer_rates(make())
    assert {n: found[n] for n in plain if n in found} == {n: r for n, r in plain.items() if n in found}
    assert len({found[f"blocks.{i}.attn.qkv.weight"] for i in range(DEPTH)}) == DEPTH
    assert {r for n, r in found.items() if n.startswith(("head.", "cache."))} == {max(found.values())}

@client("timm: data config", "timm")
def test_data_config(make):
    "`resolve_model_data_config` says what the weights want: mean, standard deviation, crop and interpolation."
    plain = timm.data.resolve_model_data_config(MODELS["plain"]())
    assert plain["mean"] == (.5, .5, .5)
    for model in (make(), by_name(make)):
        found = timm.data.resolve_model_data_config(model)
        for name in ("mean", "std", "crop_pct", "crop_mode", "interpolation"): assert found[name] == plain[name], name
        assert make is MODELS["plain"] or found["input_size"] == (3, IMAGE, IMAGE)

@client("timm: features_only", "timm")
def test_features_only(make):
    "A pyramid of the blocks before the first reduction."
    features = by_name(make, features_only=True, out_indices=[0])
    found, = features(noise())
    assert found.shape == (2, DIM, *GRID) and features.feature_info.channels() == [DIM]

@client("timm: load_checkpoint", "timm")
def test_load_checkpoint(make, tmp_path):
    "A file with the weights of a plain ViT goes in, as by `--initial-checkpoint`."
    plain = MODELS["plain"]()
    with torch.no_grad(): plain.blocks[1].attn.qkv.weight.fill_(.125)
    torch.save(plain.state_dict(), tmp_path/"plain.pth")
    model = timm.create_model(make.timm_name, num_classes=CLASSES, checkpoint_path=tmp_path/"plain.pth")
    assert (backbone(model).blocks[1].attn.qkv.weight == .125).all() and logits(model, noise()).isfinite().all()

@client("timm: CheckpointSaver", "timm")
def test_resume(make, tmp_path):
    "Saved and resumed: model and optimizer go on as if nothing had been."
    from timm.models import resume_checkpoint
    from timm.utils import CheckpointSaver
    def step(model, optimizer):
        optimizer.zero_grad()
        cross_entropy(model(noise(4)), labels(4)).backward()
        optimizer.step()
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    step(model, optimizer)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=.5)
    step(model, optimizer)
    other = make().train()
    second = torch.optim.AdamW(other.parameters(), 1e-3)
    assert resume_checkpoint(other, str(tmp_path/"last.pth.tar"), second) == 1
    step(other, second)
    assert torch.equal(logits(other, noise()), logits(model, noise()))

@client("timm: save_for_hf", "timm", "safetensors")
def test_save_for_hf(make, tmp_path):
    "The saved folder is the same model for `timm.create_model('local-dir:…')`."
    from timm.models import save_for_hf
    model = make()
    save_for_hf(model, tmp_path/"hub")
    back = timm.create_model(f"local-dir:{tmp_path/'hub'}", pretrained=True)
    assert torch.equal(logits(back, noise()), logits(model, noise()))

@client("timm: AttentionExtract", "timm")
def test_attention_extract(make):
    "Maps of every block by hooks: rows that sum to one."
    from timm.utils import AttentionExtract
    maps = AttentionExtract(unfused(make), method="hook")(noise())
    assert len(maps) == DEPTH
    for a in maps.values(): torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))

@client("timm: distillation", "timm")
def test_distillation(make):
    "A student of `LogitDistillationTask` learns from a teacher."
    from timm.task import LogitDistillationTask
    student = make()
    task = LogitDistillationTask(student, MODELS["plain"](), criterion=nn.CrossEntropyLoss(), verbose=False)
    task(noise(4), labels(4))["loss"].backward()
    assert backbone(student).blocks[0].attn.qkv.weight.grad.abs().sum() > 0

@client("timm: gradient checkpointing", "timm")
def test_checkpointing(make):
    "`set_grad_checkpointing` keeps the gradients."
    model, other = make().train(), make().train()
    other.set_grad_checkpointing()
    for m in (model, other): cross_entropy(m(noise(4)), labels(4)).backward()
    for (n, p), q in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=n)

@client("timm: freeze", "timm")
def test_freeze(make):
    "`freeze(model, 'blocks')` leaves the rest to learn."
    from timm.utils import freeze
    model = make()
    freeze(model, "blocks")
    assert not [p for p in backbone(model).blocks.parameters() if p.requires_grad]
    assert [p for p in model.parameters() if p.requires_grad]

@client("timm: embeddings", "timm")
def test_embeddings(make):
    "`num_classes=0` and `reset_classifier(0)` give what the classifier reads, and so does `pre_logits`."
    model, x = make(0), noise()
    embedding, full = logits(model, x), make()
    assert embedding.shape == (2, model.head_hidden_size)
    full.reset_classifier(0)
    assert logits(full, x).shape == embedding.shape
    with torch.no_grad():
        again = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(again, embedding)

@client("timm: final tokens on the grid", "timm")
def test_restored_has_gradients(make):
    "The final tokens on the grid, with their gradients: `clca.restore`, which of a plain ViT is timm's `forward_intermediates`."
    model = make().eval()
    if backbone(model) is model: grid, = model.forward_intermediates(noise(), indices=1, intermediates_only=True)
    else: grid = clca.restore(model, noise())
    assert grid.shape == (2, DIM, *GRID)
    grid.square().sum().backward()
    assert backbone(model).blocks[0].attn.qkv.weight.grad.abs().sum() > 0

# others -------------------------------------------------------------------------------------------------------------

@client("Lightning", "lightning")
def test_lightning(make, tmp_path):
    "Two steps of training, a checkpoint that comes back, and a summary with every parameter and some operations."
    import lightning as L
    from lightning.pytorch.utilities.model_summary import ModelSummary
    class Classifier(L.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model, self.example_input_array = model, noise()
        def forward(self, x): return self.model(x)
        def training_step(self, batch, i): return cross_entropy(self(batch[0]), batch[1])
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 1e-3)
    module = Classifier(make())
    summary = ModelSummary(module, max_depth=-1)
    assert summary.total_parameters == sum(p.numel() for p in module.parameters()) and summary.total_flops > 0
    before = backbone(module.model).blocks[0].attn.qkv.weight.detach().clone()
    loader = torch.utils.data.DataLoader(list(zip(noise(4), labels(4))), batch_size=2)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path/"last.ckpt")
    assert not torch.equal(backbone(module.model).blocks[0].attn.qkv.weight, before)
    back = Classifier.load_from_checkpoint(tmp_path/"last.ckpt", model=make(), map_location="cpu")
    assert torch.equal(logits(back, noise()), logits(module, noise()))

@client("torchmetrics: FID", "torchmetrics")
def test_fid(make):
    "Fréchet distance of two sets of images by the embeddings of the model: none between equal sets."
    from torchmetrics.image.fid import FrechetInceptionDistance
    assert fid(FrechetInceptionDistance, make(0), noise(64), noise(64)) == pytest.approx(0, abs=1e-3)
    assert fid(FrechetInceptionDistance, make(0), noise(64), noise(64, seed=2) + 1) > .1

@client("torchmetrics: KID", "torchmetrics")
def test_kid(make):
    "Kernel distance of two sets of images by the embeddings of the model."
    from torchmetrics.image.kid import KernelInceptionDistance
    kid = KernelInceptionDistance(feature=make(0).eval(), subset_size=8, subsets=2, normalize=True)
    kid.update(noise(8), real=True)
    kid.update(noise(8, seed=2) + 1, real=False)
    assert kid.compute()[0] > 0

def fid(metric, feature, real, fake):
    measure = metric(feature=feature.eval(), input_img_size=(3, IMAGE, IMAGE), normalize=True)
    measure.set_dtype(torch.float64)
    measure.inception.float()
    measure.update(real, real=True)
    measure.update(fake, real=False)
    return measure.compute().item()

@client("safetensors", "safetensors")
def test_safetensors(make, tmp_path):
    "`save_model` and a strict `load_model`: the same logits."
    from safetensors.torch import load_model, save_model
    model, other = make(), make()
    with torch.no_grad():
        for p in other.parameters(): p.zero_()
    save_model(model, str(tmp_path/"model.safetensors"))
    assert load_model(other, str(tmp_path/"model.safetensors")) == (set(), [])
    assert torch.equal(logits(other, noise()), logits(model, noise()))

@client("PyTorchModelHubMixin", "huggingface_hub")
def test_hub_mixin(make, tmp_path):
    "A class that builds the model from a name comes back from a folder as the same model, and so do ours themselves."
    from huggingface_hub import PyTorchModelHubMixin
    class OnHub(nn.Module, PyTorchModelHubMixin):
        def __init__(self, name: str, num_classes: int):
            super().__init__()
            self.model = timm.create_model(name, num_classes=num_classes)
        def forward(self, x): return self.model(x)
    models = [OnHub(name=make.timm_name, num_classes=5)]
    if make is not MODELS["plain"]: models.append(make(5))
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path/str(i))
        back = type(model).from_pretrained(tmp_path/str(i))
        assert torch.equal(logits(back, noise()), logits(model, noise())) and logits(back, noise()).shape == (2, 5)

class Calibration:
    "Batches for ONNX Runtime's static quantiser."
    def __init__(self): self.batches = iter([{"images": noise(4, seed=s).numpy()} for s in range(4)])
    def get_next(self): return next(self.batches, None)

@client("ONNX Runtime", "onnxruntime", "onnxscript")
def test_onnxruntime(make, tmp_path):
    "One file for every size of batch with the same logits, and nearly the same from its dynamic and static quantisers."
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    def run(name, x):
        session = onnxruntime.InferenceSession(tmp_path/name, providers=["CPUExecutionProvider"])
        return torch.from_numpy(np.asarray(session.run(None, {"images": x.numpy()})[0]))
    model, x = make().eval(), noise(3)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    torch.onnx.export(model, (noise(4),), tmp_path/"model.onnx", dynamo=True, dynamic_shapes=(batch,),
                      input_names=["images"], verbose=False)
    expected = logits(model, x)
    torch.testing.assert_close(run("model.onnx", x), expected, rtol=1e-3, atol=1e-4)
    quant_pre_process(tmp_path/"model.onnx", tmp_path/"ready.onnx")
    quantize_dynamic(tmp_path/"ready.onnx", tmp_path/"dynamic.onnx")
    assert near(run("dynamic.onnx", x), expected)
    reader = type("Reader", (Calibration, CalibrationDataReader), {})()
    quantize_static(tmp_path/"ready.onnx", tmp_path/"static.onnx", reader)
    assert near(run("static.onnx", x), expected)

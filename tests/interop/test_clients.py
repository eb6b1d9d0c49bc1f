"""What works with a reduced model as with a timm ViT, of packages that only `make interop` installs.
A test is skipped where its package is missing, and each imports it itself."""
import copy

import numpy as np
import pytest
import timm
import torch
from clients import CLASSES, DEPTH, DIM, GRID, IMAGE, backbone, client, labels, logits, near
from models import noise
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from two_processes import without_statistics

import clca
from clca.tools.restore import spread

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch, tmp_path):
    "MLflow asks no server, and what a client writes goes into a folder of the test."
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"): monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)

class Labelled(torch.utils.data.Dataset):
    "Eight images with their classes, as `item` gives them."
    def __init__(self, item=lambda x, y: (x, y)): self.item, self.images, self.labels = item, noise(8), labels(8)
    def __len__(self): return 8
    def __getitem__(self, i): return self.item(self.images[i], self.labels[i])

def weight(model): return backbone(model).blocks[1].attn.qkv.weight.detach().clone()

# counting ------------------------------------------------------------------------------------------------------------

def patches(model: nn.Module) -> list[int]:
    "Tokens that enter the MLP of each block, from our own trace: a plain ViT has all of them."
    if backbone(model) is model: return [65] * DEPTH
    return clca.trace(model, noise(1)).tokens_out

TWICE = "the parameters of a block that reduces are counted twice, for its reducer is called inside it"

@client("torchinfo", "torchinfo", linear=TWICE, full=TWICE)
def test_torchinfo(make):
    "A summary with every parameter, every block and the tokens that leave it."
    from torchinfo import summary
    model = make()
    found = summary(model, input_data=noise(1), depth=4, verbose=0)
    assert found.total_params == sum(p.numel() for p in model.parameters()) and found.total_mult_adds > 0
    blocks = [layer for layer in found.summary_list if layer.module in set(backbone(model).blocks)]
    assert len(blocks) == DEPTH and [b.output_size[1] for b in blocks][:-1] == patches(model)[:-1]
    assert "Linear" in str(found)

@client("fvcore", "fvcore")
def test_fvcore(make):
    "Operations by module: the MLP of each block has those of the tokens that are left."
    from fvcore.nn import FlopCountAnalysis, parameter_count
    model = make().eval()
    flops = FlopCountAnalysis(model, noise(1)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    names = {m: n for n, m in model.named_modules()}
    found = [flops.by_module()[names[block.mlp]] for block in backbone(model).blocks]
    assert found[:-1] == [n * 8 * DIM * DIM for n in patches(model)[:-1]] and 0 < found[-1] <= found[-2]
    assert parameter_count(model)[""] == sum(p.numel() for p in model.parameters())

# adapters and training -----------------------------------------------------------------------------------------------

@client("peft", "peft")
def test_peft(make, tmp_path):
    "LoRA on queries, keys, values and projection learns, comes back from its folder, and merges into the weights."
    from peft import LoraConfig, PeftModel, get_peft_model
    config = LoraConfig(r=2, target_modules=["qkv", "proj"], exclude_modules=".*patch_embed.*", init_lora_weights=False)
    torch.manual_seed(0)
    model, before = get_peft_model(make(), config), logits(make(), noise())
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(learns) == 2 * 2 * DEPTH and all("lora_" in n for n in learns)
    cross_entropy(without_statistics(model)(noise(4)), labels(4)).backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n in learns)
    expected = logits(model, noise())
    assert not torch.allclose(expected, before, atol=1e-4)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(make(), tmp_path)
    torch.testing.assert_close(logits(back, noise()), expected)
    torch.testing.assert_close(logits(back.merge_and_unload(), noise()), expected, rtol=1e-3, atol=1e-4)

@client("peft: modules_to_save", "peft")
def test_peft_head(make, tmp_path):
    "LoRA in the blocks, and the head whole: its weights, and its statistics, which an adapter alone does not keep."
    from peft import LoraConfig, PeftModel, get_peft_model
    model = get_peft_model(make(), LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], .1)
    cross_entropy(model.train()(noise(4)), labels(4)).backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    expected = logits(model, noise())
    assert not torch.allclose(expected, logits(make(), noise()), atol=1e-4)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make(), tmp_path), noise()), expected)

class WithLoss(nn.Module):
    "What transformers' Trainer asks of a model of somebody else."
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = self.model(pixel_values)
        return dict(logits=out) if labels is None else dict(loss=cross_entropy(out, labels), logits=out)

def trainer(model, folder, **options):
    from transformers import Trainer, TrainingArguments
    args = TrainingArguments(str(folder), per_device_train_batch_size=4, save_steps=1, report_to=[], use_cpu=True,
                             disable_tqdm=True, learning_rate=1e-3, seed=0, logging_steps=100, **options)
    def item(x, y): return dict(pixel_values=x, labels=y)
    return Trainer(model, args, train_dataset=Labelled(item), eval_dataset=Labelled(item))

@client("transformers: Trainer", "transformers", "accelerate")
def test_trainer(make, tmp_path):
    "Trains, predicts, and goes on from a checkpoint where it was."
    whole = trainer(WithLoss(make()), tmp_path/"run", max_steps=3)
    before = weight(whole.model.model)
    whole.train()
    assert not torch.equal(weight(whole.model.model), before)
    again = trainer(WithLoss(make()), tmp_path/"run", max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path/"run"/"checkpoint-2"))
    torch.testing.assert_close(logits(again.model.model, noise()), logits(whole.model.model, noise()))
    assert whole.predict(whole.eval_dataset).predictions.shape == (8, CLASSES)

@client("transformers: Trainer and TimmWrapper", "transformers", "accelerate")
def test_trainer_checkpointing(make, tmp_path):
    "Trains a registered name with gradient checkpointing, accumulation and bfloat16."
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=make.timm_name, num_labels=CLASSES))
    before = weight(model.timm_model)
    trainer(model, tmp_path, max_steps=1, gradient_checkpointing=True, gradient_accumulation_steps=2, bf16=True).train()
    assert backbone(model.timm_model).grad_checkpointing and not torch.equal(weight(model.timm_model), before)

@client("transformers: TimmWrapper", "transformers")
def test_timm_wrapper(make, tmp_path):
    "A registered name as an image classifier of transformers, which comes back from its folder."
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
    config = TimmWrapperConfig(architecture=make.timm_name, num_labels=CLASSES)
    model = TimmWrapperForImageClassification(config)
    model.save_pretrained(tmp_path)
    back = TimmWrapperForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad(): a, b = (m.eval()(pixel_values=noise(), labels=labels(2)) for m in (model, back))
    assert torch.equal(a.logits, b.logits) and torch.equal(a.loss, b.loss)

@client("transformers: TimmWrapper, features", "transformers")
def test_timm_wrapper_features(make):
    "A registered name as a backbone of transformers: tokens, and what the classifier would read."
    from transformers import TimmWrapperConfig, TimmWrapperModel
    model = TimmWrapperModel(TimmWrapperConfig(architecture=make.timm_name, num_labels=CLASSES)).eval()
    with torch.no_grad(): found = model(pixel_values=noise())
    assert found.last_hidden_state.shape[::2] == (2, DIM)
    torch.testing.assert_close(found.pooler_output, logits(model.timm_model, noise()))

@client("accelerate", "accelerate")
def test_accelerate(make, tmp_path):
    "Prepared, trained and saved; the state comes back."
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    model = make()
    prepared, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), 1e-3), torch.utils.data.DataLoader(Labelled(), 4))
    for x, y in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(cross_entropy(prepared(x), y))
            accelerator.clip_grad_norm_(prepared.parameters(), 1.)
            optimizer.step(); optimizer.zero_grad()
    expected = logits(accelerator.unwrap_model(prepared), noise())
    assert not torch.equal(expected, logits(make(), noise()))
    accelerator.save_state(str(tmp_path/"state"))
    with torch.no_grad():
        for p in prepared.parameters(): p.zero_()
    accelerator.load_state(str(tmp_path/"state"))
    assert torch.equal(logits(prepared, noise()), expected)

@client("accelerate: empty weights", "accelerate", "safetensors")
def test_empty_weights(make, tmp_path):
    "Built without memory, and filled from a file."
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch
    from safetensors.torch import save_model
    model = make()
    save_model(model, str(tmp_path/"model.safetensors"))
    with init_empty_weights(): empty = timm.create_model(make.timm_name, num_classes=CLASSES)
    assert all(p.is_meta for p in empty.parameters())
    filled = load_checkpoint_and_dispatch(empty, str(tmp_path/"model.safetensors"), device_map={"": "cpu"})
    assert torch.equal(logits(filled, noise()), logits(model, noise()))

def loaders():
    "fastai's loaders of the eight images."
    import fastai.callback.all # noqa: F401 gives a learner its methods
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    return DataLoaders(DataLoader(Labelled(), bs=4), DataLoader(Labelled(), bs=4), path=".")

@client("fastai: Learner", "fastai")
def test_fastai(make, tmp_path):
    "One cycle, predictions, saved and loaded."
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    learner = Learner(loaders(), make(), loss_func=cross_entropy, metrics=accuracy, path=tmp_path)
    before = weight(learner.model)
    with learner.no_bar(), learner.no_logging(): learner.fit_one_cycle(1, 1e-3)
    assert not torch.equal(weight(learner.model), before)
    expected = logits(learner.model, noise())
    with learner.no_bar(): answers, _ = learner.get_preds()
    assert answers.shape == (8, CLASSES)
    learner.save("model")
    with torch.no_grad():
        for p in learner.model.parameters(): p.zero_()
    learner.load("model")
    assert torch.equal(logits(learner.model, noise()), expected)

@client("fastai: vision_learner", "fastai")
def test_vision_learner(make, tmp_path):
    "A registered name as the body of a learner with fastai's own head; frozen and thawed."
    from fastai.vision.learner import vision_learner
    learner = vision_learner(loaders(), make.timm_name, n_out=CLASSES, pretrained=False, normalize=False,
                             loss_func=cross_entropy, path=tmp_path)
    learner.freeze()
    body = learner.model[0].model
    before = weight(body)
    with learner.no_bar(), learner.no_logging(): learner.fit(1, 1e-3)
    assert torch.equal(weight(body), before)
    learner.unfreeze()
    with learner.no_bar(), learner.no_logging(): learner.fit(1, 1e-3)
    assert not torch.equal(weight(body), before)

@client("skorch", "skorch", "scikit-learn")
def test_skorch(make, tmp_path):
    "An estimator of scikit-learn: fit, probabilities, cloned by a grid search, saved and loaded."
    from sklearn.model_selection import GridSearchCV
    from skorch import NeuralNetClassifier
    x, y = noise(12).numpy(), labels(12).numpy()
    net = NeuralNetClassifier(make(), criterion=nn.CrossEntropyLoss, max_epochs=1, lr=1e-3, batch_size=4,
                              train_split=None, verbose=0).fit(x, y)
    answers = net.predict_proba(x)
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-5)
    net.save_params(f_params=tmp_path/"net.pt")
    other = NeuralNetClassifier(make(), criterion=nn.CrossEntropyLoss).initialize()
    other.load_params(f_params=tmp_path/"net.pt")
    np.testing.assert_allclose(other.predict_proba(x), answers, rtol=1e-5)
    assert GridSearchCV(net, {"lr": [1e-3, 1e-2]}, cv=2).fit(x, y).best_params_["lr"] in (1e-3, 1e-2)

# looking inside ------------------------------------------------------------------------------------------------------

def tokens_on_grid(model: nn.Module, images: Tensor):
    "The recipe: a function that puts the tokens that enter the last block back on the grid of patches, [B, D, h, w]."
    if backbone(model) is model: return lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, GRID)
    class Entering(clca.tools.tracing.Shares):
        def passed(self, block, *rest):
            if block == DEPTH - 1: self.entering = self.now
            super().passed(block, *rest)
    watcher = Entering()
    with torch.no_grad(): clca.walk.walk(model, images, watcher=watcher)
    def on_grid(tokens: Tensor) -> Tensor:
        return spread(tokens, watcher.entering.to(tokens.dtype)).transpose(1, 2).unflatten(2, GRID)
    return on_grid

JUMPS = "the logits jump where one token is kept instead of another"

@client("captum: pixels", "captum")
def test_captum(make):
    "Integrated gradients, saliency, gradient SHAP and occlusion of the shape of the images."
    from captum.attr import GradientShap, IntegratedGradients, Occlusion, Saliency
    model, x, target = make().eval(), noise(), torch.tensor([0, 2])
    found = [
        IntegratedGradients(model).attribute(x, target=target, n_steps=4),
        Saliency(model).attribute(x, target=target),
        GradientShap(model).attribute(x, baselines=noise(4, seed=3), target=target, n_samples=2),
        Occlusion(model).attribute(x, (3, 8, 8), target=target, strides=(3, 8, 8)),
    ]
    for a in found: assert a.shape == x.shape and a.isfinite().all() and a.abs().sum() > 0

@client("captum: integrated gradients add up", "captum",
        linear=JUMPS, full=JUMPS)
def test_captum_complete(make):
    "The sum over the pixels is the difference of the logits between image and baseline, to a hundredth."
    from captum.attr import IntegratedGradients
    model, x = make().eval(), noise()
    _, error = IntegratedGradients(model).attribute(x, target=0, n_steps=100, return_convergence_delta=True)
    change = (model(x) - model(0 * x))[:, 0]
    assert (error.abs() / change.abs()).max() < .01

@client("captum: layers", "captum")
def test_captum_layers(make):
    "Activations, gradients and conductance of each block; those of the last, put back on the grid of patches."
    from captum.attr import LayerActivation, LayerConductance, LayerGradientXActivation
    model, x = make().eval(), noise()
    for block in backbone(model).blocks:
        for method in (LayerActivation(model, block), LayerConductance(model, block)):
            given = {} if isinstance(method, LayerActivation) else dict(target=0, n_steps=3)
            assert method.attribute(x, **given).isfinite().all()
    norm = backbone(model).blocks[-1].norm1
    found = LayerGradientXActivation(model, norm).attribute(x, target=0)
    grid = tokens_on_grid(model, x)(found)
    assert grid.shape == (2, DIM, *GRID) and grid.isfinite().all() and grid.abs().sum() > 0

@client("grad-cam", "grad-cam")
def test_gradcam(make):
    "A map of the size of the image from the tokens that enter the last block, put back on the grid of patches."
    from pytorch_grad_cam import EigenCAM, GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    model, x = make().eval(), noise()
    for method in (GradCAM, EigenCAM):
        with method(model, [backbone(model).blocks[-1].norm1], reshape_transform=tokens_on_grid(model, x)) as cam:
            found = cam(x, [ClassifierOutputTarget(0), ClassifierOutputTarget(1)])
        assert found.shape == (2, IMAGE, IMAGE) and np.isfinite(found).all() and found.max() > 0

# elsewhere -----------------------------------------------------------------------------------------------------------

@client("OpenVINO", "openvino")
def test_openvino(make):
    "Converted from torch: the same logits for any size of batch."
    import openvino
    model = make().eval()
    converted = openvino.convert_model(model, example_input=noise(2), input=[-1, 3, IMAGE, IMAGE])
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n in (1, 3):
        torch.testing.assert_close(torch.from_numpy(compiled(noise(n).numpy())[0]), logits(model, noise(n)),
                                   rtol=1e-3, atol=1e-4)

@client("OpenVINO from torch.export", "openvino")
def test_openvino_exported(make):
    "Converted from an exported program: the same logits."
    import openvino
    model = make().eval()
    converted = openvino.convert_model(torch.export.export(model, (noise(2),)))
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(torch.from_numpy(compiled(noise(2).numpy())[0]), logits(model, noise(2)),
                               rtol=1e-3, atol=1e-4)

@client("torchao: int8 weights", "torchao")
def test_torchao(make):
    "`Int8WeightOnlyConfig` on every linear layer: nearly the same logits, and a state that loads."
    from torchao.quantization import Int8WeightOnlyConfig
    quantised(make, Int8WeightOnlyConfig())

@client("torchao: int8 weights and activations", "torchao")
def test_torchao_dynamic(make):
    "`Int8DynamicActivationInt8WeightConfig` on every linear layer: nearly the same logits, and a state that loads."
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    quantised(make, Int8DynamicActivationInt8WeightConfig())

def quantised(make, config):
    from torchao.quantization import quantize_
    model = make().eval()
    small = copy.deepcopy(model)
    quantize_(small, config)
    assert near(logits(small, noise(4)), logits(model, noise(4)))
    other = make().eval()
    other.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(logits(other, noise()), logits(small, noise()))

@client("MLflow", "mlflow-skinny")
def test_mlflow(make, tmp_path):
    "Logged to a local folder and loaded again: the same logits, also as a pyfunc on arrays."
    import mlflow
    mlflow.set_tracking_uri((tmp_path/"mlruns").as_uri())
    model = make().eval()
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(model, name="model", serialization_format="pickle", pip_requirements=["torch"])
    back = mlflow.pytorch.load_model(info.model_uri)
    assert torch.equal(logits(back, noise()), logits(model, noise()))
    answers = mlflow.pyfunc.load_model(info.model_uri).predict(noise().numpy())
    torch.testing.assert_close(torch.from_numpy(np.asarray(answers)), logits(model, noise()))

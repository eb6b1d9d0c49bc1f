"What a run tells a logger. Those of others are tried where their packages are: pip install tensorboard wandb mlflow."
import sys
from unittest.mock import Mock

import pytest
import tiny
from lightning.pytorch.loggers import Logger

from clca.training import Recipe, loggers, train

RECIPE = dict(epochs=3, batch_size=8, lr=3e-3)
NUMBERS = {"lr", "train_loss", "val_loss", "val_top1", "seconds", "images_per_second", "peak_memory_mb"}

def run(out, name, kill=None, model=None):
    "Train; `kill` is an epoch in which the images cannot be read."
    class Stopped(tiny.Colours):
        def __getitem__(self, i):
            if self.epoch == kill: raise RuntimeError("power cut")
            return super().__getitem__(i)
    data = tiny.data()
    data.train = Stopped(50)
    return train(model or tiny.model(), data, out, Recipe(**RECIPE, logger=name))

@pytest.fixture
def diary(monkeypatch):
    "A logger that remembers calls, in the place of any."
    made = Mock(spec=Logger)
    monkeypatch.setattr(loggers, "logger_named", lambda name: "mlflow" if name != "none" else name)
    monkeypatch.setattr(loggers, "_logger", lambda kind, out: made)
    return made

def told(diary): return [(call.args[1], set(call.args[0])) for call in diary.log_metrics.call_args_list]

def test_every_epoch_and_the_test(diary, tmp_path):
    metrics = run(tmp_path/"run", "mlflow")
    assert [epoch for epoch, _ in told(diary)] == [1, 2, 3, 3]
    assert all(names == NUMBERS | {"epoch"} for _, names in told(diary)[:3])
    assert diary.log_metrics.call_args.args[0]["test_top1"] == metrics["test_top1"]
    assert diary.log_hyperparams.call_args.args[0]["lr"] == 3e-3
    diary.finalize.assert_called_once_with("success")
    diary.reset_mock()
    run(tmp_path/"run", "mlflow")
    assert not diary.mock_calls, "a finished run is not told again"

def test_a_run_that_goes_on_is_told_from_the_beginning(diary, tmp_path):
    "Also with another logger, or none: what is told decides no result."
    with pytest.raises(RuntimeError, match="power cut"): run(tmp_path/"run", "none", kill=1)
    with pytest.raises(RuntimeError, match="power cut"): run(tmp_path/"run", "mlflow", kill=2)
    diary.finalize.assert_called_once_with("failed")
    diary.reset_mock()
    run(tmp_path/"run", "mlflow")
    assert [epoch for epoch, _ in told(diary)] == [1, 2, 3, 3]

def test_no_connection(diary, tmp_path):
    diary.log_hyperparams.side_effect = OSError("no route\nto host")
    with pytest.raises(RuntimeError, match=r"logger='mlflow' cannot be used \(OSError no route to host\): set mlflow up"):
        run(tmp_path/"run", "mlflow")
    assert not list((tmp_path/"run").iterdir())

def test_without_the_package_one_sentence(monkeypatch, tmp_path):
    for name in ("tensorboard", "tensorboardX", "wandb"): monkeypatch.setitem(sys.modules, name, None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(ImportError, match=f"logger='{name}' needs {name}: pip install {name}"): run(tmp_path/"run", name)
    run(tmp_path/"run", "auto")
    assert not (tmp_path/"run"/"tensorboard").exists()

def test_another_name_is_refused():
    with pytest.raises(ValueError, match="logger = 'tensorbord' is out of range: it must be one of auto, none"):
        Recipe(logger="tensorbord")

def test_tensorboard(tmp_path):
    "No epoch twice and none missing after a run went on; what fails at once leaves nothing."
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path/"run"
    with pytest.raises(RuntimeError, match="power cut"): run(out, "auto", kill=0)
    assert not (out/"tensorboard").exists()
    with pytest.raises(RuntimeError, match="power cut"): run(out, "auto", kill=2)
    run(out, "auto")
    events = reader.EventAccumulator(str(out/"tensorboard")).Reload()
    assert NUMBERS | {"test_top1", "macro_f1"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("val_loss")] == [1, 2, 3]

def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path/"mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    metrics = run(tmp_path/"a_run", "mlflow")
    client = mlflow.MlflowClient((tmp_path/"mlruns").as_uri())
    [found] = client.search_runs([client.get_experiment_by_name("clca").experiment_id])
    assert found.info.run_name == "a_run" and found.info.status == "FINISHED" and found.data.params["lr"] == "0.003"
    assert found.data.metrics["test_top1"] == metrics["test_top1"]
    assert [m.step for m in client.get_metric_history(found.info.run_id, "val_loss")] == [1, 2, 3]

def test_wandb(tmp_path, monkeypatch):
    "Offline: its files lie in the folder of the run, and the run is closed at the end."
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = pytest.importorskip("wandb")
    run(tmp_path/"run", "wandb")
    assert list((tmp_path/"run"/"wandb").glob("offline-run-*/*.wandb")) and wandb.run is None

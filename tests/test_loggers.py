"What a run tells a logger. Weights & Biases and MLflow are tried where they are: pip install wandb mlflow."
import sys
from unittest.mock import Mock

import pytest
import tiny
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clca.training import Recipe, loggers, loop, train
from clca.training.loggers import reporting

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
    monkeypatch.setattr(loop, "check_logger", lambda name, out: None)
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

@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_without_the_package_one_sentence(name, monkeypatch, tmp_path):
    "A folder of that name, which Python takes for a package where one starts it, is none."
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"logger='{name}' needs {name}: pip install {name}"): run(tmp_path/"run", name)
    monkeypatch.delitem(sys.modules, name)
    (tmp_path/name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ImportError, match=f"logger='{name}' needs"): run(tmp_path/"run", name)
    assert not list((tmp_path/"run").iterdir())

def test_another_name_is_refused():
    with pytest.raises(ValueError, match="logger = 'tensorbord' is out of range: it must be one of tensorboard, wandb, mlflow, none"):
        Recipe(logger="tensorbord")

def board(out): return EventAccumulator(str(out/"tensorboard")).Reload()

def test_tensorboard(tmp_path):
    """The default. No epoch twice and none missing after a run was stopped and went on, and what was done is there
    although the run has not ended; what fails at once leaves nothing."""
    out, name = tmp_path/"run", Recipe().logger
    with pytest.raises(RuntimeError, match="power cut"): run(out, name, kill=0)
    assert not list(out.iterdir())
    with pytest.raises(RuntimeError, match="power cut"): run(out, name, kill=2)
    assert [e.step for e in board(out).Scalars("val_loss")] == [1, 2]
    metrics, told = run(out, name), board(out)
    assert NUMBERS | {"test_top1", "macro_f1"} <= set(told.Tags()["scalars"])
    for tag in NUMBERS: assert [e.step for e in told.Scalars(tag)] == [1, 2, 3]
    assert told.Scalars("test_top1")[0].value == pytest.approx(metrics["test_top1"])
    before = {path: path.read_bytes() for path in (out/"tensorboard").iterdir()}
    assert run(out, name) == metrics and before == {path: path.read_bytes() for path in (out/"tensorboard").iterdir()}
    assert sum(map(len, before.values())) < 20_000

def test_an_epoch_can_be_watched_when_it_is_done(tmp_path):
    with reporting("tensorboard", tmp_path, dict(keep=.1)) as report:
        report(dict(val_top1=.5), 1)
        assert [e.step for e in board(tmp_path).Scalars("val_top1")] == [1]

@pytest.mark.parametrize("searched", [(), (1e-3, 3e-3)])
def test_files_of_others_stay(searched, tmp_path):
    (theirs := tmp_path/"run"/"tensorboard"/"events.out.tfevents.1").parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(ValueError, match="tensorboard is not of a run of ours: use another folder"):
        train(tiny.model(), tiny.data(), tmp_path/"run", Recipe(**RECIPE, lr_search=searched))
    assert theirs.read_text() == "theirs" and [p.name for p in (tmp_path/"run").iterdir()] == ["tensorboard"]

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

"Nothing is lost and nothing is written over: refusals, stops and damage, in one process and in two."
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from helpers import ROOT, code_cells
from safetensors.torch import load_file, save_file
from torch import nn

import clca
from clca import load_checkpoint
from clca.training import environment, records
from clca.training.folders import find_files
from clca.training.loop import train
from clca.training.recipe import Recipe, param_groups
from clca.training.records import check_folder, claim_folder, locked, own_folder, why_result

@pytest.fixture(scope="module", autouse=True)
def on_one_thread():
    "All runs of this file, the one that tests share too: bits are compared, and another number of threads gives others."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

def go(out, model=None, data=None, recipe=tiny.SHORT, **parameters):
    return train(tiny.model() if model is None else model, data or tiny.data(), out, recipe, parameters)

def refusal(*args, error=ValueError, **kwargs):
    "The sentence, which is one line, with which a run is refused."
    with pytest.raises(error) as caught: go(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)

def contents(folder): return {p.name: p.read_bytes() for p in Path(folder).iterdir()}
def weights(out): return load_file(out/"model.safetensors")
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    go(out := tmp_path_factory.mktemp("runs")/"finished")
    return out

class Ends(tiny.Colours):
    "Images of which the n-th that is read ends the run."
    def __init__(self, n, after, error):
        super().__init__(n)
        self.after, self.error, self.begun = after, error, False
    def set_epoch(self, epoch):
        self.begun = True
        super().set_epoch(epoch)
    def __getitem__(self, i):
        self.seen += self.begun # not what is read to measure the loader
        if self.seen > self.after: raise self.error
        return super().__getitem__(i)

def ending(after, error):
    data = tiny.data()
    data.train = Ends(50, after, error)
    return data

# Stop, and again -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the share is gone")], ids=lambda e: type(e).__name__)
def test_a_run_that_ends_before_its_first_checkpoint_was_never_there(finished, tmp_path, error):
    "The same cell again, with the same model in memory, starts anew; so does another recipe in the same folder."
    model = tiny.model()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    handler = signal.getsignal(signal.SIGINT)
    for _ in range(2): # as it can be stopped a second time
        with pytest.raises(type(error)): go(tmp_path, model, ending(20, error))
        assert equal(model.state_dict(), start) and not contents(tmp_path)
        assert signal.getsignal(signal.SIGINT) is handler
    go(tmp_path, model)
    assert equal(weights(tmp_path), weights(finished))

def test_stop_in_a_thread(tmp_path):
    "Where no handler of signals can be set, training works as well."
    done = []
    thread = threading.Thread(target=lambda: done.append(go(tmp_path)["test_top1"]))
    thread.start()
    thread.join()
    assert done

def test_stop_after_the_first_checkpoint_goes_on(tmp_path):
    "With the half-trained model in memory, too."
    model, recipe = tiny.model(), Recipe(epochs=2, batch_size=8, lr=3e-3)
    go(tmp_path/"whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt): go(tmp_path/"stopped", model, ending(70, KeyboardInterrupt()), recipe)
    assert {"parameters.json", "last.ckpt"} <= {p.name for p in (tmp_path/"stopped").iterdir()}
    go(tmp_path/"stopped", model, recipe=recipe)
    assert equal(weights(tmp_path/"whole"), weights(tmp_path/"stopped"))

def test_switches_of_torch_stay(tmp_path):
    torch.use_deterministic_algorithms(True)
    try:
        go(tmp_path)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally: torch.use_deterministic_algorithms(False)

def small(**options):
    torch.manual_seed(0)
    build = dict(image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=4, at=(1, 2), keep=.5)
    return clca.create_model("vit_tiny_patch16_224", 3, **build | options)

def test_what_is_frozen_stays_frozen(tmp_path):
    "A batch norm in eval() keeps its statistics through training and validation; a whole model in eval() is trained."
    model = small().train()
    model.head.norm.eval()
    before = model.head.norm.running_mean.clone()
    metrics = go(tmp_path/"frozen", model)
    assert not model.head.norm.training and model.training and torch.equal(model.head.norm.running_mean, before)
    go(tmp_path/"eval", whole := small().eval())
    go(tmp_path/"train", small().train())
    assert whole.training and equal(weights(tmp_path/"eval"), weights(tmp_path/"train"))
    assert .1 < metrics["batchnorm_start"] < 1, "the other batch norm of the head has moved in six steps"

# Damage --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
@pytest.mark.parametrize("name", ["parameters.json", "metrics.json"])
def test_damaged_records_are_named(finished, tmp_path, name, content):
    for file, kept in contents(finished).items(): (tmp_path/file).write_bytes(kept)
    (tmp_path/name).write_bytes(content)
    before = contents(tmp_path)
    assert f"{name} is damaged (" in refusal(tmp_path) and contents(tmp_path) == before

@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b"", None], ids=["cut", "empty", "gone"])
def test_damaged_weights_of_a_finished_run(finished, tmp_path, damage):
    for file, kept in contents(finished).items(): (tmp_path/file).write_bytes(kept)
    file = tmp_path/"model.safetensors"
    if damage: file.write_bytes(damage(file.read_bytes()))
    else: file.unlink()
    assert "model.safetensors cannot be read" in refusal(tmp_path)
    (tmp_path/"metrics.json").unlink() # as the sentence says
    go(tmp_path)
    assert equal(weights(tmp_path), weights(finished))

@pytest.mark.parametrize("name", ["history.csv", "predictions.csv"])
def test_a_finished_run_without_its_results(finished, tmp_path, name):
    for file, kept in contents(finished).items(): (tmp_path/file).write_bytes(kept)
    (tmp_path/name).unlink()
    assert f"{name} is missing from a finished run: delete metrics.json beside it" in refusal(tmp_path)
    (tmp_path/"metrics.json").unlink() # as the sentence says
    go(tmp_path)
    assert (tmp_path/name).exists() and equal(weights(tmp_path), weights(finished))

@pytest.fixture
def stopped(tmp_path):
    "A run that was stopped in its second epoch."
    recipe = Recipe(epochs=2, batch_size=8, lr=3e-3)
    with pytest.raises(KeyboardInterrupt): go(tmp_path, data=ending(70, KeyboardInterrupt()), recipe=recipe)
    return tmp_path, recipe

@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:len(b) // 2], lambda b: b"hello", lambda b: b"\0" * 999])
def test_a_damaged_checkpoint_is_named(stopped, damage):
    out, recipe = stopped
    (out/"last.ckpt").write_bytes(damage((out/"last.ckpt").read_bytes()))
    assert "last.ckpt is damaged (" in (why := refusal(out, recipe=recipe)) and "delete it" in why
    (out/"last.ckpt").unlink()
    assert go(out, recipe=recipe)["epochs"] == 2

def test_a_checkpoint_of_another_model_is_named(stopped):
    out, recipe = stopped
    checkpoint = records.AtomicIO().load_checkpoint(out/"last.ckpt")
    checkpoint["state_dict"]["model.head.bias"] = torch.zeros(7)
    records.AtomicIO().save_checkpoint(checkpoint, out/"last.ckpt")
    assert "last.ckpt holds the weights of another model" in refusal(out, recipe=recipe)

@pytest.fixture
def other_machine(monkeypatch):
    "What `auto` is from now on."
    return lambda precision: monkeypatch.setattr("clca.training.loop.resolve_precision", lambda *_: precision)

def test_a_run_keeps_its_precision(stopped, other_machine):
    "Another machine would go on in another one, in silence."
    out, recipe = stopped
    other_machine("bf16-mixed")
    why = refusal(out, recipe=recipe)
    assert "was trained in 32-true so far, and precision=auto is bf16-mixed on this machine" in why
    other_machine("32-true")
    assert go(out, recipe=recipe)["precision_used"] == "32-true"

def test_a_checkpoint_without_its_precision_goes_on(stopped):
    "As those of earlier versions."
    out, recipe = stopped
    checkpoint = records.AtomicIO().load_checkpoint(out/"last.ckpt")
    for state in checkpoint["callbacks"].values(): state.pop("precision", None)
    records.AtomicIO().save_checkpoint(checkpoint, out/"last.ckpt")
    assert go(out, recipe=recipe)["epochs"] == 2

@pytest.mark.parametrize("name, remedy", [("plan.json", "write it again, which loses no run"), ("chosen.json", "chooses the rates anew"),
    ("trial.json", "tries that rate anew")])
def test_the_remedy_for_a_damaged_record_loses_nothing(tmp_path, name, remedy):
    (tmp_path/name).write_text("{")
    with pytest.raises(ValueError, match=f"{name} is damaged .*{remedy}"): records.read_record(tmp_path/name)

@pytest.mark.parametrize("part", ["callbacks", "loops", "optimizer_states"])
def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path, part):
    "Without the callbacks, say, the epochs before it would be missing in the history, in silence."
    checkpoint = dict.fromkeys(["state_dict", "epoch", "optimizer_states", "lr_schedulers", "loops", "callbacks"])
    checkpoint.pop(part)
    torch.save(checkpoint, tmp_path/"last.ckpt")
    with pytest.raises(ValueError, match="last.ckpt is damaged .it is no checkpoint of a training.: delete it"):
        records.AtomicIO().load_checkpoint(tmp_path/"last.ckpt")

def test_weights_of_a_finished_run_that_do_not_fit(finished):
    model = tiny.model()
    model.blocks = model.blocks[:1]
    assert "holds the weights of another model" in refusal(finished, model=model)

def test_a_stop_leaves_a_folder_that_was_a_run(finished, tmp_path):
    "metrics.json was damaged and deleted, as the message says; stopped in the first epoch, the same command goes on."
    for path in finished.iterdir(): (tmp_path/path.name).write_bytes(path.read_bytes())
    (tmp_path/"metrics.json").unlink()
    with pytest.raises(KeyboardInterrupt): go(tmp_path, data=ending(10, KeyboardInterrupt()))
    assert go(tmp_path)["epochs"] == 1

def test_weights_that_are_no_numbers(tmp_path):
    model = tiny.model()
    with torch.no_grad(): model.blocks[0].attn.qkv.weight[0, 0] = float("nan")
    assert "values in blocks.0.attn.qkv.weight that are no finite numbers" in refusal(tmp_path, model=model)
    assert not contents(tmp_path)

def test_a_home_folder_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    go("~/run")
    assert (tmp_path/"run"/"metrics.json").exists()

@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path("x"), [1, float("inf")]], ids=str)
def test_parameters_that_are_no_json(tmp_path, value):
    assert refusal(tmp_path/"run", extra=value).startswith(f"extra = {value!r} cannot be recorded: give text")
    assert not (tmp_path/"run").exists()

def test_another_preparation_is_said_with_its_remedy(tmp_path):
    claim_folder(tmp_path, dict(preparation_used=dict(crop_pct=.9)))
    with pytest.raises(ValueError, match="give what it has as `preparation` to go on"):
        check_folder(tmp_path, dict(preparation_used=dict(crop_pct=1.)))

def test_weights_are_known_by_their_bytes(tmp_path):
    "Moved, they are the same start; written over, they are another; gone, nobody misses them once the run is finished."
    first, other = tmp_path/"first.safetensors", tmp_path/"other.safetensors"
    plain = small(head="linear", cache=False, reducer="none", at=())
    save_file(plain.backbone.state_dict(), first)
    made = go(tmp_path/"run", small(weights=str(first)))
    assert len(made["weights_hash"]) == 16 and made["weights"] == str(first)
    other.write_bytes(first.read_bytes())
    assert go(tmp_path/"run", small(weights=str(other))) == made
    again = small(weights=str(first))
    save_file({k: v + 1 for k, v in load_file(first).items()}, first)
    assert "holds a run with weights_hash = " in refusal(tmp_path/"run", again)
    first.unlink()
    assert go(tmp_path/"run", again) == made
    assert "weights_hash" not in go(tmp_path/"plain", small())

# Whose folder it is --------------------------------------------------------------------------------------------------

def test_a_refusal_leaves_the_folder_as_it_was(finished):
    before = contents(finished)
    for change in (dict(keep=.5), dict(recipe=Recipe(epochs=2)), dict(data=tiny.data(hash="other"))):
        assert "use another folder" in refusal(finished, **change) and contents(finished) == before

def test_advice_of_a_refusal_can_be_followed(tmp_path):
    "Fewer images than a batch, then a smaller batch; no number, then a lower rate: in the same folder."
    assert "lower batch_size" in refusal(tmp_path, data=tiny.data(7))
    wild = Recipe(epochs=1, batch_size=8, lr=1e30, clip_grad=0., warmup_epochs=0)
    assert "lower lr, or set clip_grad" in refusal(tmp_path, recipe=wild, error=FloatingPointError)
    assert not contents(tmp_path) and go(tmp_path)["epochs"] == 1

@pytest.mark.parametrize("name", ["teacher", "clip_grad", "log_gradients", "data_seed", "skip_bad"])
def test_a_parameter_that_did_not_exist_has_its_default(tmp_path, name):
    "Of the recipe and of the data; another value, or one that has no default, is said."
    (tmp_path/"parameters.json").write_text('{"keep": 0.1}')
    default = {"teacher": "", "clip_grad": 1., "log_gradients": False, "data_seed": 0, "skip_bad": False}[name]
    check_folder(tmp_path, dict(keep=.1) | {name: default})
    told = ({name: "other"}, f"{name} = {default!r}, not 'other'"), (dict(taste=1), "no taste, perhaps of another")
    for change, what in told:
        with pytest.raises(ValueError, match=what): check_folder(tmp_path, dict(keep=.1) | change)

def test_results_without_a_note_are_left_alone(tmp_path):
    for name in ("predictions.csv", "metrics.json", "last.ckpt", "model.safetensors"):
        (tmp_path/name).mkdir()
        (tmp_path/name/name).write_text("somebody's")
        assert f"holds {name}, and no parameters.json says" in refusal(tmp_path/name)
        assert list(contents(tmp_path/name)) == [name]

def test_predictions_and_runs_do_not_share_a_folder(finished, tmp_path):
    before = contents(finished)
    with pytest.raises(ValueError, match="holds a run of train.ipynb"):
        claim_folder(finished, dict(top=3), note="prediction.json")
    claim_folder(tmp_path, dict(top=3), note="prediction.json")
    assert "holds answers of predict.ipynb" in refusal(tmp_path) and contents(finished) == before

def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path/"out").write_text("")
    assert "is a file" in refusal(tmp_path/"out")
    assert "nothing can be written in" in refusal(tmp_path/"out"/"run", error=OSError)

def test_the_second_process_is_told(tmp_path):
    "Before it reads or writes; and the first one's end frees the folder, however it ended."
    code = (f"import sys; from clca.training.records import locked; from pathlib import Path\n"
            f"with locked(Path({str(tmp_path)!r})): print('in', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"in\n"
    assert f"another process is at work in {tmp_path}" in refusal(tmp_path)
    other.kill()
    other.communicate()
    assert go(tmp_path)["epochs"] == 1 and ".in-use" not in contents(tmp_path)

def test_a_finished_run_is_read_where_nothing_can_be_written(finished, monkeypatch):
    def locked(out): raise OSError
    monkeypatch.setattr("clca.training.loop.locked", locked)
    assert go(finished)["epochs"] == 1

# Wrapped models ------------------------------------------------------------------------------------------------------

def test_a_compiled_model_has_its_own_names(tmp_path):
    "In the run, in the groups of the optimiser, and in the checkpoint: stopped compiled, it goes on as it is."
    recipe = Recipe(epochs=2, batch_size=8, lr=3e-3)
    wrapped = lambda: torch.compile(small(), backend="eager")
    models = small(), wrapped(), nn.DataParallel(small())
    assert len({str([len(g["params"]) for g in param_groups(model, .05)]) for model in models}) == 1
    go(tmp_path/"plain", small(), recipe=recipe)
    with pytest.raises(KeyboardInterrupt): go(tmp_path/"run", wrapped(), ending(70, KeyboardInterrupt()), recipe)
    go(tmp_path/"run", small(), recipe=recipe)
    assert equal(weights(tmp_path/"plain"), weights(tmp_path/"run"))
    go(tmp_path/"compiled", wrapped(), recipe=recipe)
    assert load_checkpoint(tmp_path/"compiled").spec == small().spec
    assert weights(tmp_path/"compiled").keys() == weights(tmp_path/"plain").keys()
    again = wrapped()
    assert go(tmp_path/"compiled", again, recipe=recipe)["epochs"] == 2
    assert equal(again._orig_mod.state_dict(), weights(tmp_path/"compiled"))

# The commit ----------------------------------------------------------------------------------------------------------

def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    "Wherever one stands and whatever GIT_DIR says; and not that of a repository around a checkout without git."
    made = environment.provenance()
    mine = tmp_path/"mine"
    mine.mkdir()
    git = lambda *words: environment._git(mine, "-c", "user.name=a", "-c", "user.email=a@example.org", *words)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "a project of mine")
    monkeypatch.chdir(mine)
    assert environment.provenance() == made
    monkeypatch.setenv("GIT_DIR", str(mine/".git"))
    assert environment.provenance() == made
    monkeypatch.delenv("GIT_DIR")
    (mine/"clca").mkdir()
    assert environment._commit(mine/"clca") == ("", "the code lies within a repository that does not track it")
    (tmp_path/"clca").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment._commit(tmp_path/"clca")[0] == "" and environment._commit(tmp_path/"clca")[1]

def test_what_the_commit_does_not_hold_is_marked(tmp_path):
    "In a folder whose name is no UTF-8, as there are on old disks: a run must not end there with a decoding error."
    top = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (top/"clca").mkdir(parents=True)
    (top/"clca"/"a.py").write_text("1")
    git = lambda *words: environment._git(top, "-c", "user.name=a", "-c", "user.email=a@example.org", *words)
    for words in ("init", "-q"), ("add", "-A"), ("commit", "-qm", "code"): git(*words)
    clean, why = environment._commit(top/"clca")
    assert re.fullmatch("[0-9a-f]{40}", clean) and not why
    (top/"notes.txt").write_text("beside the code")
    assert environment._commit(top/"clca") == (clean, "")
    (top/"clca"/"b.py").write_text("a new module")
    assert environment._commit(top/"clca") == (f"{clean}+", "")
    (top/".git"/"index").write_text("damaged")
    assert environment._commit(top/"clca") == ("", "git cannot read the checkout")

def test_a_checkout_of_another_user(tmp_path):
    if os.geteuid(): pytest.skip("only root can give a folder away")
    (tmp_path/"clca").mkdir()
    environment._git(tmp_path, "init", "-q")
    for path in (tmp_path, tmp_path/".git"): os.chown(path, 12345, 12345)
    assert "git does not trust the checkout" in environment._commit(tmp_path/"clca")[1]

def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._commit(tmp_path) == ("", "git is not installed")

# Predictions ---------------------------------------------------------------------------------------------------------

def predict_cells(names: dict, *words: str) -> None:
    "Run those cells of the notebook that hold one of the words."
    for cell in code_cells(ROOT/"nbs"/"predict.ipynb"):
        if any(word in cell.source for word in words): exec(cell.source, names)

def test_predictions_have_a_folder_of_their_own(tmp_path, monkeypatch):
    "One for each model, images and question; a folder that is named must be free or hold the same."
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path))
    run, photo = tmp_path/"run", tmp_path/"a.png"
    run.mkdir()
    def ask(out="", weights="w", pixels="p", top=3, file=""):
        (run/(file or "model.safetensors")).write_text(weights)
        photo.write_text(pixels)
        names = dict(run=run/file, candidates=[photo], top=top, shown=6, out=out, Path=Path)
        exec("from clca.training.records import *\nfrom clca.training.paths import *\nfrom clca.lab.kept import showing", names)
        predict_cells(names, "asked = dict(")
        if not out: names["folder"] = own_folder(names["folder"], names["asked"], "prediction.json")
        claim_folder(names["folder"], names["asked"], note="prediction.json")
        return names["folder"].relative_to(tmp_path).as_posix()
    assert ask() == ask() == "runs/predict"
    assert [ask(weights="v"), ask(pixels="q"), ask(top=1)] == ["runs/predict-2", "runs/predict-3", "runs/predict-4"]
    assert [ask(file="best.pth"), ask(file="best.pth", weights="v")] == ["runs/predict-5", "runs/predict-6"], "a model may be a file"
    assert ask() == "runs/predict" and ask(out=str(tmp_path/"mine")) == ask(out=str(tmp_path/"mine")) == "mine"
    with pytest.raises(ValueError, match="use another folder .out."): ask(out=str(tmp_path/"mine"), pixels="q")

def test_two_predictions_at_once(tmp_path, monkeypatch):
    "Each takes its folder before it asks anything, so a long one never finds its folder taken."
    first, second = (own_folder(tmp_path/"predict", dict(images=name), "prediction.json") for name in "ab")
    assert [first.name, second.name] == ["predict", "predict-2"]
    cells = [cell.source for cell in code_cells(ROOT/"nbs"/"predict.ipynb")]
    cell = next(source for source in cells if "= predictor(photos" in source)
    assert 0 < cell.index("own_folder(") < cell.index("= predictor(photos")

def test_results_among_photographs_are_not_asked_about(tmp_path):
    "Within the folder of images, or the folder itself: the same command is the same question a second time."
    def ask(out):
        found = find_files(tmp_path, lambda path: why_result(path, out))
        return records.fingerprint(found.files), found.left_out
    (tmp_path/"a.png").write_text("a photograph")
    for out in (tmp_path/"answers", tmp_path):
        before, _ = ask(out)
        claim_folder(out, dict(top=3), "prediction.json")
        for name in ("predictions.csv", "left_out.csv", "tokens.png"): (out/name).write_text("")
        after, left = ask(out)
        assert before == after and left[(out/"tokens.png").relative_to(tmp_path).as_posix()] == records.RESULTS
    (tmp_path/"b.png").write_text("another")
    assert ask(tmp_path)[0] != after

@pytest.mark.parametrize("name", ["left_out.csv", "data.png", "model.png", "learning.png", "confusion.png"])
def test_somebodys_table_and_pictures_are_left_alone(tmp_path, name):
    (tmp_path/name).write_text("mine")
    assert f"holds {name}, and no parameters.json says what it belongs to" in refusal(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}

def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch, capsys):
    "A table is printed, so that what was measured is not lost; an exported program raises and does not end the process."
    from clca.training.files import write_table
    table = pd.DataFrame(dict(seconds=[1.5, 2.5]))
    write_table(tmp_path/"a.csv", table)
    code = ("import resource, sys; from pathlib import Path\nimport torch\nfrom clca.tools.exporting import WRITERS\n"
            "graph = torch.export.export(torch.nn.Linear(500, 500), (torch.zeros(1, 500),))\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n"
            "try: WRITERS['.pt2'](graph, Path(sys.argv[1]))\nexcept OSError as e: print('raised', e)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"m.pt2")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "m.pt2 could not be written" in done.stdout, done.stderr[-500:]
    def full(*args): raise OSError(28, os.strerror(28))
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="the last good one is kept: make room"): write_table(tmp_path/"a.csv", table * 2)
    assert capsys.readouterr().out == "seconds\n3.0\n5.0\n\n" and (tmp_path/"a.csv").read_text() == "seconds\n1.5\n2.5\n"
    assert not list(tmp_path.glob(".*"))

def test_nothing_asks_for_a_lock_twice(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another process is at work"), locked(tmp_path): pass

def test_the_readme_is_whole_in_any_locale(tmp_path):
    (tmp_path/"nbs").mkdir()
    (tmp_path/"nbs"/"index.ipynb").write_bytes((ROOT/"nbs"/"index.ipynb").read_bytes())
    code = f"import sys; sys.path.insert(0, {str(ROOT/'docs')!r}); import repository; repository.write_readme(sys.argv[1])"
    env = os.environ | dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True)
    assert (tmp_path/"README.md").read_text(encoding="utf-8") == (ROOT/"README.md").read_text(encoding="utf-8")

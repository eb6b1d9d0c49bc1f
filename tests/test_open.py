"""What others add works wherever a built-in does, and a name is never silently something else."""
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, registries_restored
from safetensors.torch import save_file

import clca
from clca.head import Head, LinearHead
from clca.reducers import Reducer, TopK
from clca.scores import SCORES, register_score
from clca.tools.exporting import describe
from clca.tools.properties import check_reducer, small_images, small_model

@pytest.fixture(autouse=True)
def as_it_was():
    "What a test registers is gone after it."
    with registries_restored(): yield

@pytest.fixture
def module(tmp_path, monkeypatch):
    "A module of somebody else, on the path of this process and of others."
    (tmp_path/"elsewhere.py").write_text("from clca.reducers import TopK\nclass Mine(TopK): pass\n"
                                         "from clca.head import CLAHead\nclass MyHead(CLAHead): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    return tmp_path

def kept(model): return clca.trace(model, small_images()).kept[0]

@pytest.mark.parametrize("reducer", ["topk", "evit", "ats"])
def test_a_score_of_ones_own_is_used(reducer):
    "Ranked by position, the last patches stay: whatever attention says."
    @register_score("later", kind="positive")
    def later(view):
        place = torch.arange(view.x.shape[1], dtype=view.x.dtype) / view.x.shape[1]
        return place.expand(len(view.x), -1) ** 20
    model = small_model(reducer, score="later", cache=False)
    asked, otherwise = kept(model), kept(small_model(reducer, cache=False))
    assert asked.max() == 15 and asked.float().mean() > 10 and not torch.equal(asked, otherwise)
    check_reducer(reducer, score="later")

def test_ats_weighs_rows_of_heads_by_their_values():
    "A score with a row for each head counts by the length of that head's values, as the published one does."
    @register_score("as_cls", kind="shares")
    def as_cls(view): return SCORES["cls"].of(view)
    own, published = (small_model("ats", score=score, cache=False) for score in ("as_cls", "cls"))
    assert torch.equal(kept(own), kept(published))

def test_evit_fuses_by_shares():
    "Positive scores are made shares of; scores that may be negative are refused when the model is built."
    @register_score("huge", kind="positive")
    def huge(view): return 1e3 + view.x.norm(dim=-1)
    model, plans = small_model("evit", score="huge", cache=False), []
    for stage in model.stages: stage.register_forward_hook(lambda stage, args, plan: plans.append(plan))
    model(small_images())
    assert len(plans) == 2 and all((plan.weight.sum(1) < 1).all() and (plan.weight >= 0).all() for plan in plans)
    register_score("signed")(lambda view: view.x.mean(-1))
    for reducer in ("evit", "ats"):
        with pytest.raises(ValueError, match="needs positive scores"): small_model(reducer, score="signed")
    assert small_model("topk", score="signed")(small_images()).isfinite().all()

def test_a_head_of_ones_own():
    @clca.register_head("mean")
    class Mean(Head):
        def __init__(self, dim, layers, num_classes):
            super().__init__()
            self.classifier = torch.nn.Linear(dim, num_classes)
        def forward(self, cls): return self.classifier(cls.mean(2))
    model = small_model("evit", head="mean")
    assert type(model.head) is Mean and model.taps == (1, 3, 4) and model.spec.variant == "mean+clc"
    assert describe(model, list("abc"))["model"]["head"] == "mean"
    with pytest.raises(ValueError, match="did you mean 'cla_last'"): small_model("evit", head="cla_lst")
    with pytest.raises(ValueError, match="is taken"): clca.register_head("cla")(Mean)

def test_a_control_exports_as_itself():
    for head in ("cla_last", "ifa", "cla", "linear"):
        about = describe(small_model("evit", head=head), list("abc"))
        assert about["model"]["head"] == head

@pytest.mark.parametrize("wrong", [1.5, "2", True, None, -1])
def test_registers_are_a_whole_number(wrong):
    with pytest.raises(ValueError, match=r"num_clr=.* must be 0 or more: the whole number of registers"):
        clca.create_model("vit_tiny_patch16_224", 3, num_clr=wrong)

def test_by_address(module):
    model = small_model("elsewhere:Mine", head="elsewhere:MyHead")
    assert type(model.stages[0]).__name__ == "Mine" and issubclass(type(model.stages[0]), TopK)
    assert model.spec.reducer == "elsewhere:Mine" and type(model.head).__name__ == "MyHead"
    for name, says in {"nowhere:Mine": "cannot be imported", "elsewhere:Yours": "has no 'Yours'", "json:loads": "is no reducer"}.items():
        with pytest.raises((ValueError, TypeError), match=says): small_model(name)

def run_folder(folder, **options):
    "A run folder of a model, as training leaves it."
    model = small_model("topk", depth=5)
    folder.mkdir()
    build = clca.spec.options_of(model.spec) | options
    save_file(model.float().state_dict(), folder/"model.safetensors")
    (folder/"config.json").write_text(json.dumps(dict(model=build)))
    return folder

def test_a_file_never_makes_us_import(module, tmp_path):
    folder = run_folder(tmp_path/"run", reducer="elsewhere:Mine")
    with pytest.raises(ValueError, match="never makes this package import code"): clca.load_checkpoint(folder)
    assert "elsewhere" not in sys.modules
    class Other(TopK): pass
    assert type(clca.load_checkpoint(folder, classes={"elsewhere:Mine": Other}).stages[0]) is Other

def test_a_score_in_a_file_imports_nothing(module, tmp_path):
    folder = run_folder(tmp_path/"run", score="elsewhere:thing")
    for classes in ({}, {"elsewhere:thing": TopK}): # a score is no class, and outlives the building of a model
        with pytest.raises(ValueError, match="never makes this package import code"):
            clca.load_checkpoint(folder, classes=classes)
    assert "elsewhere" not in sys.modules

def test_a_class_is_lent_and_not_kept(tmp_path):
    folder = run_folder(tmp_path/"run", reducer="of_mine")
    class Other(TopK): pass
    assert type(clca.load_checkpoint(folder, classes={"of_mine": Other}).stages[0]) is Other
    with pytest.raises(ValueError, match="not registered"): clca.load_checkpoint(folder)
    with pytest.raises(ValueError, match="unknown reducer 'of_mine'"): small_model("of_mine")

def test_one_class_has_one_name():
    "The address of a built-in is the built-in, with all that hangs on its name."
    for reference in (False, True):
        model = small_model("clca.reducers:DynamicViT", head="clca.head:LinearHead", reference=reference, keep=[.7, .5])
        named = small_model("dyvit", head="linear", reference=reference, keep=[.7, .5])
        assert model.spec == named.spec and model(small_images()).equal(named(small_images()))
    @clca.register_head("like_timm")
    class LikeTimm(LinearHead): pass
    assert small_model("evit", head="like_timm")(small_images()).shape == (3, 3)

def test_an_edited_class_is_the_one_that_is_used(module):
    small_model("elsewhere:Mine")
    class Edited(TopK): pass
    sys.modules["elsewhere"].Mine = Edited
    assert type(small_model("elsewhere:Mine").stages[0]) is Edited

def test_names_that_cannot_be():
    with pytest.raises(ValueError, match="'auto' stands for"): register_score("auto")
    with pytest.raises(TypeError, match="write @register_reducer"): clca.register_reducer(TopK)
    for thing in (Reducer, Head):
        with pytest.raises(TypeError, match="is no"): (clca.register_head if thing is Head else clca.register_reducer)("x")(thing)

def test_a_score_of_nothing_is_no_nan():
    register_score("nothing", kind="positive")(lambda view: torch.zeros_like(view.x[..., 0]))
    for reducer in ("topk", "evit", "ats"): assert small_model(reducer, score="nothing")(small_images()).isfinite().all()

def test_a_file_may_name_what_somebody_typed(module, tmp_path):
    folder = run_folder(tmp_path/"run", reducer="elsewhere:Mine")
    small_model("elsewhere:Mine")
    assert type(clca.load_checkpoint(folder).stages[0]).__name__ == "Mine"

def test_a_file_may_name_what_is_registered(tmp_path):
    folder = run_folder(tmp_path/"run", reducer="of_mine")
    with pytest.raises(ValueError, match="'of_mine' is not registered"): clca.load_checkpoint(folder)
    clca.register_reducer("of_mine")(type("OfMine", (TopK,), {}))
    assert type(clca.load_checkpoint(folder).stages[0]).__name__ == "OfMine"

def test_papermill_takes_an_address(module):
    "In the process of a run, which knows nothing of this one; its record says so."
    out, env = module/"run", os.environ | {"PYTHONPATH": os.pathsep.join([str(module), str(ROOT)])}
    out.mkdir()
    small = dict(epochs=1, images_per_class=4, batch_size=16, image_size=32, out=str(out), reducer="elsewhere:Mine")
    command = [sys.executable, "-m", "papermill", "nbs/train.ipynb", str(out/"train.ipynb"), "-y", json.dumps(small),
               "--no-progress-bar"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    assert json.loads((out/"metrics.json").read_text())["reducer"] == "elsewhere:Mine"
    assert json.loads((out/"config.json").read_text())["model"]["reducer"] == "elsewhere:Mine"
    asked = dict(model=str(out), images="figures", shown=1, out=str(module/"answers"), classes=["elsewhere:Mine"])
    command[4:] = [str(module/"predict.ipynb"), "-y", json.dumps(asked), "--no-progress-bar"]
    command[3] = "nbs/predict.ipynb"
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    assert (module/"answers"/"predictions.csv").exists()

def test_another_reducer_of_the_same_name_is_refused():
    with pytest.raises(ValueError, match="reducer 'evit' is taken by clca.reducers.evit:EViT"):
        clca.register_reducer("evit")(type("X", (TopK,), {}))
    with pytest.raises(TypeError, match="is no reducer"): clca.register_reducer("x")(torch.nn.Linear)
    with pytest.raises(ValueError, match="did you mean 'evit'.*Valid: none, topk, evit"): small_model("evitt")

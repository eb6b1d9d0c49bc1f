"What pip installs works alone: a wheel with the base requirements and nothing else, where nothing can be written."
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from helpers import ROOT, requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

USE = """
import importlib.util, os, pathlib, sys, torch
for name in ("pandas", "lightning", "matplotlib", "seaborn", "sklearn", "scipy", "papermill", "nbformat", "IPython"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported, so this test shows nothing"
import clca
assert "site-packages" in clca.__file__, clca.__file__
run, out = sys.argv[1:]
torch.manual_seed(0)
images = torch.randn(2, 3, 32, 32)
small = dict(image_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=4)
model = clca.create_model("vit_tiny_patch16_224", 5, at=(1, 2), **small).eval()
with torch.inference_mode(): logits = model(images)
trace = clca.trace(model, images)
assert torch.allclose(trace.logits, logits, atol=1e-6) and len(trace.tokens_out) == 4
assert 0 < clca.macs(model, 32) < 1
clca.export(model, f"{out}/model.pt2")
exported = torch.export.load(f"{out}/model.pt2").module()
assert torch.allclose(exported(images), logits, atol=1e-5)
assert clca.load_checkpoint(run)(images).shape == (2, 22)
import timm
vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, embed_dim=16, num_heads=2).eval()
assert clca.wrap(vit, cache=False, keep=.5)(images).shape == (2, 5)
assert torch.equal(clca.wrap(vit, cache=False, keep=1.)(images), vit(images))
from clca.training.paths import data_dir
assert data_dir() == pathlib.Path(os.environ["XDG_CACHE_HOME"])/"clca"
try: clca.training.load_data
except ModuleNotFoundError as e: assert "pip install 'clca[train]'" in str(e), e
else: raise AssertionError("training works without its requirements")
print("all works")
"""

def closure(wanted: list[Requirement]) -> set[str]:
    "These distributions and what they require, as far as it is installed here."
    seen, todo = set(), list(wanted)
    while todo:
        r = todo.pop()
        if (name := canonicalize_name(r.name)) in seen: continue
        try: needs = distribution(name).requires or []
        except PackageNotFoundError: continue
        seen.add(name)
        todo += [n for n in map(Requirement, needs) if n.marker is None or n.marker.evaluate({"extra": ""})]
    return seen

def lend(names: set[str], folder: Path) -> None:
    "Make installed distributions importable from another folder, without a copy."
    for name in names:
        files = distribution(name).files or []
        for top in {f.parts[0] for f in files if f.parts[0] not in ("..", "__pycache__", "bin")}:
            source, target = Path(distribution(name).locate_file(top)), folder/top
            if source.exists() and not target.exists(): target.symlink_to(source)

def pip(command: str, *options) -> None:
    call = [sys.executable, "-m", "pip", command, "--no-deps", *options]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def checkout(copy: Path) -> Path:
    "A copy of what pip needs of this checkout, so that nothing is left in it."
    copy.mkdir(parents=True)
    for name in "settings.ini setup.py pyproject.toml README.md LICENSE MANIFEST.in constraints.txt".split():
        shutil.copy(ROOT/name, copy/name)
    shutil.copytree(ROOT/"clca", copy/"clca", ignore=shutil.ignore_patterns("__pycache__"))
    return copy

def wheel(folder: Path) -> Path:
    pip("wheel", "--no-build-isolation", "-w", folder, checkout(folder/"checkout"))
    return next(folder.glob("clca-*.whl"))

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The Python of an environment with the wheel and the base requirements."
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder/"env", with_pip=False, symlinks=True)
    python = folder/"env"/"bin"/"python"
    site = next((folder/"env"/"lib").glob("python*"))/"site-packages"
    pip("install", "--target", site, wheel(folder))
    lend(closure(requirements("requirements")), site)
    return python

def test_a_wheel_says_that_it_has_types(installed):
    assert list((installed.parent.parent/"lib").glob("python*/site-packages/clca/py.typed"))

def test_a_wheel_with_the_base_requirements_is_enough(installed, tmp_path):
    work, out = tmp_path/"work", tmp_path/"out"
    work.mkdir()
    out.mkdir()
    work.chmod(0o555)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CLCA_ROOT", "IN_TEST")}
    env |= {"HOME": str(tmp_path/"home"), "XDG_CACHE_HOME": str(tmp_path/"cache")}
    command = [installed, "-c", USE, ROOT/"tests"/"run", out]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "all works", done.stderr[-3000:]
    assert not list(work.iterdir()), "something was written into the working directory"

def test_the_wheel_holds_the_package_and_nothing_else(installed):
    site = next((installed.parent.parent/"lib").glob("python*"))/"site-packages"
    own = {p.name for p in site.iterdir() if not p.is_symlink()}
    assert {n for n in own if not n.endswith(".dist-info")} == {"clca"}
    packages = {p.parent.relative_to(ROOT) for p in (ROOT/"clca").rglob("__init__.py")}
    assert {p.parent.relative_to(site) for p in (site/"clca").rglob("__init__.py")} == packages

def test_an_sdist_carries_whatever_git_tracks(tmp_path):
    "Its tests are the tests of a checkout, but for those of hosted CI and of a clone, which are skipped."
    if not (ROOT/".git").exists(): pytest.skip("only git knows what belongs to the repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name and (ROOT/name).is_file()]
    for name in files:
        (tmp_path/"src"/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/"src"/name).symlink_to(ROOT/name)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=tmp_path/"src", capture_output=True, text=True, check=True)
    with tarfile.open(next(tmp_path.glob("clca-*.tar.gz"))) as archive: held = archive.getnames()
    inside = {name.partition("/")[2] for name in held}
    assert not set(files) - inside, "say it in MANIFEST.in"
    assert not [name for name in inside if "__pycache__" in name or name.startswith(("runs", "data/downloads"))]

def test_the_folder_above_a_checkout_is_not_the_package(tmp_path):
    "git calls the checkout clca, as the package in it is called; `pip install -e` must find the inner one from above."
    package, site = checkout(tmp_path/"src"/"clca")/"clca", tmp_path/"site"
    pip("install", "--no-build-isolation", "--target", site, "-e", package.parent)
    ask = f"import importlib.util, site; site.addsitedir({str(site)!r}); print(importlib.util.find_spec('clca').origin)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for cwd in (tmp_path/"src", tmp_path/"src"/"clca", tmp_path):
        done = subprocess.run([sys.executable, "-S", "-c", ask], cwd=cwd, env=env, capture_output=True, text=True)
        assert Path(done.stdout.strip()) == package/"__init__.py", done.stderr

"""Every command that is written down works as it is printed, in a fresh clone.

What trains or measures for long is only prepared here, which needs the folders, the file and the quotes to be right, and
its parameters are checked as the notebook checks them; test_notebooks.py runs each notebook."""
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT, name, notebooks, tagged

from clca.lab.params import check_parameters

PAPERMILL = r"(?:mkdir -p \S+ && )?papermill (?:--help-notebook )?nbs/[^`\n]*"
MAKE = r"(?:^|(?<=`))make (?:train|ablation|figures|benchmark|predict)\b[^`\n#]*"
TINY = { # what is run to its end
    "runs/mine/train.ipynb": "-p epochs 1 -p images_per_class 4 -p batch_size 16",
    "runs/predict.ipynb": "-p shown 1"}

def documented(pattern: str) -> list[str]:
    "Each command once, from the text of all notebooks, of which one becomes the README, and of the site's own pages."
    cells = [c.source for path in notebooks() for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    cells += [path.read_text(encoding="utf-8") for path in sorted((ROOT/"docs").rglob("*.md"))]
    found = [command.strip() for text in cells for command in re.findall(pattern, text, re.M)]
    return [command for command in dict.fromkeys(found) if "…" not in command]

@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "What git would clone, and programs that come before others on the path."
    if not (ROOT/".git").exists(): pytest.skip("only git knows what a clone would hold, and an unpacked sdist has none")
    folder = tmp_path_factory.mktemp("fresh")/"clone"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for file in filter(None, subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")):
        if not (ROOT/file).is_file(): continue
        (folder/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/file, folder/file)
    (programs := folder.parent/"bin").mkdir()
    program(programs/"papermill", f'exec {sys.executable} -m papermill "$@" $MORE')
    program(programs/"python", f'case "$2" in papermill) exec {sys.executable} "$@" --prepare-only;; snakemake) exit;; esac; exec {sys.executable} "$@"')
    return folder

def program(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)

def sh(command, clone, more="", **variables):
    kept = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "CLCA_ROOT", "OUT", "P", "KEEP", "MAKEFLAGS")}
    programs = clone.parent/"bin"
    env = kept | dict(PYTHONPATH=str(clone), PATH=f"{programs}:{os.environ['PATH']}", MORE=more) | variables
    done = subprocess.run(["bash", "-c", command], cwd=clone, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout

def check_prepared(path):
    "The values that papermill has put into a notebook fit its parameters."
    cells, [tag] = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"], tagged(path)
    values = {}
    given = [cells[tag], *(c for c in cells[tag + 1:tag + 2] if c.startswith("# Parameters"))]
    for source in given: exec(source, values)
    check_parameters(given, values)

@pytest.mark.parametrize("command", documented(PAPERMILL), ids=str)
def test_papermill(clone, command):
    if "--help-notebook" in command:
        assert "share of tokens that a stage keeps" in sh(command, clone)
        return
    notebook, made = re.search(r"papermill nbs/(\w+)\.ipynb (\S+)", command).groups()
    shutil.rmtree(clone/"runs", ignore_errors=True)
    if notebook == "predict": # it tells of a run and of photographs that one has
        shutil.copytree(clone/"tests"/"run", clone/"runs"/"train-keep0.1")
        shutil.copytree(clone/"figures", clone/"path"/"to"/"photographs", dirs_exist_ok=True)
    sh(command, clone, TINY.get(made, "--prepare-only"))
    check_prepared(clone/made)

@pytest.mark.parametrize("command", documented(MAKE), ids=str)
def test_make(clone, command, tmp_path):
    "In the checkout, or where CLCA_ROOT says, and then nothing in the checkout."
    shutil.rmtree(clone/"runs", ignore_errors=True)
    made = f"{command} MADE=Makefile BIN={clone.parent/'bin'}" # the environment is there
    said = sh(made, clone)
    [path] = (clone/"runs").rglob("*.ipynb")
    check_prepared(path)
    assert f"results in {path.parent.relative_to(clone)}" in said
    shutil.rmtree(clone/"runs")
    sh(made, clone, CLCA_ROOT=str(tmp_path))
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*.ipynb")] == [path.relative_to(clone)]
    assert not (clone/"runs").exists()

def test_a_sweep_by_hand():
    "The two lines of the plan's page, and of the Snakefile, are about one folder, and name files that exist."
    texts = [(ROOT/"workflow"/"Snakefile").read_text(), nbformat.read(ROOT/"nbs"/"plan.ipynb", 4).cells[1].source]
    for text in texts:
        [planned], [(file, folder)] = re.findall(r"plan\.ipynb .*-p out (\S+)", text), re.findall(r"snakemake -s (\S+) -d (\S+) --cores 2", text)
        assert planned == folder and (ROOT/file).is_file()

@pytest.mark.parametrize("place", ["a b", "it's", "~/x", "a:b"])
def test_make_names_a_place_it_cannot_use(place):
    call = ["make", "-n", "env", f"VENV={place}"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and f"VENV is '{place}': make cannot work with" in done.stderr

def test_every_notebook_that_is_named_exists():
    there = {f"nbs/{name(path)}.ipynb" for path in notebooks()}
    texts = [(ROOT/"README.md").read_text()]
    texts += [c.source for path in notebooks() for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    named = {found for text in texts for found in re.findall(r"\bnbs/[\w/]+\.ipynb", text)}
    assert len(named) > 9 and not named - there

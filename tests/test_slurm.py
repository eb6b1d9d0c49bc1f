"""A sweep as jobs of a real SLURM: one node, started for these tests on this machine (workflow/slurm_here). They are
skipped where SLURM is missing, and where there is one already."""
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat, pytest

from clca.lab.plans import all_runs, run_folder
from clca.lab.sweep import make_plan, save_plan
from helpers import ROOT
from test_sweep import planned_sweep, snakemake, starts

CONFIG = Path("/etc/slurm/slurm.conf")
HERE = os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "slurmd", "munged"))) and find_spec("snakemake_executor_plugin_slurm")
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not HERE, reason="needs slurm-wlm, munge, root and pip install '.[slurm]'")]

@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    "The file in which the cluster writes down each job that has ended."
    place = tmp_path_factory.mktemp("cluster")
    with open(Path(tempfile.gettempdir())/"clca-slurm", "w") as one_at_a_time: # tests may run in several processes
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if CONFIG.exists(): pytest.skip("this machine has a SLURM of its own")
        subprocess.run(["workflow/slurm_here", "start", place], cwd=ROOT, check=True)
        yield place/"jobs.log"
        subprocess.run(["scancel", "--user", "root"])
        subprocess.run(["workflow/slurm_here", "stop", place], cwd=ROOT, check=True)

def by_slurm(place, *more, memory="3000 * attempt"):
    "The profile for a cluster, with less memory, and with what a cluster without accounting needs."
    own = f"run: {{gpu: 1, mem_mb: {memory}, runtime: 30}}"
    text = re.sub(r"run: \{.*\}", own, (ROOT/"workflow/profiles/slurm/config.yaml").read_text())
    (place/"profile").mkdir(exist_ok=True)
    (place/"profile/config.yaml").write_text(text)
    return [*snakemake(place)[:-2], "--profile", str(place/"profile"), "--slurm-status-command", "squeue",
            "--slurm-init-seconds-before-status-checks", "5", "--slurm-keep-successful-logs", *more]

def started(line, log): return subprocess.Popen(line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})

def counting(folder):
    "train.ipynb that leaves a line with its folder and its GPU when it begins to train."
    nb = nbformat.read(ROOT/"nbs/train.ipynb", 4)
    at = next(i for i, cell in enumerate(nb.cells) if "metrics = train(" in cell.source)
    line = "import os\nprint(folder.name, os.environ['CUDA_VISIBLE_DEVICES'], file=open(folder.parent/'begun', 'a'))\n"
    line += "False and show(None, '')" # a cell that draws is no other code
    nb.cells.insert(at, nbformat.v4.new_code_cell(line))
    nbformat.write(nb, folder/"train.ipynb")
    return str(folder/"train.ipynb")

def test_the_controller_is_killed(jobs, tmp_path):
    "Four real runs, of which some are made when Snakemake gets kill -9. Started again, it finds all, and none was made twice."
    tiny = dict(dataset="typefaces", backbone="vit_tiny_patch16_224", backbone_kwargs=dict(patch_size=8, embed_dim=32, num_heads=2),
                image_size=32, images_per_class=4, epochs=2)
    runs = all_runs(**tiny, reducer="evit", keep=.25, variant=["base", "clca"], seed=[0, 1])
    save_plan(make_plan(runs, notebook=counting(tmp_path)), tmp_path)
    line = by_slurm(tmp_path, "--group-components", "runs=1")
    with open(tmp_path/"first.log", "w") as log: first = started(line, log)
    until = time.time() + 600
    while not (tmp_path/"begun").exists() and first.poll() is None and time.time() < until: time.sleep(.1)
    first.kill()
    first.wait()
    there = [run for run in runs if (tmp_path/run_folder(run)/"metrics.json").exists()]
    with open(tmp_path/"second.log", "w") as log: code = started(line, log).wait(900)
    begun = [text.split() for text in (tmp_path/"begun").read_text().splitlines()]
    print(f"{len(there)} of 4 were done when the controller was killed, {len(begun)} trainings in all", *begun, jobs.read_text(), sep="\n")
    assert not code and len(there) < 4 and all((tmp_path/run_folder(run)/"metrics.json").exists() for run in runs)
    assert sorted(name for name, _ in begun) == sorted(map(run_folder, runs)) and {gpu for _, gpu in begun} <= {"0", "1"}
    assert set(re.findall(r"JobState=(\w+)", jobs.read_text())) == {"COMPLETED"}

def test_several_in_a_job(jobs, tmp_path):
    """Three runs in one job: one needs more memory than the first try has, one can never work, and the third is made,
    whatever happens to its neighbours."""
    runs = all_runs(seed=[0, 1, 2])
    body = 'assert seed != 2, "never"\nx = b"1"*800_000_000*(seed == 1)\ntime.sleep(5)\ndone()'
    planned_sweep(tmp_path, runs, body)
    before = len(jobs.read_text().splitlines()) if jobs.exists() else 0
    with open(tmp_path/"log", "w") as log: code = started(by_slurm(tmp_path, memory="900 * attempt"), log).wait(900)
    made = jobs.read_text().splitlines()[before:]
    print(*made, (tmp_path/"log").read_text(), sep="\n")
    assert code and [(tmp_path/run_folder(run)/"metrics.json").exists() for run in runs] == [True, True, False]
    assert starts(tmp_path, runs[0]) == 1 and starts(tmp_path, runs[1]) <= 2
    assert [re.search(r"mem=(\d+)M", job)[1] for job in made] == ["900", "1800"]

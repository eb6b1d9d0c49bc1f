"""The paper's whole grid in small: `python tests/rehearsal.py FOLDER [options of snakemake]`.

The backbone is a tiny ViT from a file in the form of MoCo v3's, the five leaf sets are drawn in the layouts in which they
are handed on, a few classes of each, and every kind of job comes: trials of learning rates, the choice, runs with and
without reduction on each set and at two sizes, the report with published and own cells. What fails here would fail in the
first hour on a GPU."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np, torch
from PIL import Image

from clca.lab.paper import MOCO
from clca.lab.runs import load_runs
from clca.training.leaves import STAGES
from helpers import ROOT

TINY = dict(patch_size=8, embed_dim=16, num_heads=2)
SETS = dict(cotton="anno", soylocal="flat", soyglobal="csv", soyageing="anno", soygene="csv")
random = np.random.default_rng(0)

def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)

def files(name):
    "Folder, name, class and split of three images of each of four classes."
    for stage in STAGES[:2] if name == "soyageing" else [""]:
        for split in ("train", "test"):
            for c in range(1, 5):
                for i in range(1, 4): yield stage, f"{'yd00' if stage else ''}{c}_{stage + '_' if stage else ''}{i}_{split}.png", c, split

def leaves(place):
    "The five sets, each in its layout."
    for name, layout in SETS.items():
        lists = {}
        for stage, file, c, split in files(name):
            own = place/name/stage
            draw(own/("" if layout == "flat" else "images")/file)
            if layout == "anno": lists.setdefault(own/"anno"/f"{split}.txt", []).append(f"{file} {c}")
            if layout == "csv": lists.setdefault(own/f"{'train_val' if split == 'train' else split}.csv", ["class_id,dir"]).append(f"{c - 1},images/{file}")
        for path, lines in lists.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines) + "\n")

def moco(path):
    "Weights in the form in which MoCo v3 hands them on."
    import timm
    state = timm.create_model(MOCO.partition(".")[0], num_classes=1000, img_size=224, **TINY).state_dict()
    torch.save({"epoch": 90, "arch": "vit_base", "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)

def main(folder, *options):
    folder = Path(folder).resolve()
    leaves(folder/"leaves")
    moco(folder/"moco.pth.tar")
    more = dict(backbone_kwargs=TINY, pretrained=False, partial=True, epochs=1, warmup_epochs=0, cooldown_epochs=0, batch_size=4)
    values = dict(data=str(folder/"leaves"), moco=str(folder/"moco.pth.tar"), backbone=[MOCO], keeps=[.1, 1.], seeds=[1], threads=1,
                  sizes={"48": [*SETS], "32": ["soygene"]}, lr_search=[1e-3], lr_keeps=[.1], variants=["clca"], more=more, out=str(folder/"sweep"))
    (folder/"sweep").mkdir(exist_ok=True)
    plan = [sys.executable, "-m", "papermill", "nbs/plan_paper.ipynb", str(folder/"sweep"/"plan_paper.ipynb"), "-y", json.dumps(values), "--log-output", "--no-progress-bar"]
    subprocess.run(plan, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "-d", str(folder/"sweep"), *(options or ("--cores", "2"))], cwd=ROOT, check=True)
    made = load_runs(folder/"sweep"/"runs.jsonl")
    print(len(made), "runs:", made.groupby(["image_size", "dataset"]).size().to_dict())

if __name__ == "__main__": main(*sys.argv[1:])

"""A model, data and a run that take a second: python tiny.py OUT KILL DEVICES trains them,
and is killed in the middle of epoch KILL (-1: not). With a fourth word, a JSON object of values of the recipe, it is
the model without chance that is trained."""
import json
import os
import signal
import sys
from types import SimpleNamespace

import timm
import torch
from torch.utils.data import Dataset

from clca import create_model
from clca.training.loop import train
from clca.training.recipe import Recipe

class Colours(Dataset):
    "Noise whose brightest channel is the class, anew in each epoch. In epoch `kill` the process is killed half-way."
    size, mean, std = 16, torch.zeros(3), torch.ones(3)
    def __init__(self, n, first=0, kill=None):
        self.n, self.first, self.kill, self.paths = n, first, kill, list(range(n))
        self.epoch, self.seen = 0, 0
    def __len__(self): return self.n
    def set_epoch(self, epoch): self.epoch = epoch
    def __getitem__(self, i):
        if i >= self.n: raise IndexError(i)
        if self.epoch == self.kill:
            self.seen += 1
            if self.seen > self.n // 2: os.kill(os.getpid(), signal.SIGKILL)
        x = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1000 * self.epoch + self.first + i))
        x[i % 3] += 0.3
        return x, i % 3

def data(n=50, kill=None, hash="tiny"):
    sets = dict(train=Colours(n, kill=kill), val=Colours(31, 100), test=Colours(29, 200))
    return SimpleNamespace(**sets, classes=["red", "green", "blue"], hash=hash)

def model(seed=0):
    "With dropout, so that chance inside the model counts as well."
    torch.manual_seed(seed)
    small = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    return timm.create_model("vit_tiny_patch16_224", **small, num_classes=3, drop_rate=.2)

def steady():
    "Of our own and without dropout and BatchNorm, so a step is the mean over its images, however they are divided."
    torch.manual_seed(0)
    small = dict(image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=4, at=(1, 2), keep=.5)
    return create_model("vit_tiny_patch16_224", 3, head="ifa", **small)

def image(): return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))

RECIPE = Recipe(epochs=4, batch_size=8, lr=3e-3, log_gradients=True, logger="none")
SHORT = Recipe(epochs=1, batch_size=8, lr=3e-3, logger="none")

if __name__ == "__main__":
    out, kill, devices, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads((sys.argv[4:] or ["{}"])[0])
    recipe = Recipe(**{**vars(RECIPE), "devices": devices, **more})
    vit = steady() if more else model()
    train(vit, data(kill=None if kill < 0 else kill), out, recipe, {} if more else dict(keep=.1))

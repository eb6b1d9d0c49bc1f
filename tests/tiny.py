"A model, data and a run that take a second: python tiny.py OUT KILL DEVICES trains them, and is killed in the middle of epoch KILL (-1: not)."
import os, signal, sys
from types import SimpleNamespace

import timm, torch
from torch.utils.data import Dataset

from clca.training.recipe import Recipe
from clca.training.loop import train

class Colours(Dataset):
    "Noise whose brightest channel is the class; every epoch has its own. In epoch `kill` the process is killed after some images."
    size, mean, std = 16, torch.zeros(3), torch.ones(3)
    def __init__(self, n, first=0, kill=None): self.n, self.first, self.kill, self.epoch, self.seen, self.paths = n, first, kill, 0, 0, list(range(n))
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

def data(n=50, kill=None, hash='tiny'):
    return SimpleNamespace(train=Colours(n, kill=kill), val=Colours(31, 100), test=Colours(29, 200), classes=['red', 'green', 'blue'], hash=hash)

def model(seed=0):
    "With dropout, so that chance inside the model counts as well."
    torch.manual_seed(seed)
    return timm.create_model('vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, drop_rate=.2)

RECIPE = Recipe(epochs=4, batch_size=8, lr=3e-3, log_gradients=True)

if __name__ == '__main__':
    out, kill, devices = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    train(model(), data(kill=None if kill < 0 else kill), out, Recipe(**{**vars(RECIPE), 'devices': devices}), dict(keep=.1))

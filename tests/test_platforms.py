"What needs Unix says so by name, and what does not works without it."
import subprocess
import sys

from helpers import ROOT

AS_ON_WINDOWS = """
import sys
sys.modules.update(dict.fromkeys(["fcntl", "resource", "pwd", "grp", "termios"]))
import torch, clca
tiny = dict(image_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=4)
model = clca.create_model("vit_tiny_patch16_224", 5, at=(1, 2), **tiny).eval()
print(tuple(model(torch.zeros(2, 3, 32, 32)).shape), clca.macs(model, 32) > 0)
for room in ("training", "training.paths", "training.loop"):
    try: __import__(f"clca.{room}")
    except ImportError as e: print(e)
"""

def test_models_and_tools_need_no_unix_and_training_is_refused_by_name():
    done = subprocess.run([sys.executable, "-c", AS_ON_WINDOWS], cwd=ROOT, capture_output=True, text=True)
    works, *refused = done.stdout.splitlines()
    assert works == "(2, 5) True"
    assert len(refused) == 3 and all(r.startswith("clca.training needs Python's module resource") for r in refused)

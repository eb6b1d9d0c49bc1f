"""docs/works_with.md, a row a test. `make interop` writes it from what came out, and tests/interop/test_page.py says
when it and the tests disagree."""
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[2]/"docs"/"works_with.md"
COLUMNS = dict(plain="plain timm ViT", linear="linear head", full="in full")

class Row(NamedTuple):
    "A client."
    name: str
    packages: tuple[str, ...]
    says: str # what works
    fails: dict[str, str] # column: reason

HEAD = """<!-- made from tests/interop by make interop -->
# Works with

> What works with a reduced model as it does with a timm ViT, and what does not

Each row is a test in `tests/interop` and says what the test asks for. It is asked three times: of a plain timm ViT, of
the same ViT with EViT at keep rate 0.25 and timm's own head, and of that with cache and cross-layer head. `make test`
runs the rows of the packages that the environment has; `make interop` installs the others, at these versions, runs all
rows and writes this page.

How timm's train script and other loops drive a reduced model is told in
[Other people's loops](nbs/15_other_loops.ipynb).

Some things are so by nature:

- Integrated gradients do not add up to the difference of the logits: where one token is kept instead of another the
  logits jump, and no path integral of gradients sees a jump. Occlusion and the gradients themselves are not concerned.
- In training there are no per-sample gradients through the BatchNorm of the cross-layer head, which mixes the images of
  a batch. In evaluation, and with `head="linear"`, there are.
- An adapter's folder (peft) does not keep the statistics of that BatchNorm: name the head, `modules_to_save=["head"]`.
- Processes that share a batch have statistics of their own, as with any BatchNorm, so their gradients are compared to
  those of one process with the statistics held.
- Under a policy of mixed precision `fully_shard` hands that BatchNorm parameters of 16 bits and statistics of 32, which
  torch refuses for any BatchNorm: shard the head with a policy of its own,
  `MixedPrecisionPolicy(param_dtype=torch.float32)`.
- torch.fx puts placeholders in the place of sizes, and how many tokens to keep cannot be counted from these. Hooks, and
  `torch.export`, reach every layer.
- torchinfo counts a linear layer once, whatever the number of its tokens, and so does not see what a reduction saves:
  `clca.macs` does, and fvcore.
"""

def rows(modules: list[ModuleType]) -> list[Row]:
    "The clients of some test modules."
    tests: list[Callable] = [thing for m in modules for name, thing in vars(m).items() if name.startswith("test_")]
    marks = [mark for test in tests for mark in getattr(test, "pytestmark", []) if mark.name == "client"]
    return [Row(*mark.args) for mark in marks]

def declared(row: Row) -> dict[str, str]:
    "What a test says of each model."
    return {column: f"no: {row.fails[column]}" if column in row.fails else "yes" for column in COLUMNS}

def page(
    found: list[tuple[Row, dict[str, str]]], # with what came out for each model
    version: Callable[[str], str], # of a distribution
) -> str:
    "The page as Markdown."
    lines = [("client", "versions", "what is asked", *COLUMNS.values()), ("---",) * (3 + len(COLUMNS))]
    for row, cells in sorted(found, key=lambda f: f[0].name.lower()):
        versions = ", ".join(f"{package} {version(package)}" for package in row.packages)
        lines.append((row.name, versions, row.says, *(cells[column] for column in COLUMNS)))
    return HEAD + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

"Four floors: nobody reaches up, the method has no circle, each declares what it imports, `import clca` stays light."
import ast
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions, requires

import pytest
from helpers import ROOT, requirements
from imports import FLOORS, MODULES, floor, foreign_imports, of_floor, own_imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = ["pandas", "lightning", "matplotlib", "seaborn", "sklearn", "scipy", "papermill"]
# What is declared and imported by no code of ours, with the reason.
UNIMPORTED = { # Lightning writes for TensorBoard; papermill runs a notebook in a kernel; a sweep is started as a command
    "train": {"tensorboard"}, "lab": {"ipykernel", "snakemake"}}

# Who imports whom ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("module", MODULES)
def test_no_floor_reaches_up(module):
    own = FLOORS.index(floor(module))
    assert not [m for m in own_imports(module) if FLOORS.index(floor(m)) > own]

def test_every_import_of_ours_exists():
    assert not {m: gone for m in MODULES if (gone := own_imports(m) - MODULES.keys())}

def test_the_method_has_no_circle():
    "Importing a room opens its package first, but for the rooms of that very package."
    method, graph = set(of_floor("method")), {}
    for module in method:
        found = own_imports(module)
        packages = {".".join(m.split(".")[:-1]) for m in found}
        graph[module] = {m for m in found | packages if m in method and m != module and not module.startswith(f"{m}.")}
    try: TopologicalSorter(graph).prepare()
    except CycleError as e: pytest.fail(" → ".join(e.args[1]))

def test_the_lower_floors_read_no_yaml():
    assert not [m for f in ("method", "tools") for m in of_floor(f) if "yaml" in foreign_imports(m)]

def defined(module: str) -> set[str]:
    "Public functions, classes and constants that a module makes itself."
    names = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names.add(node.name)
        elif isinstance(node, ast.Assign): names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return {n for n in names if not n.startswith("_")}

def test_no_two_things_share_a_name():
    where = defaultdict(list)
    for module in MODULES:
        for name in defined(module): where[name].append(module)
    assert not {name: modules for name, modules in where.items() if len(modules) > 1}

def test_import_clca_stays_light():
    "timm itself brings yaml, PIL, torchvision and tqdm."
    code = "import clca, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "clca.model" in loaded
    assert not [m for m in loaded if m.split(".")[0] in HEAVY or m.startswith(("clca.training", "clca.lab"))]

def test_a_light_room_of_training_stays_light():
    "The guard of every notebook asks where it is, and does not wait for Lightning."
    code = "import clca.training.paths, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, "clca.training.loop", "clca.training.data"}

# What a floor needs --------------------------------------------------------------------------------------------------

def declared(extra: str = "") -> set[str]:
    "Names of the distributions that an extra brings, with those of the extras that it includes."
    names = set()
    for r in requirements(f"{extra}_requirements" if extra else "requirements"):
        if r.name == "clca": names |= set().union(*(declared(e) for e in r.extras))
        else: names.add(canonicalize_name(r.name))
    return names

def distributions(modules: list[str]) -> set[str]:
    "Distributions that provide what some modules import."
    providers = packages_distributions()
    names = set().union(*(foreign_imports(m) for m in modules))
    assert not (unknown := names - providers.keys()), f"not installed here: {unknown}"
    return {canonicalize_name(providers[n][0]) for n in names}

BASE = of_floor("method") + of_floor("tools")

def test_pip_install_clca_brings_what_model_and_tools_import_and_no_more():
    "Two exceptions: only who exports to ONNX needs it, and Hugging Face's hub comes with timm, whose weights it fetches."
    optional = (distributions(BASE) & declared("export")) | {"huggingface-hub"}
    assert distributions(BASE) - optional == declared() == {"torch", "timm", "safetensors", "numpy"}
    assert any(canonicalize_name(Requirement(r).name) == "huggingface-hub" for r in requires("timm"))

def test_optional_packages_are_imported_when_they_are_needed():
    "What only an extra brings may not be imported on the way in."
    for module in BASE:
        top = [n for n in ast.parse(MODULES[module].read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {a.name.split(".")[0] for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module.split(".")[0] for n in top if isinstance(n, ast.ImportFrom) and not n.level}
        assert not names & {"onnx", "onnxruntime", "onnxscript"}, module

@pytest.mark.parametrize(
    "name, extra, below", [("training", "train", []), ("lab", "lab", ["train"])], ids=["training", "lab"]
)
def test_a_floor_declares_what_it_imports_and_no_more(name, extra, below):
    needed, own = distributions(of_floor(name)) - {"huggingface-hub"}, declared(extra) # which comes with timm
    assert not needed - own - declared(), "imported, but declared nowhere"
    for other in below: assert declared(other) <= own, f"{extra} includes {other}"
    included = set().union(*map(declared, below)) if below else set()
    assert not own - included - needed - UNIMPORTED.get(extra, set()), "declared, but imported nowhere"

def test_tests_and_docs_import_what_dev_brings():
    files = [*(ROOT/"tests").glob("*.py"), *(ROOT/"docs").glob("*.py")]
    local = {p.stem for p in files} | {"clca"}
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import): names |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom): names.add(node.module.split(".")[0])
    providers = packages_distributions()
    needed = {canonicalize_name(providers[n][0]) for n in names - local - sys.stdlib_module_names}
    assert not needed - declared("dev") - declared() - declared("export")

def test_no_import_hides_from_these_tests():
    "A module that is imported by a string is named in full; the door of training opens rooms of its own floor only."
    composed = [m for m in MODULES if re.search(r"import_module\(f|__import__\(", MODULES[m].read_text())]
    assert composed == ["clca.training"]

"What the package imports, read from its sources without running them."
import ast
import re
import sys
from pathlib import Path

from helpers import ROOT

FLOORS = ["method", "tools", "training", "lab"]
NAME = re.compile(r"clca(\.\w+)+")

def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

def sources() -> dict[str, Path]:
    "Every module of the package with its file."
    return {module_name(p): p for p in sorted((ROOT/"clca").rglob("*.py")) if p.name != "_modidx.py"}

MODULES = sources()

def floor(module: str) -> str:
    "The door, `clca` itself, shows what is on the first two floors, so it stands on the second."
    if module == "clca": return "tools"
    return next((f for f in FLOORS[1:] if f == module.split(".")[1]), "method")

def of_floor(name: str) -> list[str]: return [m for m in MODULES if floor(m) == name]

def _absolute(node: ast.ImportFrom, module: str) -> str:
    "The module that a relative import names."
    if not node.level: return node.module
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*package[:len(package) - node.level + 1], *filter(None, [node.module])])

def imports(module: str) -> set[str]:
    "Dotted names of all that a module imports, anywhere in it, by name or by a string such as import_module takes."
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            # `from package import room` is an import of the room
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and NAME.fullmatch(node.value)
            and node.value in MODULES
        ):
            found.add(node.value)
    return found

def own_imports(module: str) -> set[str]: return {m for m in imports(module) if m.split(".")[0] == "clca"}

def foreign_imports(module: str) -> set[str]:
    "Top-level names of other people's packages."
    names = {m.split(".")[0] for m in imports(module)}
    return names - sys.stdlib_module_names - {"clca", "__future__"}

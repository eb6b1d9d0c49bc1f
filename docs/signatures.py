"""The reference pages of the site, read from the package's source without importing it: signatures, the comment beside
each parameter, what is raised, and the cell of the notebook in which each name is explained."""
import ast
import io
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
FLOORS = { # sub-package: its title, what is in it
    "clca": ("The method", "For whoever reads the paper or reduces a model: tokens, schedule, cache, head, walk, model."),
    "clca.reducers": ("The reducers", "One module for each way to reduce, and what they have in common."),
    "clca.tools": ("The tools", "For whoever uses a model: traces, cost, checkpoints, export."),
    "clca.training": ("Training", "For whoever trains a model: data, recipe, loop, records."),
    "clca.lab": ("The lab", "The experiments of this repository: runs, statistics, figures."),
}


class Module(NamedTuple):
    "A module of the package, as far as its source says."
    name: str # clca.tokens
    summary: str
    notebook: str # nbs/00_tokens.ipynb
    public: list[str] # `__all__`
    definitions: dict[str, tuple[Definition, str]] # by name: the definition, and the id of its cell
    comments: dict[int, str] # by line


def read_module(path: Path, root: Path) -> Module:
    "What a module of the package says of itself."
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    cells = [(i, m[1]) for i, line in enumerate(text.splitlines(), 1) if (m := re.match(r"# %% \S+ #(\w+)", line))]
    found = {}
    for node in tree.body:
        for named in names_of(node):
            found.setdefault(named, (node, next((cell for line, cell in reversed(cells) if line <= node.lineno), "")))
    public = next((ast.literal_eval(node.value) for node, _ in [found["__all__"]]), []) if "__all__" in found else []
    notebook = re.search(r"File to edit: (?:\.\./)*(\S+?)\.$", text, re.M)
    texts = [n.value.value for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    return Module(name, next(iter(texts), ""), notebook[1] if notebook else "", public, found, comments_of(text))


def names_of(node: ast.stmt) -> list[str]:
    "What a statement defines."
    if isinstance(node, ast.FunctionDef | ast.ClassDef): return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [n.id for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(n, ast.Name)]


def comments_of(text: str) -> dict[int, str]:
    "Comments beside code, by line."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [t for t in tokens if t.type == tokenize.COMMENT and not t.line.lstrip().startswith("#")]
    return {t.start[0]: t.string.lstrip("# ") for t in found}


def modules(root: Path) -> list[Module]:
    "All modules of the package that define a public name, and the packages that hand names on."
    paths = [p for p in sorted((root/"clca").rglob("*.py")) if p.name != "_modidx.py"]
    return [m for p in paths if (m := read_module(p, root)).public]


def own_names(module: Module) -> list[str]:
    "Public names that a module defines; a package also hands on those of others."
    return [name for name in module.public if name in module.definitions]


def owners(found: list[Module]) -> dict[str, str]:
    "Every public name and the module that defines it: each has one."
    return {name: module.name for module in found for name in own_names(module)}

# Text of a page ------------------------------------------------------------------------------------------------------

def prose(text: str) -> str:
    "A comment or docstring as Markdown: what is not in backticks means itself."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else re.sub(r"([\\*_<>$\[\]{}#~^])", r"\\\1", p) for i, p in enumerate(parts))


def in_table(text: str) -> str: return text.replace("|", "\\|").replace("\n", " ")


def code(node: ast.AST | str | None) -> str:
    "Source in backticks."
    if node is None: return ""
    text = node if isinstance(node, str) else ast.unparse(node)
    if not text: return ""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def typed(kind: ast.AST | None, default: ast.AST | None) -> str:
    "A type with the default, `int = 0`."
    return code(" = ".join(ast.unparse(node) for node in (kind, default) if node))


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([in_table(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arguments(function: ast.FunctionDef, method: bool) -> list[tuple[ast.arg, ast.expr | None]]:
    "Every argument with its default; without self."
    a = function.args
    placed = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(placed) - len(a.defaults)) + a.defaults
    pairs = [*zip(placed, defaults), *([(a.vararg, None)] if a.vararg else []), *zip(a.kwonlyargs, a.kw_defaults),
             *([(a.kwarg, None)] if a.kwarg else [])]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    return pairs[1:] if method and not static else pairs


def signature(function: ast.FunctionDef, method: bool = False) -> str:
    "`(x: Tensor) -> Tensor`, without self."
    bare = ast.parse(f"def f({ast.unparse(function.args)}): 0").body[0]
    if len(arguments(function, method)) < len(arguments(function, False)):
        (bare.args.posonlyargs or bare.args.args).pop(0)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(bare.args)}){returns}"


def return_comment(function: ast.FunctionDef, module: Module) -> str:
    "The comment beside what a function returns; in a function of one line the only one."
    return module.comments.get(function.returns.end_lineno, "") if function.returns else ""


def parameters(function: ast.FunctionDef, module: Module, method: bool = False) -> str:
    "The parameters with their comments, and what is returned, as a table; empty where there is no comment."
    stars = {id(function.args.vararg): "\\*", id(function.args.kwarg): "\\*\\*"}
    def comment(*nodes): # of the line on which a parameter ends, unless it says what is returned
        line = max(n.end_lineno for n in nodes if n)
        return prose(module.comments.get(line, "")) if not function.returns or line < function.returns.lineno else ""
    rows = [[f"**{stars.get(id(a), '')}{prose(a.arg)}**", typed(a.annotation, default), comment(a, default)]
            for a, default in arguments(function, method)]
    if (says := return_comment(function, module)): rows.append(["returns", code(function.returns), prose(says)])
    return table(["parameter", "type and default", "meaning"], rows) if any(row[-1] for row in rows) else ""


def message(node: ast.expr | None) -> str:
    "The text of an error, with the values that it names in braces."
    if isinstance(node, ast.Constant) and isinstance(node.value, str): return node.value
    if not isinstance(node, ast.JoinedStr): return ""
    parts = [v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}" for v in node.values]
    return "".join(parts)


def raised(node: ast.AST) -> str:
    "Errors that a definition raises itself, each with its message."
    calls = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    known = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id[0].isupper()]
    lines = [f"- {code(c.func)}" + (f": {prose(said)}" if (said := message(c.args[0] if c.args else None)) else "")
             for c in sorted(known, key=lambda c: c.lineno)]
    return "\n".join(["Raises", "", *dict.fromkeys(lines)]) if lines else ""


def directive(kind: str, head: str, parts: list[str], depth: int = 3) -> str:
    "A directive of Sphinx's Python domain, in Markdown."
    fence = ":" * depth
    return "\n\n".join([f"{fence}{{py:{kind}}} {head}", *filter(None, parts), fence])


def described(node: ast.AST) -> str: return prose(ast.get_docstring(node) or "")


def fields(node: ast.ClassDef, module: Module) -> list[ast.AnnAssign]:
    "Fields of a record, public ones."
    return [n for n in node.body if isinstance(n, ast.AnnAssign) and not ast.unparse(n.target).startswith("_")]


def is_record(node: ast.ClassDef) -> bool:
    said = [ast.unparse(x) for x in [*node.bases, *node.decorator_list]]
    return any(s.split("(")[0].split(".")[-1] in ("NamedTuple", "dataclass", "TypedDict") for s in said)


def of_function(name: str, node: ast.FunctionDef, module: Module, source: str) -> str:
    parts = [described(node), parameters(node, module), raised(node), source]
    return directive("function", name + signature(node), parts)


def of_method(node: ast.FunctionDef, module: Module) -> str:
    decorators = [ast.unparse(d) for d in node.decorator_list]
    parts = [described(node), parameters(node, module, method=True), raised(node)]
    if any(d.split(".")[-1] in ("property", "cached_property") for d in decorators):
        kind = f"\n:type: {ast.unparse(node.returns)}" if node.returns else ""
        return directive("property", node.name + kind, [return_said(node, module), *parts[:1]])
    marks = "".join(f"\n:{d}:" for d in ("classmethod", "staticmethod") if d in decorators)
    return directive("method", node.name + signature(node, method=True) + marks, parts)


def return_said(node: ast.FunctionDef, module: Module) -> str: return prose(return_comment(node, module))


def of_class(name: str, node: ast.ClassDef, module: Module, source: str) -> str:
    "A class: how it is made, its fields, its public methods."
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    made, records = methods.pop("__init__", None), fields(node, module)
    parts = [f"Bases: {', '.join(code(b) for b in node.bases)}" if node.bases else "", described(node)]
    head = name
    if made: head, parts = name + signature(made, method=True), [*parts, parameters(made, module, method=True)]
    elif records and is_record(node):
        head += f"({', '.join('='.join(ast.unparse(n) for n in (f.target, f.value) if n) for f in records)})"
    if records:
        rows = [[f"**{prose(f.target.id)}**", typed(f.annotation, f.value), prose(comment)]
                for f in records for comment in [module.comments.get(f.end_lineno, "")]]
        parts.append(table(["field", "type and default", "meaning"], rows))
    shown = [m for m in methods.values() if m.name[0] != "_" or m.name == "__call__"]
    if made: parts.append(raised(made))
    return directive("class", head, [*parts, source, *(of_method(m, module) for m in shown)], depth=4)


def of_value(name: str, node: ast.Assign | ast.AnnAssign, module: Module, source: str) -> str:
    value = ast.unparse(node.value) if node.value else ""
    says = prose(module.comments.get(node.lineno) or module.comments.get(node.end_lineno, ""))
    short = f"\n:value: {value}" if value and len(value) <= 100 else ""
    return directive("data", name + short, [says, source])


def entry(name: str, module: Module) -> str:
    "One public name."
    node, cell = module.definitions[name]
    page = module.notebook.removesuffix(".ipynb")
    source = f'<p class="source"><a href="../{page}.html#cell-{cell}">source and examples</a></p>' if cell else ""
    make = {ast.ClassDef: of_class, ast.FunctionDef: of_function}.get(type(node), of_value)
    return make(name, node, module, source)


def module_page(module: Module, owner: dict[str, str]) -> str:
    "The page of a module."
    own = own_names(module)
    handed_on = [n for n in module.public if n not in own]
    parts = [f"# {module.name}", f"> {prose(module.summary)}",
             f"Explained, step by step and with examples, in [{module.notebook}](../{module.notebook}).",
             f"```{{py:module}} {module.name}\n```"]
    if handed_on:
        rows = [[f"`{n}`", f"`{owner[n]}`"] for n in handed_on if n in owner]
        parts += [f"Names that `{module.name}` has from its modules:", table(["name", "where it is explained"], rows)]
    return "\n\n".join([*parts, *(entry(name, module) for name in own)]) + "\n"


def floor_of(module: Module) -> str:
    return max((f for f in FLOORS if module.name == f or module.name.startswith(f + ".")), key=len)


def reference_pages(root: Path) -> dict[str, str]:
    "Every reference page by its path, below the folder of the site's source."
    found = modules(root)
    owner = owners(found)
    pages = {f"reference/{m.name}.md": module_page(m, owner) for m in found}
    tocs = []
    for floor, (title, what) in FLOORS.items():
        inside = [m for m in found if floor_of(m) == floor]
        listed = [f"- [{m.name}]({m.name}.md): {prose(m.summary)}  \n  {', '.join(map(code, own_names(m)))}"
                  for m in inside]
        toc = "\n".join(["```{toctree}", ":hidden:", "", *(m.name for m in inside), "```"])
        pages[f"reference/floor-{floor}.md"] = "\n\n".join(
            [f"# {title}", what, "\n".join(listed), toc]) + "\n"
        tocs.append(f"floor-{floor}")
    rows = [[f"[{title}](floor-{floor}.md)", f"`{floor}`", what] for floor, (title, what) in FLOORS.items()]
    toc = "\n".join(["```{toctree}", ":hidden:", "", *tocs, "```"])
    text = ("Every public name: its signature, what each parameter means and which shape it has, what is returned, "
            "which errors are raised with which words, and a link to the cell that defines and explains it. Names in the prose "
            "of all other pages lead here. The alphabetical list is the [index](genindex).")
    floors = table(["floor", "package", "for what"], rows)
    pages["reference/index.md"] = "\n\n".join(["# Reference", text, floors, toc]) + "\n"
    return pages

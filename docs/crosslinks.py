"""What the site does beyond Sphinx and MyST-NB: names in prose lead to the reference, names of notebooks to their pages,
every exported cell has an anchor, and formulas are MathML, which browsers draw without a script."""
import posixpath
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

# Names that are also plain words of tables and lists: they count only as `train()` or `clca.training.train`.
WORDS = {"label", "train"}
# Pages under another path than in the repository.
MOVED = {"README": "index", "nbs/index": "index", "data/README": "data", "workflow/README": "how_to/grid"}
SHORT: dict[str, str] = {} # see `name_all`


def moved_page(path: str) -> str:
    "Where the site has what lies at a path of the repository; both without ending."
    return MOVED.get(path, path.removeprefix("docs/"))


def formula(text: str, block: bool) -> str:
    "LaTeX as MathML; brackets grow by themselves there, and docutils has another name for dots."
    text = re.sub(r"\\[bB]igg?[lr]?(?![a-zA-Z])", "", text).replace(r"\dots", r"\ldots")
    return tex2mathml(text, as_block=block)


def visit_inline(self, node: nodes.math) -> None:
    self.body.append(formula(node.astext(), block=False))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{formula(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


class Names(SphinxPostTransform):
    "Names in backticks become links."
    default_priority = 400 # before the pictures and tables of the output are made

    def run(self, **kwargs) -> None:
        for cell in self.document.findall(nodes.container):
            cell["ids"] += [c.removeprefix("tag_") for c in cell["classes"] if c.startswith("tag_cell-")]
        for literal in list(self.document.findall(nodes.literal)):
            if not inside(literal, nodes.reference, nodes.title): self.link(literal)

    def link(self, literal: nodes.literal) -> None:
        "Put a literal into a link, if there is a page or a name that it means."
        found = self.page(literal.astext()) or self.name(literal.astext())
        here = self.env.current_document.docname
        if found is None or found == (here, ""): return
        link = make_refnode(self.app.builder, here, *found, literal.deepcopy())
        literal.replace_self(link)

    def page(self, text: str) -> tuple[str, str] | None:
        "The page of a notebook or text that is named by its path, from the repository or from the page's own folder."
        if not (named := re.fullmatch(r"([\w/]+)\.(ipynb|md)", text)): return None
        folder = posixpath.dirname(self.env.current_document.docname)
        path = moved_page(named[1])
        tried = [path, posixpath.normpath(posixpath.join(folder, path)), f"nbs/{path}"]
        return next(((t, "") for t in tried if t in self.env.all_docs), None)

    def name(self, text: str) -> tuple[str, str] | None:
        "Where the reference has a public name, or a module."
        named = re.fullmatch(r"(?:(clca(?:\.\w+)*)\.)?(\w+(?:\.\w+)?)(\(\))?", text)
        if not named or text in WORDS: return None
        objects = self.env.get_domain("py").objects
        entry = objects.get(text) or objects.get(SHORT.get(named[2], ""))
        return (entry.docname, entry.node_id) if entry else None


def name_all(app: Sphinx, env: BuildEnvironment) -> None:
    """Once all pages are read: full names by the short ones, which are those without the module, each defined once;
    for what classes have, with the class."""
    SHORT.clear()
    for full, entry in env.get_domain("py").objects.items():
        if entry.objtype == "module": continue
        depth = 2 if entry.objtype in ("method", "property", "attribute") else 1
        SHORT[".".join(full.split(".")[-depth:])] = full


def inside(node: nodes.Node, *kinds: type) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds): return True
    return False


def resolve_type(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, contnode: nodes.Element,
) -> nodes.reference | None:
    "A type of another module in a signature."
    if node.get("refdomain") != "py": return None
    full = SHORT.get(node["reftarget"].split(".")[-1])
    if full is None: return None
    entry = env.get_domain("py").objects[full]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode)


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.add_post_transform(Names)
    app.connect("env-updated", name_all)
    app.connect("missing-reference", resolve_type)
    return dict(parallel_read_safe=True, parallel_write_safe=True)

"How the site is made, by `make docs`: docs/sources.py gathers its pages, docs/crosslinks.py links names in them."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

project = "clca"
copyright = "2026 onwards, clca authors"
extensions = ["myst_nb", "crosslinks"]
exclude_patterns = ["**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "clca"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False # the notebooks are in the repository
html_math_renderer = "mathml" # of docs/crosslinks.py; MathJax would come from the network
nb_execution_mode = "off" # every notebook is shown with the outputs that it was committed with
nb_merge_streams = True
myst_dmath_double_inline = True # a formula may stand in the middle of a paragraph
myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
myst_update_mathjax = False
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
pygments_style, pygments_dark_style = "friendly", "github-dark"

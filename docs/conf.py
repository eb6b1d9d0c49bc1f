"How the site is made: every notebook with the outputs that it was committed with. See `docs` in the Makefile."
project = "clca"
copyright = "2026 onwards, clca authors"
extensions = ["myst_nb"]
html_theme = "furo"
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["**/.ipynb_checkpoints", "**/_*", "**/99_init.ipynb", "figures/README.md"]
# index.ipynb, from which the README is made, links to files of the repository that are not part of the site
suppress_warnings = ["myst.xref_missing", "myst.header"]

"""The settings of the site: ``python -m sphinx -W docs docs/_build/html`` builds it."""

from pathlib import Path

import sb3_redo

project = "sb3_redo"
author = "The sb3_redo authors"
project_copyright = f"2026, {author}"
version = release = sb3_redo.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute"]  # MyST-NB runs notebooks in the folder above its output
suppress_warnings = ["myst.header"]  # a page may skip a level of headings

# Sphinx reads only what lies below this folder.
HERE = Path(__file__).parent
(HERE / "notebooks").mkdir(exist_ok=True)
notebook = (HERE.parent / "notebooks/dormancy.ipynb").read_text(encoding="utf-8")
(HERE / "notebooks/dormancy.ipynb").write_text(notebook.replace("](../docs/", "](../"), encoding="utf-8")

myst_heading_anchors = 4
nb_execution_mode = "off"  # the suite runs the notebook, and its outputs are stored

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of other projects have other markup
autodoc_class_signature = "mixed"

html_theme = "furo"
html_title = f"sb3_redo {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]

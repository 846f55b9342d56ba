"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build``."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from _pages import write_pages  # noqa: E402

write_pages(HERE)

project = "sctool"
author = "The sctool developers"
copyright = author
version = release = version_of("sctool")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = [
    "_build",
    "jupyter_execute",
    "_generated/*.md",
    "benchmarks/tables",
    "**.ipynb_checkpoints",
]
templates_path = ["_templates"]
nitpicky = False

html_theme = "furo"
html_title = f"sctool {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are executed by a test and kept with their results

autosummary_generate = True
autodoc_typehints = "none"  # the signature and the text say them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
smartquotes_action = "D"  # no curly quotation marks: names of slots hold straight ones
default_role = "code"


def slots_without_backticks(app, what, name, obj, options, lines: list[str]) -> None:
    """Napoleon sets the names of returned values in bold: what it is given must not be code."""
    lines[:] = [re.sub(r"^``(.+)`` : ", r"\1 : ", line) for line in lines]


def setup(app) -> None:
    """Register the above, to run before Napoleon."""
    app.connect("autodoc-process-docstring", slots_without_backticks, priority=100)

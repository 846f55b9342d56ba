"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

import inspect
import re
import sys
from pathlib import Path

from sctool import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from _pages import write_pages  # noqa: E402

write_pages(HERE)

project = "sctool"
author = "The sctool developers"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # MathJax from the built pages, not from a CDN
    "sphinxcontrib.bibtex",
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
html_static_path = ["_static"]
html_css_files = ["wide.css"]

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"
bibtex_reference_style = "author_year"

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


def inherited_settings(app, what, name, obj, options, lines: list[str]) -> None:
    """A settings class documents the fields that it adds: append those of its bases."""
    from sctool.model import Settings

    if not (inspect.isclass(obj) and issubclass(obj, Settings)):
        return
    documented = {line for line in lines if not line.startswith(" ")}
    while lines and not lines[-1].strip():
        lines.pop()
    if "Parameters" not in lines:  # it adds none
        lines += ["", "Parameters", "----------"]
    for base in obj.__mro__[1:-1]:
        text = inspect.cleandoc(base.__doc__ or "").partition("Parameters\n----------\n")[2]
        for entry in re.split(r"\n(?=\S)", text):
            if entry.partition("\n")[0] not in documented:
                lines.extend(entry.splitlines())
                documented.add(entry.partition("\n")[0])
    lines.append("")


def setup(app) -> None:
    """Register the above, to run before Napoleon."""
    app.connect("autodoc-process-docstring", slots_without_backticks, priority=100)
    app.connect("autodoc-process-docstring", inherited_settings, priority=100)

"""The one-file HTML report on an annotation.

``_content.py`` turns an annotated AnnData into tables and sentences, ``_map.py`` and ``_dots.py``
into the two figures; ``report.html``, with ``style.css`` and ``script.js`` inside it, is the page.
Nothing here trains, judges or writes to the AnnData.
"""

from __future__ import annotations

from anndata import AnnData

from sctool._report._content import describe
from sctool._report._dots import dot_plot
from sctool._report._map import cell_map
from sctool._report._words import number, percent


def render(adata: AnnData, key: str, basis: str | None) -> str:
    """Render the report documented in :func:`sctool.tl.report`."""
    # Not at the top: only reports need it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("sctool", "_report"),
        autoescape=True,  # a type's name may hold any characters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"percent": percent, "number": number}
    content = describe(adata, key)
    return pages.get_template("report.html").render(
        content=content,
        map=cell_map(adata, key, content.cells, content.colors, basis),
        dots=dot_plot(adata, content.cells["type"], content.novel, content.params),
    )

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from sctool import _data, _files, _report


def report(
    adata: AnnData, path: str | Path, *, key: str = "sctool", basis: str | None = None
) -> None:
    """Write a report on an annotation, one HTML file that any browser opens.

    For readers who did not run the annotation: what to look at first, how many cells each type and
    status has, a map of the cells, confidence, novel groups with their markers, and how the result
    was made. The file needs no network and stays below 5 MB: at most 30,000 cells are drawn.

    Parameters
    ----------
    adata
        Annotated by :func:`annotate`, or a MuData with such gene expression. It may be backed.
    path
        File to write, ``*.html``. An existing file is replaced once the new one is complete.
    key
        Key of the annotation.
    basis
        Positions of the cells on the map, a slot of ``obsm`` with or without its "X". Default:
        ``obsm["X_umap"]`` or, if there is none, a UMAP of ``obsm[f"X_{key}"]`` that scanpy computes
        for the report only.

    Returns
    -------
    None. The file is written; ``adata`` is not changed. The dot plot of marker genes is left out if
    ``adata`` no longer has expression values on a usable scale.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, one of its columns is missing, or ``basis`` is not in
        ``obsm``.
    ValueError
        ``path`` does not end in ".html", or ``adata`` has no cells.
    OSError
        The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise ValueError(f"path={str(path)!r}: the report is an HTML file, named *.html.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}.")
    page = _report.render(_data.rna_of(adata, "adata"), key, basis)
    with _files.replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")

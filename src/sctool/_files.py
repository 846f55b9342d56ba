"""Files of the command line: several formats are read, and a failed write loses nothing."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sctool._data import rna_name

Repair = Callable[[pd.DataFrame, str, list[str]], pd.DataFrame]

#: What is read, and how other formats become one of these.
FORMATS = (
    "an .h5ad or .h5mu file, a .zarr folder, a 10x .h5 file or a 10x folder with matrix.mtx. "
    "Convert other files first: for a table of cells x genes, "
    "scanpy.read_csv('x.csv').write_h5ad('x.h5ad')"
)


def read(path: Path) -> AnnData:
    """Read cells, by the name of the file or folder.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder.
    ValueError
        The format is unknown, or the content cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist.")
    load = _reader(path)
    if load is None:
        raise ValueError(f"{str(path)!r} cannot be read: pass {FORMATS}.")
    try:
        return load(path)
    except Exception as error:  # of HDF5, or of what anndata finds in it
        raise ValueError(
            f"{str(path)!r} cannot be read: {error}. It should be {FORMATS}."
        ) from error


def _reader(path: Path) -> Callable[[Path], AnnData] | None:
    import scanpy as sc

    if path.is_dir():
        if any((path / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
            return ad.read_zarr
        if any((path / f"matrix.mtx{end}").exists() for end in ("", ".gz")):
            return sc.read_10x_mtx
        return None
    readers = {".h5ad": ad.read_h5ad, ".h5mu": _read_rna, ".h5": sc.read_10x_h5}
    return readers.get(path.suffix.lower())


def rna_group(file: h5py.File) -> h5py.Group:
    """The modality of an open .h5mu file that holds gene expression, laid out as an .h5ad file is.

    Raises
    ------
    ValueError
        There is none, or several may be it.
    """
    modalities = file["mod"]
    features = {name: AnnData(var=ad.io.read_elem(modalities[name]["var"])) for name in modalities}
    return modalities[rna_name(features, Path(file.filename).name)]


def _read_rna(path: Path) -> AnnData:
    with h5py.File(path) as file:
        return ad.io.read_elem(rna_group(file))


def check_writable(adata: AnnData, path: Path) -> list[str]:
    """Make sure, before anything is computed, that ``adata`` can be written beside ``path``.

    Everything but the matrices is written into a temporary file. Where that fails, what older
    versions of anndata cannot write is converted in ``adata``: strings of pandas' own type and
    mixed columns become categories, columns called "_index" (as SeuratDisk leaves them) are
    renamed.

    Returns
    -------
    Notes on what was converted.

    Raises
    ------
    ValueError
        Something else cannot be written.
    OSError
        The folder is not writable.
    """
    notes: list[str] = []
    _refuse_matrices(adata)
    repairs = [_rename_reserved, _to_categories]
    while True:
        try:
            _write_skeleton(adata, path)
            return notes
        except OSError:
            raise
        except Exception as error:  # of whatever kind the writer of an element raises
            if not repairs:
                # anndata notes where in the file it was
                said = ". ".join([str(error), *getattr(error, "__notes__", [])])
                raise ValueError(
                    f"The cells cannot be written to an .h5ad file: {said}. Remove or convert that "
                    "element first."
                ) from error
            _repair_tables(adata, repairs.pop(0), notes)


def write(adata: AnnData, path: Path) -> None:
    """Write ``.h5ad`` or ``.zarr`` under a temporary name, then move it to ``path`` in one step."""
    with replacing(path) as temporary:
        if path.suffix.lower() == ".zarr":
            with no_announcements():
                adata.write_zarr(temporary)
        else:
            adata.write_h5ad(temporary)


@contextmanager
def no_announcements() -> Iterator[None]:
    """Ignore what anndata and zarr say of how their next versions will write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3")
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, which is moved there if nothing fails.

    A link stays a link.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            _exchange(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> None:
    """Exchange two folders, in one step where the system can (Linux); else in three renamings."""
    if sys.platform == "linux":
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        rename = getattr(ctypes.CDLL(None), "renameat2", None)
        if rename and rename(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0:
            return
    aside = new.with_name(f"{new.name}.old")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


def _refuse_matrices(adata: AnnData) -> None:
    """Refuse matrices that anndata cannot write, or whose names make a file it cannot read."""
    slots = {name: getattr(adata, name) for name in ("layers", "obsm", "varm", "obsp", "varp")}
    matrices = {f"{slot}[{key!r}]": m for slot, found in slots.items() for key, m in found.items()}
    matrices["X"] = adata.X
    if adata.raw is not None:
        slots["raw.varm"] = adata.raw.varm
        matrices["raw.X"] = adata.raw.X
    for slot, found in slots.items():
        if names := [str(key) for key in found if "/" in str(key)]:
            raise ValueError(
                f"The cells cannot be written to an .h5ad file: {names!r} in {slot} contain '/', "
                "and anndata could not read them again. Rename them first."
            )
    for slot, matrix in matrices.items():
        values = matrix.data if sp.issparse(matrix) else matrix
        if getattr(values, "dtype", None) != np.dtype(object):
            continue
        if (kind := pd.api.types.infer_dtype(np.ravel(values), skipna=False)) != "string":
            raise ValueError(
                f"The cells cannot be written to an .h5ad file: {slot} holds Python objects "
                f"({kind}). Convert it first, such as with astype(float), or remove it."
            )


def _write_skeleton(adata: AnnData, path: Path) -> None:
    skeleton = AnnData(
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns=dict(adata.uns),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
    )
    if adata.raw is not None:
        empty = sp.csr_matrix(adata.raw.shape, dtype="float32")
        skeleton.raw = AnnData(empty, var=adata.raw.var.copy())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.check.tmp")
    try:
        skeleton.write_h5ad(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _repair_tables(adata: AnnData, repair: Repair, notes: list[str]) -> None:
    """Repair the tables of an AnnData, wherever they are."""
    adata.obs = repair(adata.obs.copy(), "obs", notes)
    adata.var = repair(adata.var.copy(), "var", notes)
    for where in ("obsm", "varm", "uns"):
        _repair_mapping(getattr(adata, where), where, repair, notes)
    if adata.raw is not None:
        raw = adata.raw.to_adata()
        raw.var = repair(raw.var.copy(), "raw.var", notes)
        adata.raw = raw


def _repair_mapping(mapping: Any, where: str, repair: Repair, notes: list[str]) -> None:
    for key, value in list(mapping.items()):
        inner = f"{where}[{key!r}]"
        if isinstance(value, pd.DataFrame):
            mapping[key] = repair(value.copy(), inner, notes)
        elif isinstance(value, MutableMapping):
            _repair_mapping(value, inner, repair, notes)


def _rename_reserved(table: pd.DataFrame, where: str, notes: list[str]) -> pd.DataFrame:
    """Rename a column "_index", and names that are no strings."""
    table.columns = [str(column) for column in table.columns]
    if "_index" in table:
        name = next(n for n in ("index", "original_index", "index_") if n not in table)
        table = table.rename(columns={"_index": name})
        notes.append(f"{where}: column '_index', a reserved name, was renamed to {name!r}")
    return table


def _to_categories(table: pd.DataFrame, where: str, notes: list[str]) -> pd.DataFrame:
    """Convert strings of pandas' own type, and columns of several types, to categories."""
    if isinstance(table.index.dtype, pd.StringDtype):
        table.index = table.index.astype(object)
    for column, values in table.items():
        text = isinstance(values.dtype, pd.StringDtype)
        kinds = {type(v) for v in values.dropna()} if values.dtype == object else set()
        if text or len(kinds) > 1:
            names = values.astype(object).where(values.notna(), None)
            table[column] = pd.Categorical(names.map(str, na_action="ignore"))
            kind = "strings" if text else "values of several types"
            notes.append(f"{where}: column {column!r}, {kind}, was converted to categories")
    return table

"""Cells that stay on disk: opened without their matrices, and annotated in a copy of their file.

HDF5 cannot be changed in place safely: a process that is killed while it writes leaves a file that
no one can open. So results are always appended to a copy beside the place that they are for, which
takes its name in one step once it is whole. Until then nothing else is touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _slots
from sctool._files import no_announcements, replacing, rna_group

#: Number of values copied at a time.
BLOCK = 2**23
SPARSE = ("csr_matrix", "csc_matrix")
MEANWHILE = (
    "was changed while its cells were annotated, and nothing was written: annotate it again."
)


def kind_of(path: Path) -> str | None:
    """The format, "h5ad", "h5mu" or "zarr", of cells that need not be loaded; else None."""
    if path.is_dir():
        names = (".zgroup", ".zattrs", "zarr.json")
        return "zarr" if any((path / name).exists() for name in names) else None
    ending = path.suffix.lower().removeprefix(".")
    return ending if ending in ("h5ad", "h5mu") else None


@contextmanager
def opened(path: Path, mode: Any = "r") -> Iterator[Any]:
    """Open a file as a group of HDF5 or zarr; of several modalities, that of gene expression."""
    if (ending := path.suffix.lower()) in (".h5ad", ".h5mu"):
        with h5py.File(path, mode) as file:
            yield rna_group(file) if ending == ".h5mu" else file
    else:
        import zarr

        # what zarr 3 finds consolidated would hide what is appended; zarr 2 does not look there
        plain: Any = {} if zarr.__version__.startswith("2.") else {"use_consolidated": False}
        yield zarr.open_group(str(path), mode=mode, **plain)


def lazy(group: Any) -> AnnData:
    """The cells of an open file, whose matrices stay there.

    Tables and ``uns`` are read; ``X``, ``raw``, layers and arrays of ``obsm`` are not; what belongs
    to pairs of cells or genes is left out.

    Raises
    ------
    Errors of anndata and of others if the file is older than their present format.
    """

    def all_in(name: str) -> dict[str, Any]:
        return {key: _matrix(group[name][key]) for key in group[name]} if name in group else {}

    raw = None
    if "raw" in group:
        raw = {"X": _matrix(group["raw"]["X"]), "var": ad.io.read_elem(group["raw"]["var"])}
    return AnnData(
        X=_matrix(group["X"]) if "X" in group else None,
        obs=ad.io.read_elem(group["obs"]),
        var=ad.io.read_elem(group["var"]),
        uns=ad.io.read_elem(group["uns"]) if "uns" in group else {},
        obsm=all_in("obsm"),
        layers=all_in("layers"),
        raw=raw,
    )


def _matrix(element: Any) -> Any:
    if element.attrs.get("encoding-type") in SPARSE:
        return ad.io.sparse_dataset(element)
    return element if hasattr(element, "shape") else ad.io.read_elem(element)


# -- writing -------------------------------------------------------------------------------------


def check_space(source: Path, target: Path) -> None:
    """Make sure, before anything is computed, that the disk has room for a copy.

    Raises
    ------
    OSError
        It has not.
    """
    files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    needed = sum(file.stat().st_size for file in files)
    free = shutil.disk_usage(target.resolve().parent).free
    if needed > free:
        raise OSError(
            f"{str(target)!r}: {needed / 1e9:.1f} GB are needed beside it and {free / 1e9:.1f} GB "
            "are free. Results are written into a copy, so that an interruption loses nothing; "
            "-o labels.csv writes the labels alone."
        )


def write_annotated(adata: AnnData, key: str, source: Path, target: Path) -> None:
    """Write a copy of a file that has the results under ``key`` of ``adata`` as well.

    Everything else is copied as it is and not loaded; a change of format, from .h5ad to .zarr or
    back, is possible, and of .h5mu the gene expression alone is then copied. ``target`` may be
    ``source``.

    Parameters
    ----------
    adata
        The cells of ``source``, annotated.
    source, target
        Files .h5ad or .h5mu, or folders .zarr; a ``target`` .h5mu only of a source .h5mu.

    Raises
    ------
    ValueError
        The file has other cells than ``adata`` by now, or others wrote to it meanwhile.
    """
    before = _state(source)
    with replacing(target) as copy, no_announcements():
        if kind_of(source) == target.suffix.lower()[1:]:
            # (a file that may only be read gives one that may be written)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
        else:
            with opened(source) as old, opened(copy, "w") as new:
                _copy_group(old, new)
        with opened(copy, "r+") as group:
            obs = group["obs"]
            names = obs[obs.attrs["_index"]] if "_index" in getattr(obs, "attrs", {}) else None
            if names is not None and not _same(ad.io.read_elem(names), adata.obs_names):
                raise ValueError(f"{str(source)!r} {MEANWHILE}")
            _append(group, adata, key)
        if target.is_file():
            shutil.copymode(target, copy)
        if target.suffix.lower() == ".zarr":
            import zarr

            if (copy / ".zmetadata").exists() or _is_consolidated(copy / "zarr.json"):
                zarr.consolidate_metadata(str(copy))
        if _state(source) != before:
            raise ValueError(f"{str(source)!r} {MEANWHILE}")


def _same(names: Any, others: pd.Index) -> bool:
    """Whether two indices of cells are equal, as text."""
    return pd.Index(names).astype(str).equals(others.astype(str))


def _state(path: Path) -> tuple[int, ...]:
    """What changes if others write to a file, or exchange it."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _append(group: Any, adata: AnnData, key: str) -> None:
    """Replace the results under ``key`` of an open file by those of ``adata``."""
    for slot in ("obsm", "uns"):
        if slot not in group:
            ad.io.write_elem(group, slot, {})
    uns = (key, f"{key}_colors", f"{key}_evaluation", f"{key}_ontology")
    for slot, names in (("obsm", _slots.arrays(key)), ("uns", uns)):
        for name in names:
            if name in group[slot]:
                del group[slot][name]
            if name in (values := getattr(adata, slot)):
                ad.io.write_elem(group[slot], name, values[name])
    obs = group["obs"]
    if obs.attrs.get("encoding-type") != "dataframe":  # as anndata before 0.7 wrote it
        del group["obs"]
        ad.io.write_elem(group, "obs", adata.obs)
        return
    ours = _slots.columns(key)
    theirs = [name for name in map(str, obs.attrs["column-order"]) if name not in ours]
    for name in ours:
        if name in obs:
            del obs[name]
        if name in adata.obs:
            values = adata.obs[name]
            categorical = isinstance(values.dtype, pd.CategoricalDtype)
            ad.io.write_elem(obs, name, values.array if categorical else values.to_numpy())
    order = [*theirs, *(name for name in adata.obs if name in ours)]
    is_zarr = not isinstance(obs, h5py.Group)
    obs.attrs["column-order"] = order if is_zarr else np.array(order, dtype=h5py.string_dtype())


def _is_consolidated(metadata: Path) -> bool:
    return metadata.exists() and '"consolidated_metadata": {' in metadata.read_text("utf-8")


def _copy_group(old: Any, new: Any) -> None:
    """Copy a group between HDF5 and zarr; matrices by blocks, and anything else through memory."""
    new.attrs.update(_attributes(old))
    for name in old:
        element = old[name]
        kind = element.attrs.get("encoding-type")
        if kind in SPARSE:
            part = new.create_group(name)
            part.attrs.update(_attributes(element))
            for array in ("data", "indices", "indptr"):
                _copy_array(element[array], part, array)
        elif kind == "array" and element.shape and element.dtype.kind in "biuf":
            _copy_array(element, new, name)
        elif kind in ("dict", "raw", "anndata"):
            _copy_group(element, new.create_group(name))
        else:
            ad.io.write_elem(new, name, ad.io.read_elem(element))


def _copy_array(old: Any, new: Any, name: str) -> None:
    create = getattr(new, "create_array", None) or new.create_dataset  # of zarr 3; of others
    chunks = tuple(map(min, old.chunks or _chunks(old), old.shape))
    how = {} if 0 in old.shape else {"chunks": chunks}
    copy = create(name, shape=old.shape, dtype=old.dtype, **how)
    copy.attrs.update(_attributes(old))
    step = max(BLOCK // max(int(np.prod(old.shape[1:])), 1), 1)
    for start in range(0, old.shape[0], step):
        copy[start : start + step] = old[start : start + step]


def _chunks(array: Any) -> tuple[int, ...]:
    """Chunks of about a megabyte for an array that has none."""
    width = max(int(np.prod(array.shape[1:])), 1)
    return (max(2**18 // width, 1), *array.shape[1:])


def _attributes(element: Any) -> dict[str, Any]:
    """Attributes as plain values, which both formats store."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in element.attrs.items()}


# -- a table of labels ---------------------------------------------------------------------------


def check_table(path: Path) -> None:
    """Make sure that a table of this name can be written.

    Raises
    ------
    ImportError
        It is a .parquet file, and pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ImportError(
                f"{str(path)!r} needs pyarrow: pip install 'sctool-annotate[parquet]', or name the "
                "table *.csv."
            ) from None


def write_table(adata: AnnData, key: str, path: Path) -> None:
    """Write the columns of ``obs`` that are results under ``key``, by cell, as .csv or .parquet."""
    table = adata.obs[[name for name in _slots.columns(key) if name in adata.obs]]
    table = table.rename_axis(index="cell")
    with replacing(path) as temporary:
        if path.suffix.lower() == ".csv":
            table.to_csv(temporary)
        else:
            table.to_parquet(temporary)

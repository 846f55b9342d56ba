"""Cells in every form that people have them in give the labels of the clean ones.

Hypothesis draws the forms. What is not usable must be refused by sctool itself, in clear words.
"""

import re
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from synthetic import GENES, TYPES, simulate_sides

import sctool
from sctool.model import AnnotationModel

pytestmark = pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique")

# -- what is drawn: each a function of the values or names of clean cells ------------------------


def to_total(x: np.ndarray, total: float) -> np.ndarray:
    return x * total / np.maximum(x.sum(axis=1, keepdims=True), 1)


def log(x: np.ndarray, base: float = np.e) -> np.ndarray:
    return np.log1p(x) / np.log(base)


#: Scales of the values, of counts, (n_cells, n_genes) float64.
SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "counts": lambda x: x,
    "ln": lambda x: log(to_total(x, 1e4)),
    "log2": lambda x: log(to_total(x, 1e4), 2),
    "log10": lambda x: log(to_total(x, 1e4), 10),
    "cpm": lambda x: to_total(x, 1e6),
    "ln-cpm": lambda x: log(to_total(x, 1e6)),
    "log2-cpm": lambda x: log(to_total(x, 1e6), 2),
    "ln-counts": log,
    "ln-twice": lambda x: log(log(to_total(x, 1e4))),
}
FLOATS = ["<f4", "<f8", ">f4", ">f8", "object"]
INTEGERS = ["u1", "i2", ">i4", "<i8", "u8"]


def split_entries(x: np.ndarray) -> sp.csr_matrix:
    """The same values, each in two entries: all of it, and 0."""
    whole = sp.csr_matrix(x)
    data = np.stack([whole.data, np.zeros_like(whole.data)], axis=1).ravel()
    return sp.csr_matrix((data, np.repeat(whole.indices, 2), 2 * whole.indptr), shape=x.shape)


CONTAINERS: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": lambda x: x,
    "column-major": np.asfortranarray,
    "csr": sp.csr_matrix,
    "csr-array": sp.csr_array,
    "csc": sp.csc_matrix,
    "from-coo": lambda x: sp.csr_matrix(sp.coo_matrix(x)),
    "duplicate-entries": split_entries,
}
#: Names of the cells, of their number.
CELL_NAMES: dict[str, Callable[[int], list[str]]] = {
    "unique": lambda n: [f"cell{i}" for i in range(n)],
    "integers": lambda n: [str(i) for i in range(n)],
    "duplicate": lambda n: [f"cell{i // 2}" for i in range(n)],
    "unicode": lambda n: [f"Zelle/{i} é" for i in range(n)],
}
#: Names of the types, in the same alphabetical order.
TYPE_NAMES = {
    "plain": TYPES,
    "slashes": ["B/pre", "CD4 T/NK", "DC/", "Mono"],
    "unicode": ["B β", "T γδ", "é", "单核细胞"],
    "integers": ["0", "1", "2", "3"],
    "like-missing": ["NA cell", "None other", "nan2", "unknown"],
}
MISSING: list[Any] = [np.nan, None, "nan", "", "NA", " "]


@dataclass(frozen=True)
class Cells:
    """What the cells are, which decides their labels."""

    unlabelled: bool
    empty: bool
    single: bool
    ensembl: bool


@dataclass(frozen=True)
class Form:
    """How one object has them."""

    scale: str
    dtype: str
    container: str
    slot: str
    place: str
    genes: str
    versions: bool
    cell_names: str
    noted: float | None


@dataclass(frozen=True)
class Labels:
    """How the reference has its labels."""

    names: str
    dtype: str
    missing: Any = field(hash=False)
    order: str


@st.composite
def forms(draw: Any) -> Form:
    scale = draw(st.sampled_from(list(SCALES)))
    dtypes = [*FLOATS, *([] if scale == "cpm" else ["<f2"])] + (scale == "counts") * INTEGERS
    return Form(
        scale=scale,
        dtype=draw(st.sampled_from(dtypes)),
        container=draw(st.sampled_from(list(CONTAINERS))),
        slot=draw(st.sampled_from(["X", "raw"] + (scale == "counts") * ["counts", "Raw_Counts"])),
        place=draw(st.sampled_from(["memory", "view", "file", "view-of-file"])),
        genes=draw(st.sampled_from(["same", "shuffled", "duplicate", "proteins", "silent"])),
        versions=draw(st.booleans()),
        cell_names=draw(st.sampled_from(list(CELL_NAMES))),
        noted=draw(st.sampled_from([None, np.e, 2.0])),
    )


CELLS = st.builds(Cells, *[st.booleans()] * 4)
LABELS = st.builds(
    Labels,
    st.sampled_from(list(TYPE_NAMES)),
    st.sampled_from(["category", "object", "string", "str"]),
    st.sampled_from(MISSING),
    st.sampled_from(["same", "unused", "reversed"]),
)

# -- the cells -----------------------------------------------------------------------------------


def clean(cells: Cells) -> tuple[ad.AnnData, ad.AnnData]:
    """Query and reference in the plainest form."""
    adata, ref = simulate_sides(40, 48)
    if cells.single:
        ref = ref[(ref.obs["cell_type"] != "DC") | (np.arange(48) == 2)].copy()
    if cells.unlabelled:
        ref.obs.loc[ref.obs_names[[0, 5, 11]], "cell_type"] = np.nan
    for side in (adata, ref):
        if cells.empty:
            side.X = sp.csr_matrix(
                side.X.toarray() * ~np.isin(np.arange(side.n_obs), [3, 17])[:, None]
            )
        if cells.ensembl:
            side.var_names = [f"ENSG{i:011d}" for i in range(len(GENES))]
    return adata, ref


def formed(adata: ad.AnnData, form: Form, folder: Path) -> ad.AnnData:
    """The same cells in another form."""
    x, names = adata.X.toarray().astype(np.float64), list(adata.var_names)
    kinds = ["Gene Expression"] * len(names)
    rng = np.random.default_rng(0)
    if form.genes == "shuffled":
        order = rng.permutation(len(names))
        x, names = x[:, order], [names[i] for i in order]
    elif form.genes == "duplicate":
        first = np.floor(x[:, :20] / 2)
        x = np.hstack([first, x[:, 20:], x[:, :20] - first])
        names, kinds = [*names, *names[:20]], [*kinds, *kinds[:20]]
    elif form.genes == "proteins":
        x = np.hstack([x, rng.poisson(20.0, (len(x), 5))])
        names, kinds = [*names, *names[:5]], [*kinds, *["Antibody Capture"] * 5]
    elif form.genes == "silent":
        x = np.hstack([x, np.zeros((len(x), 5))])
        names, kinds = [*names, *"VWXYZ"], [*kinds, *["Gene Expression"] * 5]
    if form.versions and names[0].startswith("ENSG"):
        names = [f"{name}.{i % 9}" for i, name in enumerate(names)]
    values = SCALES[form.scale](x)
    if form.scale != "counts" and form.genes == "proteins":  # each kind is normalised by itself
        values[:, :-5] = SCALES[form.scale](x[:, :-5])
    values = values.astype(form.dtype)
    # scipy has no sparse matrices of other types
    sparse = form.dtype not in ("<f2", ">f4", ">f8", ">i4", "object")
    values = CONTAINERS[form.container if sparse else "dense"](values)
    obs, var = adata.obs.copy(), pd.DataFrame({"feature_types": kinds}, index=names)
    obs.index = CELL_NAMES[form.cell_names](len(obs))
    scaled = (x - x.mean(axis=0)).astype(np.float32)
    result = ad.AnnData(values if form.slot == "X" else scaled, obs=obs, var=var)
    if form.slot == "raw":
        result.raw = ad.AnnData(values, obs=obs, var=var)
    elif form.slot != "X":
        result.layers[form.slot] = values
    if form.noted is not None:
        result.uns["log1p"] = {"base": form.noted}
    result.uns["mine"] = {"a": [1, 2]}
    result.obsm["X_mine"] = np.ones((len(obs), 2))
    held = form.dtype != "object" and not any(v is None for v in obs.get("cell_type", []))
    if "file" in form.place and held:  # no file holds objects
        path = folder / f"{len(list(folder.iterdir()))}.h5ad"
        result.write_h5ad(path)
        result = ad.read_h5ad(path, backed="r")
    return result[:, :] if "view" in form.place else result


def labelled(values: pd.Series, labels: Labels) -> pd.Series:
    """The labels in another form."""
    names = dict(zip(TYPES, TYPE_NAMES[labels.names], strict=True))
    text = values.astype(object).map(names).astype(object)
    text = text.where(values.notna(), labels.missing)
    if labels.dtype != "category":
        return text.astype(labels.dtype) if labels.dtype != "str" else text.astype(str)
    result = text.astype("category").cat
    if labels.order == "unused":
        return result.add_categories(["another", "never"])
    if labels.order == "reversed":
        return result.reorder_categories(list(result.categories)[::-1])
    return text.astype("category")


# -- what must hold ------------------------------------------------------------------------------


@cache
def expected(cells: Cells) -> dict[str, list[str]]:
    """Labels that the clean cells get, by function."""
    adata, ref = clean(cells)
    annotated = sctool.tl.annotate(adata, ref, method="logistic", copy=True).obs["sctool"]
    clusters = sctool.tl.cluster(adata, method="leiden", n_clusters=4, copy=True).obs["leiden"]
    reused = sctool.tl.annotate(adata, trained(cells), copy=True).obs["sctool"]
    found = {"annotate": annotated, "model": reused, "cluster": clusters}
    return {name: list(values.astype(object)) for name, values in found.items()}


@cache
def trained(cells: Cells) -> AnnotationModel:
    adata, ref = clean(cells)
    return sctool.tl.annotate(adata, ref, method="logistic", copy=True, return_model=True)[1]


def state(adata: ad.AnnData) -> dict[str, Any]:
    """Everything in an AnnData, copied."""

    def array(x: Any) -> Any:
        x = x.to_memory() if hasattr(x, "to_memory") else x
        # a view has a class of its own
        return (x.format, x.dtype, x.copy()) if sp.issparse(x) else np.array(x)

    found: dict[str, Any] = {"X": array(adata.X), "uns": repr(dict(adata.uns))}
    found |= {name: getattr(adata, name).copy() for name in ("obs", "var")}
    for name in ("layers", "obsm", "varm"):
        slots = getattr(adata, name)
        found |= {f"{name}[{key}]": array(slots[key]) for key in slots if key is not None}
    if adata.raw is not None:
        found |= {"raw.X": array(adata.raw.X), "raw.var": adata.raw.var.copy()}
    return found


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    """The same values of the same type, dtype and form."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key], key)
    elif isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted)
    elif isinstance(wanted, tuple):
        assert found[:2] == wanted[:2]
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found[2], part), getattr(wanted[2], part))
    elif isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    else:
        assert found == wanted


def without(adata: ad.AnnData, key: str) -> dict[str, Any]:
    """The state without the slots documented for ``key``."""
    kept = state(adata)
    kept["obs"] = kept["obs"][[c for c in kept["obs"] if c.split("_")[0] != key]]
    kept["uns"] = repr({k: v for k, v in adata.uns.items() if k not in (key, f"{key}_colors")})
    return {k: v for k, v in kept.items() if k not in (f"obsm[X_{key}]", f"obsm[{key}_proba]")}


def assert_a_file_holds(adata: ad.AnnData, before: ad.AnnData, key: str, path: Path) -> None:
    """Write and read the result; what was not writable before need not be so now."""
    try:
        adata.write_h5ad(path)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017, PT011
            before.write_h5ad(path)
        return
    read = ad.read_h5ad(path)
    columns = [c for c in adata.obs if c.split("_")[0] == key]
    pd.testing.assert_frame_equal(read.obs[columns], adata.obs[columns], check_index_type=False)
    assert list(read.obs_names) == list(adata.obs_names)
    np.testing.assert_array_equal(read.obsm[f"X_{key}"], adata.obsm[f"X_{key}"])
    assert set(read.uns[key]) == set(adata.uns[key])
    for name in ("classes", "audit"):
        if name in adata.uns[key]:
            assert list(read.uns[key][name]) == list(adata.uns[key][name])


def agreement(found: list[str], wanted: list[str]) -> float:
    """Fraction of equal labels; missing ones are equal only to missing ones."""
    assert [pd.isna(v) for v in found] == [pd.isna(v) for v in wanted]
    return np.mean([pd.isna(a) or a == b for a, b in zip(found, wanted, strict=True)])


def check(cells: Cells, query: Form, ref: Form, labels: Labels, how: str, copy: bool) -> None:
    """One call with cells in some form."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain_query, plain_ref = clean(cells)
        plain_query.obs["cell_type"] = TYPE_NAMES[labels.names][0]  # which must not be read
        plain_ref.obs["cell_type"] = labelled(plain_ref.obs["cell_type"], labels)
        adata, reference = formed(plain_query, query, folder), formed(plain_ref, ref, folder)
        before, before_ref = state(adata), state(reference)

        key = "leiden" if how == "cluster" else "sctool"
        if how == "cluster":
            result = sctool.tl.cluster(adata, method="leiden", n_clusters=4, copy=copy)
        else:
            source = trained(cells) if how == "model" else reference
            method = "auto" if how == "model" else "logistic"
            result = sctool.tl.annotate(adata, source, method=method, copy=copy)

        assert_same(state(reference), before_ref)
        if copy:
            assert_same(state(adata), before)
        result = result if copy else adata
        assert_same(without(result, key), before)
        original = formed(plain_query, query, folder)
        assert_a_file_holds(result, original, key, folder / "result.h5ad")

        found, wanted = list(result.obs[key].astype(object)), expected(cells)[how]
        if how == "annotate":
            names = dict(zip(TYPES, TYPE_NAMES[labels.names], strict=True))
            wanted = [names.get(name, name) for name in wanted]
        scales = {query.scale, ref.scale if how == "annotate" else query.scale}
        # Others are rounded, and another order of the types is another order of summation.
        exact = scales == {"counts"} and labels.order != "reversed"
        assert agreement(found, wanted) >= (1 if exact else 0.9), result.uns[key]["audit"]
        for side in (adata, reference, original):
            if side.isbacked:
                side.file.close()


def with_values(adata: ad.AnnData, change: Callable[[np.ndarray], Any]) -> ad.AnnData:
    """The cells with other values, in ``X`` alone."""
    return ad.AnnData(change(adata.X.toarray()), obs=adata.obs, var=adata.var)


def with_first(x: np.ndarray, value: Any) -> np.ndarray:
    """The same values but the first, of the type of ``value``."""
    x = x.astype(object if isinstance(value, str) else type(value))
    x[0, 0] = value
    return x


def with_names(adata: ad.AnnData, change: Callable[[str], str]) -> ad.AnnData:
    """The cells with other names of the genes."""
    adata.var_names = [change(name) for name in adata.var_names]
    return adata


def with_labels(adata: ad.AnnData, values: Any) -> ad.AnnData:
    """The cells with other labels."""
    adata.obs["cell_type"] = values
    return adata


#: What makes cells useless, and words of the message.
SPOILS: dict[str, tuple[Callable[[ad.AnnData], ad.AnnData], str]] = {
    "negative": (lambda a: with_values(a, lambda x: x - x.mean(axis=0)), "scaled"),
    "missing": (lambda a: with_values(a, lambda x: with_first(x, np.nan)), "missing"),
    "infinite": (lambda a: with_values(a, lambda x: with_first(x, np.inf)), "infinite"),
    "text": (lambda a: with_values(a, lambda x: with_first(x, "high")), "not real numbers"),
    "complex": (lambda a: with_values(a, lambda x: with_first(x, 1j)), "not real numbers"),
    "zeros": (lambda a: with_values(a, lambda x: x * 0), "only zeros"),
    "no-values": (lambda a: ad.AnnData(obs=a.obs, var=a.var), "is empty"),
    "no-cells": (lambda a: a[:0].copy(), "no cells|0 cell type"),
    "no-genes": (lambda a: a[:, :0].copy(), "no genes|only zeros|share 0"),
    "other-genes": (lambda a: with_names(a, "other-{}".format), "share 0 genes"),
    "few-genes": (lambda a: a[:, :80].copy(), "share 80 genes"),
    "one-type": (lambda a: with_labels(a, "B"), "1 cell type"),
    "no-labels": (lambda a: with_labels(a, None), "0 cell type"),
    "nan-labels": (lambda a: with_labels(a, ["nan", ""] * (a.n_obs // 2)), "0 cell type"),
    "no-column": (lambda a: with_labels(a, "B")[:, :].copy(), "cell_type"),
}


def check_refused(query: Form, ref: Form, side: str, spoil: str) -> None:
    """One call with one useless side, and the other in some form."""
    make, words = SPOILS[spoil]
    of_labels = spoil in ("one-type", "no-labels", "nan-labels", "no-column")
    side = "ref" if of_labels else side
    with tempfile.TemporaryDirectory() as name:
        adata, reference = clean(Cells(False, False, False, False))
        if side == "ref":
            adata, reference = formed(adata, query, Path(name)), make(reference)
            if spoil == "no-column":
                del reference.obs["cell_type"]
        else:
            adata, reference = make(adata), formed(reference, ref, Path(name))
        before, before_ref = state(adata), state(reference)
        with pytest.raises((ValueError, KeyError, TypeError), match=words) as caught:
            sctool.tl.annotate(adata, reference, method="logistic")
        last = traceback.extract_tb(caught.tb)[-1]
        assert Path(sctool.__file__).parent in Path(last.filename).parents
        name = "(?i)reference" if "share" in str(caught.value) else rf"\b{side}\b"
        assert re.search(name, str(caught.value))
        assert_same(state(adata), before)
        assert_same(state(reference), before_ref)
        for one in (adata, reference):
            if one.isbacked:
                one.file.close()


def examples(n: int) -> Callable[[Any], Any]:
    """Draw ``n`` examples, the same ones in every run."""
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # to find a smaller example takes minutes
        suppress_health_check=list(HealthCheck),
    )


#: The arguments of ``check`` and of ``check_refused``.
DRAWN = (CELLS, forms(), forms(), LABELS, st.sampled_from(["annotate", "model", "cluster"]))
SPOILT = (forms(), forms(), st.sampled_from(["query", "ref"]), st.sampled_from(list(SPOILS)))


@examples(12)
@given(*DRAWN, st.booleans())
def test_the_form_of_the_cells_is_irrelevant(cells, query, ref, labels, how, copy):
    check(cells, query, ref, labels, how, copy)


@pytest.mark.slow
@examples(1000)
@given(*DRAWN, st.booleans())
def test_the_form_of_the_cells_is_irrelevant_in_many_examples(cells, query, ref, labels, how, copy):
    check(cells, query, ref, labels, how, copy)


@examples(10)
@given(*SPOILT)
def test_what_is_not_usable_is_refused_by_name(query, ref, side, spoil):
    check_refused(query, ref, side, spoil)


@pytest.mark.slow
@examples(300)
@given(*SPOILT)
def test_what_is_not_usable_is_refused_by_name_in_many_examples(query, ref, side, spoil):
    check_refused(query, ref, side, spoil)

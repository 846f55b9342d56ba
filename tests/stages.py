"""Stages that read a query and a reference, which the tests of the data share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from synthetic import GENES, simulate_sides

import sctool
from sctool._data import Expression, Features, TrainingData, find_expression, join, read_cells
from sctool.model import AnnotationModel

#: Ensembl ids in place of the names of the genes.
ENSEMBL = [f"ENSG{i:011d}" for i in range(len(GENES))]


def cp10k(x: sp.csr_matrix) -> np.ndarray:
    x = x.toarray().astype(np.float64)
    return 1e4 * x / x.sum(axis=1, keepdims=True)


def scaled(x: np.ndarray, centre: bool = True) -> np.ndarray:
    """Unit variance by gene."""
    x = x - centre * x.mean(axis=0)
    deviation = x.std(axis=0, ddof=1)
    return (x / np.where(deviation > 0, deviation, 1)).astype(np.float32)


FORMS: dict[str, Callable[[sp.csr_matrix], np.ndarray]] = {
    "counts": lambda x: x.toarray(),
    "log1p": lambda x: np.log1p(cp10k(x)),
    "cpm": lambda x: 100 * cp10k(x),
    "log1p-cpm": lambda x: np.log1p(100 * cp10k(x)),
}


def linear(expression: Expression) -> np.ndarray:
    """All the values on the linear scale."""
    n_genes = expression.matrix.shape[1]
    return sp.vstack(list(expression.linear(np.arange(n_genes), n_genes))).toarray()


def of(values, names=None) -> ad.AnnData:
    """Values as AnnData."""
    values = np.asarray(values, dtype=np.float32)
    names = [f"g{i}" for i in range(values.shape[1])] if names is None else names
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(values))])
    return ad.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=pd.Index(names)))


def logistic(adata: ad.AnnData, ref: ad.AnnData, **kwargs) -> ad.AnnData:
    """Return the query, annotated in place by the fastest method."""
    sctool.tl.annotate(adata, ref, method="logistic", **kwargs)
    return adata


def train_logistic(adata: ad.AnnData, ref: ad.AnnData, **kwargs) -> AnnotationModel:
    """Return a trained model."""
    return sctool.tl.annotate(adata.copy(), ref, method="logistic", return_model=True, **kwargs)


def transformed(
    features: Features, adata: ad.AnnData
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """What a model sees of cells that it is given later, without its fill; the fill; notes."""
    expression, _ = find_expression(adata, None, "query")
    chunks, fill, notes = features.transform(expression)
    return sp.vstack(list(chunks)).toarray(), fill, notes


def audit(adata: ad.AnnData) -> str:
    return "\n".join(adata.uns["sctool"]["audit"])


def assert_same_data(data: TrainingData, expected: TrainingData) -> None:
    """To the last bit: what a model is trained on is the same object, in effect."""
    assert type(data.x) is sp.csr_matrix
    assert data.x.dtype == np.float32
    assert data.x.nnz == expected.x.nnz
    np.testing.assert_array_equal(data.x.toarray(), expected.x.toarray())
    pd.testing.assert_frame_equal(data.genes, expected.genes)
    np.testing.assert_array_equal(data.labels.codes, expected.labels.codes)
    assert list(data.labels.categories) == list(expected.labels.categories)
    np.testing.assert_array_equal(data.domain, expected.domain)
    for name in ("is_counts", "colors", "ignore_case", "audit"):
        assert getattr(data, name) == getattr(expected, name)


@cache
def trained() -> AnnotationModel:
    """The model of the synthetic reference."""
    return train_logistic(*simulate_sides())


#: What reads a query and a reference, from the first step to the whole.
STAGES: dict[str, Callable[[ad.AnnData, ad.AnnData], object]] = {
    "join": lambda adata, ref: join(adata, ref, labels_key="cell_type"),
    "read_cells": lambda adata, ref: read_cells(adata, None, "data"),
    "transform": lambda adata, ref: transformed(trained().features_, adata)[0],
    "annotate": lambda adata, ref: logistic(adata, ref).obsm["sctool_proba"],
    "annotate-with-model": lambda adata, ref: logistic(adata, trained()).obsm["sctool_proba"],
}
every_stage = pytest.mark.parametrize("stage", list(STAGES))


@cache
def expected(stage: str, form: str = "counts") -> object:
    """What a stage makes of the synthetic sides as they are."""
    return STAGES[stage](*sides_in(form))


def sides_in(form: str) -> tuple[ad.AnnData, ad.AnnData]:
    """The synthetic sides, their values on some scale."""
    adata, ref = simulate_sides()
    for side in (adata, ref):
        side.X = sp.csr_matrix(FORMS[form](side.X).astype(np.float32))
    return adata, ref


def assert_read_alike(stage: str, adata: ad.AnnData, ref: ad.AnnData, form: str = "counts") -> None:
    """A stage makes the same of these sides as of the synthetic ones."""
    result, wanted = STAGES[stage](adata, ref), expected(stage, form)
    if isinstance(wanted, TrainingData):
        assert_same_data(result, wanted)
    else:
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-5)


def in_files(folder: Path, *sides: ad.AnnData) -> list[ad.AnnData]:
    """The same, their values left in files."""
    for i, side in enumerate(sides):
        side.write_h5ad(folder / f"{i}.h5ad")
    return [ad.read_h5ad(folder / f"{i}.h5ad", backed="r") for i in range(len(sides))]

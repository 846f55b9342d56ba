"""From a user's AnnData to a model's inputs: scales, genes, labels, and what is said about them."""

import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from synthetic import GENES, TYPES, simulate, simulate_joint, simulate_sides

import sctool
from sctool._data import (
    Expression,
    Features,
    TrainingData,
    _expression,
    _genes,
    clean_labels,
    find_expression,
    join,
    palette,
    read_cells,
)
from sctool._data._expression import detect_scale
from sctool._data._genes import match_genes
from sctool.model import AnnotationModel, LogisticClassifier


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


@pytest.fixture
def few_genes(monkeypatch):
    """Let hand-made cases of a few genes through."""
    monkeypatch.setattr(_genes, "MIN_SHARED", 1)
    monkeypatch.setattr(_genes, "FEW_SHARED", 1)


# -- scales --------------------------------------------------------------------------------------

SCALES = {
    "counts": (lambda x: x.toarray(), "counts"),
    "counts-of-few-molecules": (lambda x: np.minimum(x.toarray(), 1), "counts"),
    "log1p": (lambda x: np.log1p(cp10k(x)), "log1p"),
    "log1p-of-some-genes": (lambda x: np.log1p(cp10k(x))[:, :100], "log1p"),
    "log1p-of-one-cell": (lambda x: np.log1p(cp10k(x))[:1], "log1p"),
    "log2p1-cpm": (lambda x: np.log2(1 + 100 * cp10k(x)), "log1p"),
    "cpm": (lambda x: 100 * cp10k(x), "linear"),
    "cp10k-of-few-genes": (lambda x: cp10k(x) / 1000, "linear"),
    "tpm-of-some-genes": (lambda x: 100 * cp10k(x)[:, :100], "linear"),
    "corrected-counts": (lambda x: 0.93 * x.toarray(), "linear"),
    "scaled": (lambda x: scaled(np.log1p(cp10k(x))), "scaled"),
    "scaled-not-centred": (lambda x: scaled(np.log1p(cp10k(x)), centre=False), "scaled"),
    "negative": (lambda x: x.toarray() - 1, "scaled"),
    "nan": (lambda x: np.where(x.toarray() > 9, np.nan, x.toarray()), "missing"),
    "infinite": (lambda x: np.where(x.toarray() > 9, np.inf, x.toarray()), "missing"),
    "zero": (lambda x: 0 * x.toarray(), "empty"),
}


@pytest.mark.parametrize("chunk", [8192, 7], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize(("make", "scale"), SCALES.values(), ids=SCALES)
def test_scale(make, scale, form, chunk, monkeypatch):
    monkeypatch.setattr(_expression, "CHUNK", chunk)
    assert detect_scale(form(make(simulate().X).astype(np.float32))).name == scale


@pytest.mark.parametrize("base", [None, 2, 10], ids=["e", "2", "10"])
def test_the_base_of_the_logarithm_is_read(base):
    adata = simulate()
    expected = cp10k(adata.X)
    adata.X = np.log1p(expected) / np.log(base or np.e)
    adata.uns["log1p"] = {"base": base}
    expression, _ = find_expression(adata, None, "query")
    assert expression.scale.name == "log1p"
    np.testing.assert_allclose(linear(expression), expected, rtol=1e-4, atol=1e-3)


def test_scaled_values_fall_back_to_raw():
    adata = simulate()
    counts = adata.X.toarray()
    adata.X = np.log1p(cp10k(adata.X))
    adata.raw = adata
    adata = adata[:, :250].copy()
    adata.X = scaled(adata.X)
    expression, notes = find_expression(adata, None, "query")
    assert (expression.slot, expression.scale.name) == ("raw.X", "log1p")
    assert expression.matrix.shape == (120, 300)
    assert list(expression.var.index) == GENES
    assert notes[0].startswith("query: read log1p values from raw.X, because X holds scaled values")
    np.testing.assert_allclose(linear(expression), cp10k(sp.csr_matrix(counts)), rtol=1e-4)


@pytest.mark.parametrize("name", ["counts", "raw_counts", "UMIs"])
def test_scaled_values_fall_back_to_a_layer_of_counts(name):
    adata = simulate()
    adata.layers[name] = adata.X.copy()
    adata.X = scaled(np.log1p(cp10k(adata.X)))
    adata.layers["other"] = adata.X
    expression, notes = find_expression(adata, None, "ref")
    assert (expression.slot, expression.scale.name) == (f"layers['{name}']", "counts")
    assert f"ref: read count values from layers['{name}'], because X holds scaled" in notes[0]


def test_usable_values_in_x_come_first():
    adata = simulate()
    adata.raw = adata
    adata.layers["counts"] = 2 * adata.X
    assert find_expression(adata, None, "query")[0].slot == "X"


@pytest.mark.parametrize("layer", ["mine", "raw"])
def test_a_named_layer_is_taken_and_nothing_else(layer):
    adata = simulate()
    adata.layers["mine"] = np.log1p(cp10k(adata.X))
    adata.raw = adata
    expression, _ = find_expression(adata, layer, "query")
    assert expression.slot == ("raw.X" if layer == "raw" else "layers['mine']")
    adata.layers["mine"] = -np.ones(adata.shape)
    adata.raw = ad.AnnData(-np.ones(adata.shape), obs=adata.obs, var=adata.var)
    with pytest.raises(ValueError, match=r"query has no usable .*\['mine'\]|raw.X holds scaled"):
        find_expression(adata, layer, "query")


def test_a_missing_layer_names_those_that_are_there():
    adata = simulate()
    adata.layers["mine"] = adata.X
    with pytest.raises(
        KeyError, match=r"layer='raw': the query has no raw; found layers \['mine'\]"
    ):
        find_expression(adata, "raw", "query")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: scaled(np.log1p(cp10k(x))), "X holds scaled values"),
        (lambda x: scaled(np.log1p(cp10k(x)), centre=False), "X holds scaled values"),
        (lambda x: -x.toarray(), "X holds scaled values .negative"),
        (lambda x: np.full(x.shape, np.nan), "X holds missing or infinite values"),
        (lambda x: 0 * x.toarray(), "X holds only zeros"),
        (lambda x: None, "X is empty"),
    ],
    ids=["scaled", "scaled-not-centred", "negative", "nan", "zero", "none"],
)
@pytest.mark.parametrize("side", ["query", "ref"])
def test_what_cannot_be_used_is_refused_with_what_to_do(make, reason, side):
    adata, ref = simulate_sides()
    bad = adata if side == "query" else ref
    bad.X = make(bad.X)
    with pytest.raises(
        ValueError, match=rf"The {side} has no usable expression values: {reason}"
    ) as e:
        logistic(adata, ref)
    assert "Pass raw counts or log-normalised values in X, in adata.raw, or in a layer" in str(
        e.value
    )


def inputs(adata: ad.AnnData, ref: ad.AnnData) -> np.ndarray:
    """What a model sees of both sides."""
    return Features.fit(join(adata, ref, labels_key="cell_type"), None)[1].toarray()


@pytest.mark.parametrize("changed", ["query", "ref", "both"])
@pytest.mark.parametrize("form", [name for name in FORMS if name != "counts"])
def test_the_scale_of_the_same_cells_does_not_matter(form, changed):
    adata, ref = simulate_sides()
    expected, names = inputs(adata, ref), list(logistic(adata, ref).obs["sctool"])
    for side, cells in (("query", adata), ("ref", ref)):
        if changed in (side, "both"):
            cells.X = sp.csr_matrix(FORMS[form](cells.X).astype(np.float32))
    np.testing.assert_allclose(inputs(adata, ref), expected, atol=1e-4)
    assert list(logistic(adata, ref).obs["sctool"]) == names


@every_stage
@pytest.mark.parametrize("form", list(FORMS))
def test_the_users_values_stay_as_they_are(form, stage):
    sides = sides_in(form)
    before = [(side.X.data.copy(), side.X.indices.copy(), side.X.indptr.copy()) for side in sides]
    STAGES[stage](*sides)
    for side, parts in zip(sides, before, strict=True):
        for part, copy in zip((side.X.data, side.X.indices, side.X.indptr), parts, strict=True):
            np.testing.assert_array_equal(part, copy)


def test_the_scale_of_the_query_does_not_matter_to_a_trained_model():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    expected = logistic(adata, model).obsm["sctool_proba"]
    adata.layers["log"] = np.log1p(cp10k(adata.X))
    result = logistic(adata, model, layer="log")
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-4)
    assert "query: read log1p values from layers['log']" in audit(result)


def test_scaled_bundled_cells_are_read_from_raw():
    adata, ref = sctool.datasets.blood()
    result = logistic(adata, ref)
    for side in ("query", "ref"):
        assert f"{side}: read log1p values from raw.X, because X holds scaled values" in audit(
            result
        )
    right = result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)
    assert right.mean() > 0.8


# -- containers, files and views -----------------------------------------------------------------

CONTAINERS: dict[str, Callable[[sp.csr_matrix], object]] = {
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "csr-float64": lambda x: x.astype(np.float64),
    "csr-int64": lambda x: x.astype(np.int64),
    "csr-int64-indices": lambda x: sp.csr_matrix(
        (x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)), shape=x.shape
    ),
    "csr-unsorted": lambda x: x[:, ::-1].tocsc()[:, ::-1].tocsr()[:, np.arange(x.shape[1])],
    "dense-float32": lambda x: x.toarray(),
    "dense-float64": lambda x: x.toarray().astype(np.float64),
    "dense-int64": lambda x: x.toarray().astype(np.int64),
    "dense-uint16": lambda x: x.toarray().astype(np.uint16),
    "dense-column-major": lambda x: np.asfortranarray(x.toarray()),
}


@pytest.mark.parametrize("stage", ["join", "read_cells", "transform", "annotate"])
@pytest.mark.parametrize("container", list(CONTAINERS))
def test_the_container_of_the_values_is_irrelevant(stage, container):
    convert = CONTAINERS[container]
    sides = [ad.AnnData(convert(a.X), obs=a.obs, var=a.var) for a in simulate_sides()]
    assert_read_alike(stage, *sides)


def in_files(folder: Path, *sides: ad.AnnData) -> list[ad.AnnData]:
    """The same, their values left in files."""
    for i, side in enumerate(sides):
        side.write_h5ad(folder / f"{i}.h5ad")
    return [ad.read_h5ad(folder / f"{i}.h5ad", backed="r") for i in range(len(sides))]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], list[ad.AnnData]]:
    """Return a function that opens the two sides in files, "sparse" or "dense"."""
    folder = tmp_path_factory.mktemp("files")
    names = {form: [folder / f"{form}{i}.h5ad" for i in range(2)] for form in ("sparse", "dense")}
    for i, side in enumerate(simulate_sides()):
        side.write_h5ad(names["sparse"][i])
        side.X = side.X.toarray()
        side.write_h5ad(names["dense"][i])
    return lambda form: [ad.read_h5ad(name, backed="r") for name in names[form]]


@every_stage
@pytest.mark.parametrize("chunk", [8192, 7], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_files_need_not_be_in_memory(stage, form, chunk, files, monkeypatch):
    adata, ref = files(form)
    expected(stage)
    monkeypatch.setattr(_expression, "CHUNK", chunk)
    assert_read_alike(stage, adata, ref)
    assert adata.isbacked
    assert ref.isbacked
    adata.file.close()
    ref.file.close()


def test_a_copy_of_a_query_in_a_file_is_in_memory(files):
    adata, ref = files("sparse")
    result = sctool.tl.annotate(adata, ref, method="logistic", copy=True)
    assert not result.isbacked
    assert "sctool" not in adata.obs
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected("annotate"), atol=1e-5)
    adata.file.close()
    ref.file.close()


def test_a_view_of_a_file_is_annotated(files):
    for copy in (True, False):
        backed, _ = files("sparse")
        view = backed[10:40]
        result = sctool.tl.annotate(view, trained(), copy=copy)
        proba = (result if copy else view).obsm["sctool_proba"]
        np.testing.assert_allclose(proba, expected("annotate-with-model")[10:40], atol=1e-5)
        assert "sctool" not in backed.obs
        backed.file.close()


@every_stage
def test_a_view_is_read_as_its_copy_is(stage):
    adata, ref = (ad.concat([side, side], index_unique="-") for side in simulate_sides())
    assert_read_alike(stage, adata[:80], ref[:120])
    assert list(adata.obs) == ["truth"]


def test_a_view_becomes_an_object_of_its_own():
    adata, ref = simulate_sides()
    twice = ad.concat([adata, adata], index_unique="-")
    half = twice[: adata.n_obs]
    result = sctool.tl.annotate(half, ref, method="logistic", copy=True)
    assert half.is_view
    assert "sctool" in result.obs
    logistic(half, ref)
    assert not half.is_view
    np.testing.assert_allclose(half.obsm["sctool_proba"], expected("annotate"), atol=1e-5)
    assert list(twice.obs) == ["truth"]


def halved(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same values, each in two entries; counts in two counts."""
    whole = (x.data % 1 == 0).all()
    first = np.floor(x.data / 2) if whole else x.data / 2
    data = np.stack([first, x.data - first], axis=1).ravel().astype(x.dtype)
    return sp.csr_matrix((data, np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape)


@pytest.mark.parametrize("stage", ["join", "read_cells", "transform", "annotate"])
@pytest.mark.parametrize("where", ["csr", "csc", "file"])
@pytest.mark.parametrize("form", ["counts", "log1p"])
def test_entries_of_a_gene_in_several_parts_are_one_value(form, where, stage, tmp_path):
    adata, ref = sides_in(form)
    n = adata.X.nnz
    for side in (adata, ref):
        side.X = halved(side.X) if where != "csc" else halved(side.X.T.tocsr()).T
    matrix = adata.X
    assert matrix.nnz == 2 * n
    assert not matrix.has_canonical_format
    if where == "file":
        adata, ref = in_files(tmp_path, adata, ref)
    assert_read_alike(stage, adata, ref, form)
    assert matrix.nnz == 2 * n, "the user's matrix was changed"
    for side in (adata, ref):
        if side.isbacked:
            side.file.close()


# -- a scale that is decided on a sample ---------------------------------------------------------


@pytest.fixture
def small_sample(monkeypatch) -> None:
    """The scale is decided on cells 0-9, 36-45, 73-82 and 110-119 of 120; chunks have 25 cells."""
    monkeypatch.setattr(_expression, "SAMPLE", 40)
    monkeypatch.setattr(_expression, "RUNS", 4)
    monkeypatch.setattr(_expression, "CHUNK", 25)


#: A scale, a value that one cell outside of the sample has, and what is said of it.
CONTRADICTIONS = {
    "counts-then-fractions": ("counts", 0.5, "fractions"),
    "counts-then-negative": ("counts", -1, "negative values"),
    "counts-then-nan": ("counts", np.nan, "missing or infinite values"),
    "log1p-then-linear": ("log1p", 25.5, "values above 25, which cannot be logarithms"),
    "log1p-then-negative": ("log1p", -0.1, "negative values"),
    "log1p-then-infinite": ("log1p", np.inf, "missing or infinite values"),
    "linear-then-negative": ("cpm", -0.1, "negative values"),
    "linear-then-nan": ("cpm", np.nan, "missing or infinite values"),
}


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("where", ["reference", "query", "query-of-a-model", "clustered"])
@pytest.mark.parametrize(
    ("kind", "form", "backed"),
    [
        *((kind, "sparse", False) for kind in CONTRADICTIONS),
        *(
            (kind, form, True)
            for kind in ("counts-then-fractions", "log1p-then-linear", "counts-then-nan")
            for form in ("sparse", "dense")
        ),
        ("counts-then-fractions", "dense", False),
    ],
    ids=lambda value: {True: "file", False: "memory"}.get(value, value),
)
def test_a_chunk_that_contradicts_the_scale_is_an_error(kind, form, backed, where, tmp_path):
    scale, value, found = CONTRADICTIONS[kind]
    adata, ref = simulate_sides(n_query=120)
    bad = ref if where == "reference" else adata
    x = FORMS[scale](bad.X).astype(np.float32)
    x[60, 7] = value
    bad.X = sp.csr_matrix(x) if form == "sparse" else x
    if backed:
        adata, ref = in_files(tmp_path, adata, ref)
    side = {"reference": "ref", "clustered": "data"}.get(where, "query")
    named = {"cpm": "linear", "counts": "count"}.get(scale, scale)
    read = {
        "clustered": lambda: sctool.tl.cluster(adata, method="leiden"),
        "query-of-a-model": lambda: logistic(adata, trained()),
    }.get(where, lambda: logistic(adata, ref))
    with pytest.raises(
        ValueError,
        match=rf"The {side}'s X was detected as {named} values from a sample of its cells, but "
        rf"cells 50 to 75 have {found}\. Put all cells on the same scale, drop these cells, or ",
    ):
        read()
    assert list(adata.obs) == ["truth"]
    for side in (adata, ref):
        if side.isbacked:
            side.file.close()


class Counted:
    """A matrix that counts how often each row is asked for, and can do nothing else."""

    def __init__(self, matrix: object):
        self.matrix, self.shape = matrix, matrix.shape
        self.n = np.zeros(self.shape[0], dtype=int)

    def __getitem__(self, rows: slice) -> object:
        assert type(rows) is slice
        self.n[rows] += 1
        return self.matrix[rows]


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("given", ["trained-model", "reference"])
def test_a_file_is_read_once_beyond_the_sample(given, form, small_sample, tmp_path, monkeypatch):
    adata, ref = simulate_sides(n_query=120)
    if form == "dense":
        adata.X = adata.X.toarray()
    source = trained() if given == "trained-model" else ref
    wanted = logistic(adata.copy(), source).obsm["sctool_proba"]
    adata, _ = in_files(tmp_path, adata, ref)
    counted, usual = Counted(adata.X), ad.AnnData.X
    x = property(lambda self: counted if self is adata else usual.fget(self))
    monkeypatch.setattr(ad.AnnData, "X", x)
    logistic(adata, source)
    np.testing.assert_allclose(adata.obsm["sctool_proba"], wanted, atol=1e-5)
    assert counted.n.min() == 1
    assert counted.n.max() == 2
    assert counted.n.sum() == 120 + _expression.SAMPLE
    monkeypatch.undo()
    adata.file.close()


# -- size factors, selection, missing genes ------------------------------------------------------


def test_size_factors_are_of_the_shared_genes(few_genes):
    ref = of([[1, 3, 96], [2, 2, 0]], ["a", "b", "ref_only"])
    adata = of([[900, 4, 1], [0, 0, 5]], ["query_only", "b", "a"])
    ref.obs["cell_type"] = ["x", "y"]
    data = join(adata, ref, labels_key="cell_type")
    assert list(data.genes.index) == ["a", "b"]
    assert data.x.toarray().tolist() == [[1, 3], [2, 2], [1, 4], [5, 0]]
    features, x = Features.fit(data, None)
    shares = np.array([[0.25, 0.75], [0.5, 0.5], [0.2, 0.8], [1, 0]])
    np.testing.assert_allclose(x.toarray(), np.log(1 + 1e4 * shares), rtol=1e-6)
    mean = (np.log(2501) + np.log(5001)) / 2, (np.log(7501) + np.log(5001)) / 2
    np.testing.assert_allclose(features.mean, mean, rtol=1e-6)

    # a cell that the model is given later is brought to the same genes first
    seen, fill, _ = transformed(features, adata)
    assert fill is None
    np.testing.assert_allclose(seen, x[2:].toarray(), rtol=1e-6)


def test_size_factors_come_before_the_selection():
    adata, ref = simulate_sides()
    data = join(adata, ref, labels_key="cell_type")
    features, x = Features.fit(data, 60)
    assert len(features.selected) == 60
    assert list(features.genes.index) == GENES
    columns = data.genes.index.get_indexer(features.selected)
    expected = np.log1p(cp10k(data.x))[:, columns]
    np.testing.assert_allclose(x.toarray(), expected, rtol=1e-5, atol=1e-6)
    labelled = data.labels.codes >= 0
    assert labelled.tolist() == [True] * 120 + [False] * 80
    np.testing.assert_allclose(features.mean, expected[labelled].mean(axis=0), rtol=1e-5)


def test_variable_genes_are_those_that_vary():
    _, ref = simulate_sides(n_ref=400)
    features, _ = Features.fit(read_cells(ref, None, "ref"), 32)
    markers = set(GENES[:32])
    assert len(markers & set(features.selected)) >= 16  # 3 by chance


def test_domains_of_few_cells_have_no_say_in_the_selection():
    _, ref = simulate_sides(n_ref=200)
    few = simulate(40, seed=9)
    x = few.X.toarray()
    x[::2, 200:232] = 200  # what varies most among them
    few.X = sp.csr_matrix(x)
    data = read_cells(ad.concat([ref, few]), None, "data")
    data.domain = np.repeat([0, 1], [200, 40])
    alone = set(Features.fit(read_cells(ref, None, "ref"), 32)[0].selected)
    assert set(Features.fit(data, 32)[0].selected) == alone
    data.domain = np.zeros(240, dtype=int)  # of the same domain they have
    assert set(Features.fit(data, 32)[0].selected) != alone


def test_all_genes_means_those_that_a_cell_expresses():
    _, ref = simulate_sides()
    x = ref.X.toarray()
    x[:, [3, 7]] = 0
    ref.X = sp.csr_matrix(x)
    features, _ = Features.fit(read_cells(ref, None, "ref"), None)
    assert set(GENES) - set(features.selected) == {GENES[3], GENES[7]}


def test_missing_genes_take_the_mean_of_the_reference():
    genes = pd.DataFrame(index=pd.Index(["a", "b", "c", "unselected"], dtype=object))
    features = Features(
        genes, pd.Index(["a", "b", "c"], dtype=object), np.array([0.5, 1.5, 2.5], dtype=np.float32)
    )
    adata = of([[6, 1, 3, 1], [0, 2, 0, 2]], ["unselected", "other", "c", "a"])
    x, fill, notes = transformed(features, adata)
    np.testing.assert_array_equal(fill, np.array([0, 1.5, 0], dtype=np.float32))
    # of ten molecules on the model's genes the first cell has one of a and three of c
    np.testing.assert_allclose(x[0], [np.log(1001), 0, np.log(3001)], rtol=1e-6)
    np.testing.assert_allclose(x[1], [np.log(10001), 0, 0], rtol=1e-6)
    assert "genes: 2 of the model's 3 genes (67%) are in the query" in notes[-1]


# -- empty cells ---------------------------------------------------------------------------------


def emptied(adata: ad.AnnData, cells: list[int]) -> ad.AnnData:
    """Some cells express no gene that the other side has, only one of their own."""
    x = sp.lil_matrix(adata.X)
    x[cells] = 0
    own = sp.csr_matrix((np.ones(adata.n_obs), (np.arange(adata.n_obs), [0] * adata.n_obs)))
    both = ad.AnnData(sp.hstack([x, own], format="csr"), obs=adata.obs.copy())
    both.var_names = [*adata.var_names, "nobody else has"]
    return both


def test_empty_cells_change_nothing_for_the_others_and_have_no_name(caplog):
    adata, ref = simulate_sides()
    gone = [0, 5, 79]
    kept = np.setdiff1d(np.arange(adata.n_obs), gone)
    result = logistic(emptied(adata, gone), ref)
    clean = logistic(adata[kept].copy(), ref)
    assert "query: 3 cells express none of the genes used and were left out" in audit(result)
    assert "3 cells express none" in caplog.text
    assert result.obs["sctool"].isna().tolist() == np.isin(np.arange(adata.n_obs), gone).tolist()
    for column in ("sctool_score", "sctool_novel_score"):
        assert (result.obs[column].iloc[gone] == 0).all()
    assert (result.obsm["sctool_proba"][gone] == 0).all()
    assert list(result.obs["sctool"].iloc[kept]) == list(clean.obs["sctool"])
    np.testing.assert_array_equal(result.obsm["sctool_proba"][kept], clean.obsm["sctool_proba"])


def test_a_trained_model_does_not_name_empty_cells():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    result = logistic(emptied(adata, [0, 5]), model)
    assert "cells: 2 express none of the model's genes and were not annotated" in audit(result)
    assert np.flatnonzero(result.obs["sctool"].isna()).tolist() == [0, 5]
    assert (result.obs["sctool_score"].iloc[[0, 5]] == 0).all()


def test_empty_cells_of_the_reference_teach_nothing():
    adata, ref = simulate_sides()
    gone = [1, 2, 3]
    kept = np.setdiff1d(np.arange(ref.n_obs), gone)
    result = logistic(adata.copy(), emptied(ref, gone))
    clean = logistic(adata, ref[kept].copy())
    assert "ref: 3 cells express none of the genes used and were left out" in audit(result)
    np.testing.assert_allclose(result.obsm["sctool_proba"], clean.obsm["sctool_proba"], atol=1e-6)


def test_a_query_of_empty_cells_alone_is_refused():
    adata, ref = simulate_sides()
    with pytest.raises(ValueError, match="None of the 80 cells express any"):
        logistic(emptied(adata, list(range(80))), ref)


def test_a_model_set_up_with_empty_cells_refuses_them():
    joint = emptied(simulate_joint(), [3, 4])[:, :-1].copy()
    LogisticClassifier.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(ValueError, match="2 cells of adata express no gene"):
        LogisticClassifier(joint)


# -- genes ---------------------------------------------------------------------------------------


@every_stage
def test_the_order_of_the_querys_genes_is_irrelevant(stage):
    adata, ref = simulate_sides()
    order = np.random.default_rng(0).permutation(adata.n_vars)
    if stage == "read_cells":  # of one object the order is its own
        data = read_cells(adata[:, order].copy(), None, "data")
        assert list(data.genes.index) == [GENES[i] for i in order]
        np.testing.assert_array_equal(data.x.toarray(), adata.X.toarray()[:, order])
    else:
        assert_read_alike(stage, adata[:, order].copy(), ref)


@pytest.mark.parametrize("n_top_genes", [None, 100], ids=["all-genes", "top-genes"])
def test_the_order_of_the_references_genes_is_irrelevant(n_top_genes):
    adata, ref = simulate_sides()
    order = np.random.default_rng(1).permutation(ref.n_vars)
    data = join(adata, ref[:, order].copy(), labels_key="cell_type")
    assert list(data.genes.index) == [GENES[i] for i in order]
    wanted, x = Features.fit(expected("join"), n_top_genes)
    features, y = Features.fit(data, n_top_genes)
    assert list(features.selected) == list(wanted.selected) == sorted(wanted.selected)
    np.testing.assert_allclose(y.toarray(), x.toarray(), rtol=1e-6)
    np.testing.assert_allclose(features.mean, wanted.mean, rtol=1e-5)


def test_genes_of_one_side_only_are_left_out():
    adata, ref = simulate_sides()
    expected = logistic(adata[:, 20:280].copy(), ref[:, 20:280].copy()).obsm["sctool_proba"]
    result = logistic(adata[:, :280].copy(), ref[:, 20:].copy())
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-5)


def split_gene(adata: ad.AnnData, gene: int) -> ad.AnnData:
    """The molecules of a gene spread over two genes of the same name, the second at the end."""
    x = adata.X.toarray()
    half = np.floor(x[:, gene] / 2)
    x = np.column_stack([x, x[:, gene] - half])
    x[:, gene] = half
    var = pd.DataFrame(index=pd.Index([*adata.var_names, adata.var_names[gene]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata advises against names that are not unique
        return ad.AnnData(sp.csr_matrix(x), obs=adata.obs, var=var)


@pytest.mark.parametrize("side", ["query", "ref"])
def test_duplicated_genes_are_added_up(side):
    adata, ref = simulate_sides()
    expected = logistic(adata, ref).obsm["sctool_proba"]
    if side == "query":
        adata = split_gene(adata, 2)
    else:
        ref = split_gene(ref, 2)
    result = logistic(adata, ref)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-3)
    assert f"{side}: summed 1 genes with duplicate names" in audit(result)


def test_duplicated_genes_are_added_up_for_a_trained_model():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    expected = logistic(adata, model).obsm["sctool_proba"]
    result = logistic(split_gene(adata, 2), model)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-6)
    assert "query: summed 1 genes with duplicate names" in audit(result)


ENSEMBL = [f"ENSG{i:011d}" for i in range(len(GENES))]
VERSIONED = [f"{name}.{i % 9 + 1}" for i, name in enumerate(ENSEMBL)]


def renamed(adata: ad.AnnData, names: list[str], **columns: object) -> ad.AnnData:
    """A copy with other gene names, and columns of ``var``."""
    adata = adata.copy()
    adata.var_names = names
    for name, values in columns.items():
        adata.var[name] = values
    return adata


def named(names: list[str], **columns: object) -> dict[str, object]:
    """Names of a side's genes, and columns of its ``var``."""
    return {"names": names, **columns}


NAMING = {
    "version-in-query": (named(names=VERSIONED), named(names=ENSEMBL)),
    "version-in-ref": (named(names=ENSEMBL), named(names=VERSIONED)),
    "two-versions": (named(names=VERSIONED), named(names=[f"{n}.77" for n in ENSEMBL])),
    "symbols-beside-ids-in-query": (named(names=VERSIONED, symbol=GENES), named(names=GENES)),
    "symbols-beside-ids-in-ref": (named(names=GENES), named(names=ENSEMBL, feature_name=GENES)),
    "ids-beside-symbols-in-query": (named(names=GENES, gene_ids=VERSIONED), named(names=ENSEMBL)),
    "ids-beside-symbols-in-ref": (named(names=ENSEMBL), named(names=GENES, gene_ids=VERSIONED)),
    "categorical-column": (named(names=ENSEMBL, symbol=pd.Categorical(GENES)), named(names=GENES)),
    "string-column": (
        named(names=ENSEMBL, symbol=pd.array(GENES, dtype="string")),
        named(names=GENES),
    ),
    "spaces": (named(names=[f" {g} " for g in GENES]), named(names=GENES)),
}


@pytest.mark.parametrize(("query_names", "ref_names"), NAMING.values(), ids=NAMING)
@pytest.mark.parametrize("trained", [False, True], ids=["reference", "trained-model"])
def test_genes_meet_under_whatever_name_both_sides_have(query_names, ref_names, trained):
    adata, ref = simulate_sides()
    expected = logistic(adata, ref).obsm["sctool_proba"]
    adata, ref = renamed(adata, **query_names), renamed(ref, **ref_names)
    if trained:
        # the model's own query has the reference's names; the other comes later
        ref = train_logistic(renamed(simulate(8, seed=5), **ref_names), ref)
    result = logistic(adata, ref)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=0.02)
    if len(query_names) + len(ref_names) > 2:
        assert "genes: matched the reference's " in audit(result)


def test_genes_without_a_name_meet_no_other():
    adata, ref = simulate_sides()
    symbols = [*GENES[:-2], None, None]
    adata = renamed(adata, ENSEMBL, symbol=pd.Series(symbols, index=ENSEMBL, dtype="string"))
    ref = renamed(ref, VERSIONED[::-1], symbol=pd.Series(symbols, index=VERSIONED[::-1]))
    ref.var_names = [f"x{i}" for i in range(300)]
    names, others, notes = match_genes(ref.var, adata.var)
    assert notes == ["genes: matched the reference's var['symbol'] with the query's var['symbol']"]
    assert list(names) == list(others) == [*GENES[:-2], "", ""]
    assert join(adata, ref, labels_key="cell_type").x.shape[1] == 298


def test_a_column_is_not_used_where_the_names_match_as_well():
    adata, ref = simulate_sides()
    adata.var["alias"] = list(reversed(GENES))
    names, others, notes = match_genes(ref.var, adata.var)
    assert list(names) == GENES
    assert list(others) == GENES
    assert notes == []


@pytest.mark.parametrize("trained", [False, True], ids=["reference", "trained-model"])
def test_case_is_ignored_only_when_asked(trained):
    adata, ref = simulate_sides()
    expected = logistic(adata, ref).obsm["sctool_proba"]
    mouse = renamed(adata, [g.capitalize() for g in GENES])
    with pytest.raises(ValueError, match=r"share 0 genes.*they share 300: pass ignore_case=True"):
        logistic(mouse, ref)
    if trained:
        ref = train_logistic(adata, ref, ignore_case=True)
        result = logistic(mouse, ref)
    else:
        result = logistic(mouse, ref, ignore_case=True)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-5)
    assert "genes: case was ignored when matching names" in audit(result)


def test_too_few_shared_genes_is_an_error_with_examples_of_both():
    adata, ref = simulate_sides()
    adata = renamed(adata, GENES[:199] + [f"other{i}" for i in range(101)])
    with pytest.raises(ValueError, match=r"share 199 genes by name; at least 200") as error:
        logistic(adata, ref)
    for text in (GENES[0], "Reference: [", "query: [", "Use gene symbols in both"):
        assert text in str(error.value)


@pytest.mark.parametrize("side", ["query", "ref"])
def test_ids_against_symbols_is_an_error_that_says_so(side):
    adata, ref = simulate_sides()
    if side == "query":
        adata = renamed(adata, VERSIONED)
    else:
        ref = renamed(ref, VERSIONED)
    with pytest.raises(ValueError, match=r"One has Ensembl ids and the other gene symbols: add"):
        logistic(adata, ref)


def test_few_shared_genes_are_warned_of_once(caplog):
    adata, ref = simulate_sides()
    result = logistic(adata, ref)
    assert "genes: 300 are shared (reference: 300, query: 300)" in audit(result)
    records = [r for r in caplog.records if r.name == "sctool" and "300" in r.message]
    assert [r.levelno for r in records] == [logging.WARNING]  # one, that of the alarm
    assert records[0].message.startswith("genes: only 300 are shared")


def test_enough_shared_genes_are_not_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(_genes, "FEW_SHARED", 300)
    adata, ref = simulate_sides()
    logistic(adata, ref)
    assert [r for r in caplog.records if r.name == "sctool"] == []


@pytest.mark.parametrize(
    ("share", "outcome"),
    [(0.49, "error"), (0.5, "warning"), (0.79, "warning"), (0.8, "note"), (1.0, "nothing")],
)
def test_genes_that_a_trained_model_misses(share, outcome, caplog):
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    caplog.clear()
    n = round(share * 300)
    part = adata[:, :n].copy()
    if outcome == "error":
        with pytest.raises(ValueError, match=rf"Only {n} of the model's 300 genes") as error:
            logistic(part, model)
        assert "at least 50% are needed. Model: ['GENE000'" in str(error.value)
        return
    result = logistic(part, model)
    assert ("missing genes were set to the reference's mean" in audit(result)) == (
        outcome != "nothing"
    )
    warned = [r.message for r in caplog.records if r.name == "sctool"]
    assert [m.startswith(f"Only {n} of") for m in warned] == [True] * (outcome == "warning")


def test_the_fill_reaches_the_prediction():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    part = adata[:, 100:].copy()
    x = np.zeros((part.n_obs, 300))
    x[:, 100:] = np.log1p(cp10k(part.X))
    x[:, :100] = model.features_.mean[:100]
    weight, bias = (p.detach().numpy() for p in model.module.head.parameters())
    logits = x @ weight.T + bias
    np.testing.assert_allclose(logistic(part, model).obsm["X_sctool"], logits, rtol=0, atol=1e-3)


# -- training data -------------------------------------------------------------------------------


def test_join_keeps_cells_and_genes_in_order():
    adata, ref = simulate_sides()
    data = join(adata[:, ::-1].copy(), ref, labels_key="cell_type")
    assert list(data.genes.index) == GENES
    assert data.x.format == "csr"
    assert data.x.dtype == np.float32
    expected = np.vstack([ref.X.toarray(), adata.X.toarray()])
    np.testing.assert_array_equal(data.x.toarray(), expected)
    assert list(data.labels[: ref.n_obs]) == list(ref.obs["cell_type"])
    assert (data.labels.codes[ref.n_obs :] == -1).all()
    assert list(data.labels.categories) == TYPES
    # codes in the order of the names: "query", "ref"
    assert data.domain.tolist() == [1] * ref.n_obs + [0] * adata.n_obs
    assert data.is_counts
    assert data.audit == [
        "ref: read count values from X",
        "query: read count values from X",
        "genes: 300 are shared (reference: 300, query: 300)",
    ]


def test_cells_of_one_object_are_unlabelled_and_of_one_domain():
    adata = simulate()
    adata.var["gene_ids"] = ENSEMBL
    data = read_cells(adata, None, "data")
    np.testing.assert_array_equal(data.x.toarray(), adata.X.toarray())
    assert data.x.dtype == np.float32
    assert list(data.genes.index) == GENES
    assert list(data.genes["gene_ids"]) == ENSEMBL
    assert (data.labels.codes == -1).all()
    assert list(data.labels.categories) == []
    assert set(data.domain) == {0}
    assert data.is_counts
    assert data.audit == ["data: read count values from X"]


def test_only_counts_on_both_sides_are_counts():
    adata, ref = simulate_sides()
    adata.X = sp.csr_matrix(cp10k(adata.X).astype(np.float32))
    assert not join(adata, ref, labels_key="cell_type").is_counts
    assert not read_cells(adata, None, "data").is_counts


def test_cells_of_the_same_name_on_both_sides_are_two_cells():
    adata, ref = simulate_sides()
    expected = join(adata, ref, labels_key="cell_type")
    adata.obs_names = ref.obs_names[: adata.n_obs]
    assert_same_data(join(adata, ref, labels_key="cell_type"), expected)


def test_batches_are_domains_of_their_side():
    adata, ref = simulate_sides()
    for side in (adata, ref):
        side.obs["donor"] = pd.Categorical(["1", "2"] * (side.n_obs // 2))
    data = join(adata, ref, labels_key="cell_type", batch_key="donor")
    # codes in the order of the names: "query:1", "query:2", "ref:1", "ref:2"
    assert data.domain.tolist() == [2, 3] * (ref.n_obs // 2) + [0, 1] * (adata.n_obs // 2)


@pytest.mark.parametrize("kind", ["object", "category", "float"])
def test_cells_without_a_batch_are_one_more_batch(kind):
    adata, ref = simulate_sides()
    for side in (adata, ref):
        donor = pd.Series([1.0, np.nan] * (side.n_obs // 2), index=side.obs_names)
        side.obs["donor"] = donor if kind == "float" else donor.astype(object).astype(kind)
    data = join(adata, ref, labels_key="cell_type", batch_key="donor")
    assert data.domain.tolist() == [2, 3] * (ref.n_obs // 2) + [0, 1] * (adata.n_obs // 2)


def test_colours_are_by_name_of_the_type():
    _, ref = simulate_sides()
    assert palette(ref, "cell_type") == {}
    ref.uns["cell_type_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    colors = dict(zip(TYPES, ref.uns["cell_type_colors"], strict=True))
    assert palette(ref, "cell_type") == colors
    adata = simulate(8, seed=5)
    assert join(adata, ref, labels_key="cell_type").colors == colors
    ref.obs["cell_type"] = ref.obs["cell_type"].astype(object)  # whose colours they are, is unknown
    assert palette(ref, "cell_type") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_key": "celltype"}, "labels_key='celltype' is not in the ref's obs.*cell_type"),
        ({"batch_key": "donor"}, "batch_key='donor' is not in the ref's obs.*cell_type"),
        ({"layer": "counts"}, "layer='counts' is not in the ref's layers"),  # nor in the query's
    ],
    ids=["labels_key", "batch_key", "layer"],
)
def test_a_missing_column_or_layer_is_named(changes, message):
    adata, ref = simulate_sides()
    with pytest.raises(KeyError, match=message):
        logistic(adata, ref, **changes)


def test_a_batch_key_must_be_in_the_query_too():
    adata, ref = simulate_sides()
    ref.obs["donor"] = "1"
    with pytest.raises(KeyError, match=r"batch_key='donor' is not in the query's obs.*truth"):
        logistic(adata, ref, batch_key="donor")


def test_one_type_is_not_enough():
    adata, ref = simulate_sides()
    ref.obs["cell_type"] = "B"
    with pytest.raises(ValueError, match=r"has 1 cell type.*2 are needed"):
        logistic(adata, ref)


def test_no_cells_is_an_error():
    adata, ref = simulate_sides()
    with pytest.raises(ValueError, match=r"query has no cells"):
        logistic(adata[:0].copy(), ref)
    with pytest.raises(ValueError, match=r"0 cell type"):
        logistic(adata, ref[:0].copy())
    with pytest.raises(ValueError, match=r"query has no cells"):
        logistic(adata[:0].copy(), train_logistic(adata, ref))


# -- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["join", "annotate"])
@pytest.mark.parametrize("given", ["true", "permuted", "wrong", "missing"])
def test_the_querys_labels_are_irrelevant(given, stage):
    adata, ref = simulate_sides()
    truth = adata.obs["truth"]
    adata.obs["cell_type"] = {
        "true": truth,
        "permuted": np.random.default_rng(0).permutation(truth.astype(str)),
        "wrong": "no such type",
        "missing": np.nan,
    }[given]
    adata.obs["sctool"] = adata.obs["cell_type"]
    assert_read_alike(stage, adata, ref)


@pytest.mark.parametrize(
    "dtype", ["int", "bool", "object", "str", "string", "categorical", "int-categorical"]
)
def test_the_dtype_of_the_labels_is_irrelevant(dtype):
    adata, ref = simulate_sides()
    codes = ref.obs["cell_type"].cat.codes.to_numpy().astype(int)
    names = np.array(TYPES, dtype=object)[codes]
    ref.obs["cell_type"] = {
        "int": lambda: codes,
        "bool": lambda: codes > 1,
        "object": lambda: pd.Series(names, index=ref.obs_names, dtype=object),
        "str": lambda: pd.Series(names, index=ref.obs_names).astype(str),
        "string": lambda: pd.Series(names, index=ref.obs_names, dtype="string"),
        "categorical": lambda: pd.Categorical(names, categories=TYPES),
        "int-categorical": lambda: pd.Categorical(codes),
    }[dtype]()
    classes = {"int": ["0", "1", "2", "3"], "bool": ["False", "True"]}.get(
        dtype.split("-")[0], TYPES
    )
    labels = join(adata, ref, labels_key="cell_type").labels
    assert list(labels.categories) == classes
    assert labels.codes[: ref.n_obs].tolist() == list(codes > 1 if dtype == "bool" else codes)
    result = logistic(adata, ref)
    assert list(result.obs["sctool"].cat.categories) == classes
    if dtype != "bool":
        np.testing.assert_allclose(result.obsm["sctool_proba"], expected("annotate"), atol=1e-5)


@pytest.mark.parametrize("dtype", ["object", "string", "categorical", "float"])
def test_cells_without_a_label_are_unlabelled(dtype):
    adata, ref = simulate_sides()
    missing = np.arange(ref.n_obs) < 20
    if dtype == "float":
        ref.obs["cell_type"] = ref.obs["cell_type"].cat.codes.astype(float).where(~missing)
    else:
        dtype = "category" if dtype == "categorical" else dtype
        ref.obs["cell_type"] = ref.obs["cell_type"].astype(object).where(~missing).astype(dtype)
    names = ["0.0", "1.0", "2.0", "3.0"] if dtype == "float" else TYPES
    labels = join(adata, ref, labels_key="cell_type").labels
    assert list(labels.categories) == names
    assert np.flatnonzero(labels.codes < 0).tolist() == [*range(20), *range(120, 200)]
    result = logistic(adata, ref)
    assert list(result.uns["sctool"]["classes"]) == names
    assert "ref: 20 cells without a label were used as unlabelled" in audit(result)


@pytest.mark.parametrize("stage", ["join", "annotate"])
def test_unused_categories_are_no_types(stage):
    adata, ref = simulate_sides()
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.add_categories(["unused", "a/b"])
    assert_read_alike(stage, adata, ref)


def test_a_type_may_be_called_unknown():
    adata, ref = simulate_sides()
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.rename_categories({"Mono": "Unknown"})
    result = logistic(adata, ref)
    assert list(result.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "DC", "Unknown"]
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected("annotate"), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "codes", "categories"),
    [
        (["b", "a", None, "b"], [1, 0, -1, 1], ["a", "b"]),
        ([2, 10, 2, 1], [2, 1, 2, 0], ["1", "10", "2"]),
        ([True, False, True, True], [1, 0, 1, 1], ["False", "True"]),
        ([0.5, np.nan, 1.5, 0.5], [0, -1, 1, 0], ["0.5", "1.5"]),
        (pd.array(["b", pd.NA, "a/c", "b"], dtype="string"), [1, -1, 0, 1], ["a/c", "b"]),
        (pd.array([3, pd.NA, 1, 3], dtype="Int64"), [1, -1, 0, 1], ["1", "3"]),
        (pd.array([True, pd.NA, False, True], dtype="boolean"), [1, -1, 0, 1], ["False", "True"]),
        (pd.Categorical(["b", None, "a", "b"], ["z", "b", "a"]), [0, -1, 1, 0], ["b", "a"]),
        (pd.Categorical([2, 1, None, 2], [2, 1]), [0, 1, -1, 0], ["2", "1"]),
        ([None] * 4, [-1] * 4, []),
    ],
    ids=[
        "object",
        "int",
        "bool",
        "float",
        "string",
        "Int64",
        "boolean",
        "categorical",
        "int-categorical",
        "none",
    ],
)
def test_labels_become_text(values, codes, categories):
    labels = clean_labels(pd.Series(values, index=list("wxyz")))
    assert list(labels.codes) == codes
    assert list(labels.categories) == categories


def test_labels_that_only_their_type_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"equal once converted to strings"):
        clean_labels(pd.Series(pd.Categorical([1, "1"], [1, "1"])))

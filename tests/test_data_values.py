"""Values and their scales: what is found in an AnnData, and what is refused."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from stages import (
    FORMS,
    STAGES,
    audit,
    cp10k,
    every_stage,
    in_files,
    linear,
    logistic,
    scaled,
    sides_in,
    train_logistic,
    trained,
)
from synthetic import GENES, simulate, simulate_joint, simulate_sides

import sctool
from sctool._data import Features, _expression, find_expression, join
from sctool._data._expression import detect_scale
from sctool.model import LogisticClassifier

# -- scales --------------------------------------------------------------------------------------

SCALES = {
    "counts": (lambda x: x.toarray(), "counts"),
    "counts-of-few-molecules": (
        lambda x: np.random.default_rng(0).binomial(x.toarray().astype(int), 0.03),
        "counts",
    ),
    "log1p": (lambda x: np.log1p(cp10k(x)), "log1p"),
    "log1p-of-some-genes": (lambda x: np.log1p(cp10k(x))[:, :100], "log1p"),
    "log1p-of-one-cell": (lambda x: np.log1p(cp10k(x))[:1], "log1p"),
    "log2p1-cpm": (lambda x: np.log2(1 + 100 * cp10k(x)), "log1p"),
    "cpm": (lambda x: 100 * cp10k(x), "linear"),
    "cp10k-of-few-genes": (lambda x: cp10k(x) / 1000, "linear"),
    "shares-of-the-total": (lambda x: cp10k(x) / 10000, "linear"),
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
    settings = {"C": 1.0, "min_type_weight": 0.0}  # those that the bound was set with
    result = logistic(adata, ref, model_kwargs=settings)
    for side in ("query", "ref"):
        assert f"{side}: read log1p values from raw.X, because X holds scaled values" in audit(
            result
        )
    right = result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)
    assert right.mean() > 0.8


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
    x = property(lambda self: counted if self is adata else usual.fget(self), usual.fset)
    monkeypatch.setattr(ad.AnnData, "X", x)
    logistic(adata, source)
    np.testing.assert_allclose(adata.obsm["sctool_proba"], wanted, atol=1e-5)
    assert counted.n.min() == 1
    assert counted.n.max() == 2
    assert counted.n.sum() == 120 + _expression.SAMPLE
    monkeypatch.undo()
    adata.file.close()


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

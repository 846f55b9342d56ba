"""The scale of expression values: what it is found to be, and what is refused."""

from functools import cache

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import rankdata
from synthetic import GENES, simulate, simulate_sides

import sctool
from sctool._data import _expression, find_expression
from sctool._data._expression import detect_scale

N = 300


def cp10k(x: np.ndarray, total: float | None = 1e4) -> np.ndarray:
    """Normalised to a total, or to the median of the totals."""
    totals = x.sum(axis=1, keepdims=True)
    return x * (np.median(totals) if total is None else total) / totals


def log(x: np.ndarray, base: float = np.e) -> np.ndarray:
    return np.log1p(x) / np.log(base)


def scaled(x: np.ndarray, most: float = np.inf) -> np.ndarray:
    """As ``scanpy.pp.scale(zero_center=False, max_value=most)`` does."""
    deviation = x.std(axis=0, ddof=1)
    return np.minimum(x / np.where(deviation > 0, deviation, 1), most)


def corrected(x: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Counts less what is expected of ambient RNA."""
    ambient = x.sum(axis=0) / x.sum()
    return np.maximum(x - share * x.sum(axis=1, keepdims=True) * ambient, 0)


def lengths(x: np.ndarray) -> np.ndarray:
    """Divided by the length of each gene, as in TPM and RPKM."""
    return x / np.random.default_rng(1).lognormal(0.0, 0.7, x.shape[1])


def lognormal(sigma: float = 0.6) -> np.ndarray:
    """A factor of each cell."""
    return np.random.default_rng(0).lognormal(0.0, sigma, (N, 1))


@cache
def cells() -> np.ndarray:
    return simulate(N).X.toarray().astype(np.float64)


def counts(most: float = np.inf) -> np.ndarray:
    """Of 300 cells; genes with more than ``most`` are left out."""
    return cells()[:, cells().max(axis=0) <= most]


def of(x: np.ndarray, **kwargs) -> ad.AnnData:
    adata = ad.AnnData(sp.csr_matrix(np.asarray(x, dtype=np.float32)), **kwargs)
    adata.obs_names = [f"c{i}" for i in range(len(x))]
    adata.var_names = GENES[: x.shape[1]]
    return adata


def linear(adata: ad.AnnData, layer: str | None = None) -> tuple[np.ndarray, str, list[str]]:
    """The values on the linear scale, where they are from, and the audit."""
    expression, notes = find_expression(adata, layer, "query")
    n = expression.matrix.shape[1]
    x = sp.vstack(list(expression.linear(np.arange(n), n))).toarray()
    return x, expression.slot, notes


def assert_same_shares(x: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for a factor of each cell, which no method sees."""
    np.testing.assert_allclose(cp10k(x), cp10k(expected), rtol=2e-3, atol=1e-2)


# -- scaled, without centring --------------------------------------------------------------------


def shallow() -> np.ndarray:
    """Counts of which each gene is in few cells, which a limit then reaches."""
    x = np.random.default_rng(0).binomial(counts().astype(int), 0.03).astype(np.float64)
    x[:, 0] += x.sum(axis=1) == 0
    return x


SCALED = {
    "limit-10": lambda: scaled(log(cp10k(shallow())), 10),
    "limit-5": lambda: scaled(log(cp10k(shallow())), 5),
    "no-limit": lambda: scaled(log(cp10k(shallow()))),
    "counts-limit-3": lambda: scaled(shallow(), 3),
    "deep-limit-3": lambda: scaled(log(cp10k(counts())), 3),
}


@pytest.mark.parametrize("kind", list(SCALED))
def test_scaled_values_are_not_read(kind):
    adata = of(SCALED[kind]())
    with pytest.raises(ValueError, match=r"query has no usable .* X holds scaled values.*layer="):
        find_expression(adata, None, "query")
    adata.raw = of(log(cp10k(counts())))
    x, slot, notes = linear(adata)
    assert slot == "raw.X"
    assert "because X holds scaled values" in notes[0]
    assert_same_shares(x, counts())


def test_a_part_of_the_cells_of_scaled_values_is_scaled():
    assert detect_scale(of(SCALED["limit-10"]()[::2]).X).name == "scaled"


def test_scaled_values_of_rare_genes_exceed_logarithms():
    x = log(cp10k(counts()))
    x = np.tile(x, (4, 1))
    x[1:, -1] = 0  # in 1 of 1200 cells: sqrt(1200) = 35 standard deviations
    x[0, -1] = 5
    x = scaled(x)
    assert x.max() > _expression.LOG_MAX
    assert detect_scale(sp.csr_matrix(x)).name == "scaled"


# -- fractions that are no logarithms ------------------------------------------------------------

FRACTIONS = {
    "ambient": lambda: corrected(counts(25)),
    "ambient-few-genes": lambda: corrected(counts(25))[:, :100],
    "ambient-much": lambda: corrected(counts(25), 0.3),
    "contamination-of-each-value": lambda: (
        counts(25) * (1 - np.random.default_rng(0).beta(1, 8, counts(25).shape))
    ),
    "estimates": lambda: (
        counts(25) + (np.random.default_rng(0).random(counts(25).shape) < 0.1) * 0.37
    ),
    "factor-of-each-cell": lambda: (
        counts(25)[:, :100] * np.random.default_rng(0).uniform(0.3, 0.9, (N, 1))
    ),
}


@pytest.mark.parametrize("kind", list(FRACTIONS))
def test_fractions_of_counts_are_linear(kind):
    adata = of(FRACTIONS[kind]())
    assert 4 < adata.X.max() <= 25
    x, _, notes = linear(adata)
    assert notes == ["query: read linear values from X"]
    np.testing.assert_array_equal(x, adata.X.toarray())


# -- bases and repetitions -----------------------------------------------------------------------


@pytest.mark.parametrize("slot", ["X", "layer", "raw"])
@pytest.mark.parametrize("noted", [None, 2, 10], ids=["no-note", "note-2", "note-10"])
@pytest.mark.parametrize("base", [np.e, 2, 10], ids=["e", "2", "10"])
def test_the_base_is_that_of_the_values(base, noted, slot):
    x = log(cp10k(counts()), base)
    adata = of(x, uns={} if noted is None else {"log1p": {"base": noted}})
    if slot == "layer":
        adata.layers["mine"] = adata.X
    if slot == "raw":
        adata.raw = adata.copy()
        adata.X = -adata.X
    x, _, notes = linear(adata, "mine" if slot == "layer" else None)
    np.testing.assert_allclose(x, cp10k(counts()), rtol=1e-4, atol=1e-3)
    name = "e" if base == np.e else str(base)
    said = [note for note in notes if f"is in logarithms to base {name}" in note]
    assert len(said) == (base != np.e or noted is not None)
    assert all((", not " in note) == (noted not in (None, base)) for note in said)


BASES = {
    "some-genes": lambda b: (log(cp10k(counts()), b)[:, :150], cp10k(counts())[:, :150]),
    "raw-counts": lambda b: (log(counts(), b), counts()),
    "size-factors": lambda b: (log(f := lognormal() * counts(), b), f),
    "tpm-all-genes": lambda b: (log(t := cp10k(lengths(counts()), 1e6), b), t),
    "ambient-all-genes": lambda b: (log(t := cp10k(corrected(counts())), b), t),
    "median": lambda b: (log(t := cp10k(counts(), None), b), t),
    "cpm-some-genes": lambda b: (log(t := cp10k(counts(), 1e6)[:, :150], b), t),
}


@pytest.mark.parametrize("base", [np.e, 2, 10], ids=["e", "2", "10"])
@pytest.mark.parametrize("kind", list(BASES))
def test_the_base_needs_no_note(kind, base):
    values, expected = BASES[kind](base)
    x, _, notes = linear(of(values))
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-3)
    assert len(notes) == 1 + (base != np.e)
    assert not any("do not show the base" in note for note in notes)


def test_a_base_of_the_users_own_is_read_from_the_note():
    x, _, notes = linear(of(log(cp10k(counts()), 3), uns={"log1p": {"base": 3}}))
    np.testing.assert_allclose(x, cp10k(counts()), rtol=1e-4, atol=1e-3)
    assert notes[1] == "query: X is in logarithms to base 3"


@pytest.mark.parametrize(
    "note", [True, "yes", 2, [], None, {"base": None}, {"base": "two"}, {"base": 0}, {}], ids=str
)
def test_a_note_without_a_base_is_none(note):
    x, _, notes = linear(of(log(cp10k(counts())), uns={"log1p": note}))
    np.testing.assert_allclose(x, cp10k(counts()), rtol=1e-4, atol=1e-3)
    assert notes == ["query: read log1p values from X"]


TWICE = {
    "cp10k": lambda: cp10k(counts()),
    "counts": counts,
    "some-genes": lambda: cp10k(counts())[:, :150],
    "tpm": lambda: cp10k(lengths(counts()), 1e6),
}


@pytest.mark.parametrize("kind", list(TWICE))
def test_log1p_that_was_taken_twice_is_undone_twice(kind):
    x, _, notes = linear(of(log(log(TWICE[kind]()))))
    np.testing.assert_allclose(x, TWICE[kind](), rtol=2e-3, atol=1e-3)
    assert notes == [
        "query: read log1p values from X",
        "query: X was log-transformed twice; both were undone",
    ]


# -- several scales in one matrix ----------------------------------------------------------------

HALVES = {
    "counts-and-log1p": (counts, lambda: log(cp10k(counts()))),
    "few-counts-and-log1p": (lambda: np.minimum(counts(), 8), lambda: log(cp10k(counts()))),
    "cpm-and-log1p": (lambda: cp10k(counts(), 1e6), lambda: log(cp10k(counts()))),
    "log1p-and-log2p1": (lambda: log(cp10k(counts())), lambda: log(cp10k(counts()), 2)),
    "counts-and-log1p-of-tpm": (counts, lambda: log(cp10k(lengths(counts()), 1e6))),
    "log1p-and-ambient": (lambda: log(cp10k(counts())), lambda: corrected(counts())),
}


@pytest.mark.parametrize("kind", list(HALVES))
def test_cells_on_different_scales_are_refused(kind):
    first, second = HALVES[kind]
    adata = of(np.vstack([first()[: N // 2], second()[N // 2 :]]))
    with pytest.raises(ValueError, match=r"X holds cells on different scales.*layer="):
        find_expression(adata, None, "query")
    adata.layers["counts"] = counts()
    assert linear(adata)[1] == "layers['counts']"


def test_a_few_cells_of_counts_outside_of_the_sample_are_refused(monkeypatch):
    monkeypatch.setattr(_expression, "SAMPLE", 40)
    monkeypatch.setattr(_expression, "RUNS", 4)
    x = log(cp10k(counts()))
    x[60:63] = np.minimum(counts()[60:63], 8)
    with pytest.raises(ValueError, match=r"cells 0 to .* have only integers"):
        linear(of(x))


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize(
    ("few", "most"),
    [
        (lambda: log(cp10k(counts())), counts),
        (lambda: log(cp10k(counts()), 2), lambda: log(cp10k(counts()))),
        (lambda: cp10k(counts()), lambda: log(cp10k(counts()))),
        (lambda: log(cp10k(counts())), lambda: cp10k(counts())),
    ],
    ids=["log1p-in-counts", "log2p1-in-log1p", "cp10k-in-log1p", "log1p-in-cp10k"],
)
def test_few_cells_on_another_scale_are_refused(few, most, share):
    adata = of(np.vstack([few()[: int(share * N)], most()[int(share * N) :]]))
    with pytest.raises(ValueError, match=r"X holds cells on different scales.*layer="):
        find_expression(adata, None, "query")


def test_reads_that_were_logged_in_some_cells_are_refused():
    reads = np.round(cells() * 97 * np.random.default_rng(0).lognormal(0, 0.5, cells().shape))
    assert detect_scale(of(reads).X).name == "counts"
    reads[:12] = log(cp10k(reads))[:12]
    assert detect_scale(of(reads).X).name == "mixed"


@pytest.mark.parametrize("n", [3, 30, 140])
def test_cells_of_corrected_counts_among_counts_are_linear(n):
    x = counts()
    x = np.vstack([corrected(x)[:n], x[n:]])
    assert detect_scale(of(x).X).name == "linear"


# -- what was done to counts cannot be undone ------------------------------------------------------


def ranks(x: np.ndarray) -> np.ndarray:
    """Within each cell, as shares."""
    return rankdata(x, axis=1) / x.shape[1]


ALTERED = {
    "normalised-after-log": lambda: cp10k(log(cp10k(counts()))),
    "normalised-after-log-then-log": lambda: log(cp10k(log(cp10k(counts())))),
    "ranks": lambda: ranks(counts()),
    "square-roots": lambda: np.sqrt(counts()),
    "square-roots-of-cp10k": lambda: np.sqrt(cp10k(counts())),
    "log1p-thrice": lambda: log(log(log(cp10k(counts())))),
    "log2-twice": lambda: log(log(cp10k(counts()), 2), 2),
    "half-of-log1p": lambda: log(cp10k(counts())) / 2,
    "log1p-by-its-maximum": lambda: (
        log(cp10k(counts())) / log(cp10k(counts())).max(axis=1, keepdims=True)
    ),
    "log1p-with-factors": lambda: log(cp10k(counts())) * lognormal(),
    "log1p-with-offset": lambda: log(cp10k(counts())) + 0.5,
    "another-base": lambda: log(cp10k(counts()), 4),
}
COARSE = {
    "ones": lambda: np.minimum(counts(), 1),
    "rounded-log1p": lambda: np.round(log(cp10k(counts()))),
}


@pytest.mark.parametrize("n_cells", [N, 20])
@pytest.mark.parametrize("kind", [*ALTERED, *COARSE])
def test_what_counts_were_made_into_is_not_read(kind, n_cells):
    coarse = kind in COARSE
    adata = of((COARSE if coarse else ALTERED)[kind]()[:n_cells])
    reason = "whole numbers that vary less" if coarse else "values that were counts, but"
    with pytest.raises(ValueError, match=rf"query has no usable .* X holds {reason}.*layer="):
        find_expression(adata, None, "query")
    adata.raw = of(log(cp10k(counts()[:n_cells])))
    x, slot, notes = linear(adata)
    assert slot == "raw.X"
    assert f"because X holds {reason}" in notes[0]
    assert_same_shares(x, counts()[:n_cells])


SHALLOW = {
    "thinned": lambda rng: rng.binomial(counts().astype(int), 0.05),
    "one-depth": lambda rng: rng.multinomial(200, cells().sum(axis=0) / cells().sum(), N),
    "one-depth-one-gene-leads": lambda rng: rng.multinomial(150, [0.1, *[0.9 / 299] * 299], N),
    "twenty-cells": lambda rng: rng.poisson(1, (20, 300)),
}


@pytest.mark.parametrize("kind", list(SHALLOW))
def test_shallow_counts_are_counts(kind):
    assert detect_scale(of(SHALLOW[kind](np.random.default_rng(0))).X).name == "counts"


@pytest.mark.parametrize("decimals", [2, 3, 4])
def test_logarithms_may_be_rounded_to_decimals(decimals):
    x = np.round(log(cp10k(counts())), decimals)
    assert detect_scale(of(x).X)[:3] == ("log1p", np.e, 1)


@pytest.mark.parametrize("noted", [False, True], ids=["no-note", "note"])
@pytest.mark.parametrize("kind", ["ambient", "tpm"])
def test_a_base_that_was_assumed_is_told(kind, noted):
    x = {"ambient": corrected, "tpm": lengths}[kind](counts())
    uns = {"log1p": {"base": None}} if noted else {}
    told = [n for n in linear(of(groups(log(cp10k(x))), uns=uns))[2] if "do not show the base" in n]
    assert len(told) == 1 - noted


# -- nothing fits --------------------------------------------------------------------------------

UNCLEAR = {
    "totals-vary-too-much": lambda: log(lengths(counts()) * lognormal(1.0)),
    "totals-are-too-large": lambda: log(1e5 * lengths(counts()) * lognormal(1.5)),
    "cubes-of-logarithms": lambda: log(cp10k(lengths(counts()) * lognormal())) ** 3 / 40,
}


@pytest.mark.parametrize("kind", list(UNCLEAR))
def test_what_fits_no_scale_is_refused_unless_others_fit(kind):
    adata = of(UNCLEAR[kind]())
    with pytest.raises(
        ValueError,
        match=r"X holds values on no known scale .*\['base'\]\)\. Pass raw counts or .*layer=",
    ):
        find_expression(adata, None, "query")
    adata.layers["counts"] = counts()
    x, slot, notes = linear(adata)
    assert slot == "layers['counts']"
    assert "because X holds values on no known scale" in notes[0]
    np.testing.assert_array_equal(x, counts())


# -- types of numbers ----------------------------------------------------------------------------

DTYPES = {
    "float16": (np.float16, 2e-2),
    "object": (object, 1e-6),
    "big-endian": (">f4", 1e-6),
    "big-endian-float64": (">f8", 1e-6),
    "long-double": (np.longdouble, 1e-6),
}


@pytest.mark.parametrize("form", ["log1p", "counts"])
@pytest.mark.parametrize("where", ["X", "layer", "sparse"])
@pytest.mark.parametrize("kind", list(DTYPES))
def test_the_type_of_the_numbers_is_irrelevant(kind, where, form):
    dtype, tolerance = DTYPES[kind]
    wanted = counts() if form == "counts" else cp10k(counts())
    dense = (counts() if form == "counts" else log(wanted)).astype(np.float32)
    adata = of(dense)
    values = dense.astype(dtype)
    if where == "sparse":
        values = sp.csr_matrix(dense)
        values.data = values.data.astype(dtype)
        adata.layers["mine"] = sp.csr_matrix(dense)
        adata.layers._data["mine"] = values  # as a file may hold it
    elif where == "layer":
        adata.layers["mine"] = values
    else:
        adata = ad.AnnData(values, obs=adata.obs, var=adata.var)
    x, _, notes = linear(adata, None if where == "X" else "mine")
    np.testing.assert_allclose(x, wanted, rtol=max(tolerance, 1e-4), atol=1e-3)
    assert f"read {form.removesuffix('s')} values" in notes[0]


@pytest.mark.parametrize("dtype", [str, complex, "text"])
def test_what_are_no_real_numbers_is_refused_by_its_name(dtype):
    x = counts().astype(str).astype(object) if dtype == "text" else counts().astype(dtype)
    adata = of(counts())
    adata.layers["mine"] = x
    with pytest.raises(ValueError, match=r"query .* layers\['mine'\] holds values that are not re"):
        find_expression(adata, "mine", "query")


def test_text_outside_of_the_sample_is_refused(monkeypatch):
    monkeypatch.setattr(_expression, "SAMPLE", 40)
    monkeypatch.setattr(_expression, "RUNS", 4)
    adata = of(counts())
    adata.layers["mine"] = counts().astype(object)
    adata.layers["mine"][60, 3] = "much"
    with pytest.raises(
        ValueError, match=r"layers\['mine'\] was detected as count values .* not real number"
    ):
        linear(adata, "mine")


# -- what is usual stays as it was ---------------------------------------------------------------


def groups(x: np.ndarray) -> np.ndarray:
    """Genes that vary: those that mark the types."""
    return x[:, :60]


USUAL = {
    "log1p": lambda: cp10k(counts()),
    "log1p-variable-genes": lambda: groups(cp10k(counts())),
    "log1p-median": lambda: cp10k(counts(), None),
    "log1p-cpm": lambda: cp10k(counts(), 1e6),
    "log1p-tpm": lambda: cp10k(lengths(counts()), 1e6),
    "log1p-tpm-variable-genes": lambda: groups(cp10k(lengths(counts()), 1e6)),
    "log1p-rpkm": lambda: lengths(cp10k(counts(), 1e6)),
    "log1p-size-factors": lambda: lognormal() * cp10k(counts(), None),
    "log1p-size-factors-variable-genes": lambda: groups(lognormal() * counts() / 50),
    "log1p-counts": counts,
    "log1p-reads": lambda: 1000 * counts(),
    "log1p-ambient": lambda: cp10k(corrected(counts())),
    "log1p-ambient-variable-genes": lambda: groups(cp10k(corrected(counts()))),
    "log1p-one-cell": lambda: cp10k(counts())[:1],
    "log1p-few-cells": lambda: cp10k(lengths(counts()))[:5],
}


#: Neither multiples of counts nor the totals of all genes are there to show the base.
ASSUMED = {
    *("log1p-tpm-variable-genes", "log1p-rpkm", "log1p-ambient-variable-genes"),
}


@pytest.mark.parametrize("kind", list(USUAL))
def test_usual_logarithms_are_read_as_ever(kind):
    expected = USUAL[kind]()
    x, _, notes = linear(of(np.log1p(expected)))
    assert notes[0] == "query: read log1p values from X"
    assert all("do not show the base" in note for note in notes[1:])
    assert len(notes) == 1 + (kind in ASSUMED)
    np.testing.assert_array_equal(x, np.expm1(np.log1p(expected).astype(np.float32)))


@pytest.mark.parametrize("form", ["counts", "log1p", "cpm"])
def test_predictions_on_usual_scales_agree(form):
    adata, ref = simulate_sides()
    x = adata.X.toarray().astype(np.float64)
    wanted = adata.copy()
    sctool.tl.annotate(wanted, ref, method="logistic")
    adata.X = {"counts": x, "log1p": log(cp10k(x)), "cpm": cp10k(x, 1e6)}[form].astype(np.float32)
    sctool.tl.annotate(adata, ref, method="logistic")
    np.testing.assert_allclose(
        adata.obsm["sctool_proba"], wanted.obsm["sctool_proba"], rtol=0, atol=1e-4
    )


def test_real_cells(read_real):
    cells = read_real("pbmc3k_seurat")
    x = cells.X[:500].toarray().astype(np.float64)
    few = x[:, x.max(axis=0) <= 25]
    logs = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))
    for values, name, base, times in (
        (x, "counts", np.e, 1),
        (logs, "log1p", np.e, 1),
        (logs[:, ::13], "log1p", np.e, 1),
        (logs / np.log(2), "log1p", 2, 1),
        (np.log1p(logs), "log1p", np.e, 2),
        (scaled(logs, 10), "scaled", np.e, 1),
        (corrected(few), "linear", np.e, 1),
        (np.vstack([x[:250], logs[250:]]), "mixed", np.e, 1),
    ):
        assert detect_scale(sp.csr_matrix(values.astype(np.float32)))[:3] == (name, base, times)

"""On real cells: floors that a broken model misses. Skipped where the data are not there."""

import anndata as ad
import numpy as np
import pytest

import sctool
from sctool import metrics
from sctool_benchmark import load_suite, split

QUIET = {"enable_progress_bar": False}


@pytest.fixture(scope="module")
def pair(read_real):
    """Return a function that reads a query, its types under "truth", and its reference."""

    def read(name: str) -> tuple[ad.AnnData, ad.AnnData]:
        cells = read_real(name)
        is_ref = (cells.obs["split"] == "reference").to_numpy()
        adata, ref = cells[~is_ref].copy(), cells[is_ref].copy()
        adata.obs = adata.obs.rename(columns={"cell_type": "truth"})
        return adata, ref

    return read


def at_most(ref: ad.AnnData, n: int) -> ad.AnnData:
    """Return at most n cells of each type: faster, and as right."""
    rng = np.random.default_rng(0)
    codes = ref.obs["cell_type"].astype("category").cat.codes.to_numpy()
    keep = [rng.permutation(np.flatnonzero(codes == c))[:n] for c in np.unique(codes)]
    return ref[np.sort(np.concatenate(keep))].copy()


def scores(adata: ad.AnnData) -> tuple[float, float]:
    """Accuracy and macro-F1 on known types."""
    truth, named = adata.obs["truth"].astype(str), adata.obs["sctool"].astype(str)
    seen = list(adata.uns["sctool"]["classes"])
    return metrics.seen_accuracy(truth, named, seen), metrics.macro_f1(truth, named, seen)


def test_pancreas_across_technologies(pair):
    adata, ref = pair("pancreas_baron_to_segerstolpe")
    ref = at_most(ref, 150)
    sctool.tl.annotate(adata, ref, method="logistic")
    floor, _ = scores(adata)
    sctool.tl.annotate(
        adata, ref, method="scnym", model_kwargs={"max_epochs": 10}, train_kwargs=QUIET
    )
    accuracy, _ = scores(adata)
    assert accuracy >= 0.99
    assert accuracy >= floor - 0.01


@pytest.mark.slow
def test_blood_across_stimulation(pair):
    adata, ref = pair("pbmc_kang_ctrl_to_stim_authors")
    ref = at_most(ref, 300)
    sctool.tl.annotate(
        adata, ref, method="scnym", model_kwargs={"max_epochs": 20}, train_kwargs=QUIET
    )
    accuracy, f1 = scores(adata)
    assert f1 >= 0.85
    assert accuracy >= 0.85


@pytest.fixture(scope="module")
def blood(read_real):
    """Return half of pbmc3k, annotated by a model of the other half, and the model."""
    cells = read_real("pbmc3k_seurat")
    in_ref = np.random.default_rng(0).random(cells.n_obs) < 0.5
    adata, ref = cells[~in_ref].copy(), cells[in_ref].copy()
    model = sctool.tl.annotate(
        adata,
        ref,
        method="scnym",
        model_kwargs={"max_epochs": 10},
        return_model=True,
        train_kwargs=QUIET,
    )
    return adata, model


def test_half_of_a_data_set_teaches_the_other(blood):
    adata, _ = blood
    share = (adata.obs["sctool"].astype(str) == adata.obs["cell_type"].astype(str)).mean()
    assert share > 0.85


@pytest.mark.parametrize("method", ["guided", "expected_gradients"])
def test_known_markers_rank_among_the_first_20(method, blood):
    adata, model = blood
    types = ["B", "NK", "Platelet"]
    sctool.tl.explain(adata, model, types=types, method=method, n_genes=20, n_cells=50)
    genes = dict(zip(types, adata.uns["sctool_explain"]["genes"], strict=True))
    assert "CD79A" in genes["B"]
    assert "GNLY" in genes["NK"]
    assert "PPBP" in genes["Platelet"]


def novel_found(adata: ad.AnnData, ref: ad.AnnData) -> dict[str, float]:
    """Scores of the gate on cells some types of which the reference lacks."""
    sctool.tl.annotate(adata, ref, method="gate")
    seen = sorted(ref.obs["cell_type"].astype(str).unique())
    truth, named = adata.obs["truth"].astype(str), adata.obs["sctool"].astype(str)
    return metrics.summary(
        truth.to_numpy(),
        named.to_numpy(),
        seen,
        novel=adata.obs["sctool_novel"].to_numpy(),
        novel_score=adata.obs["sctool_novel_score"].to_numpy(),
    )


def test_novel_cell_lines_across_technologies(pair):
    result = novel_found(*pair("cellbench_3lines_to_5lines_plate"))
    assert result["overall_accuracy"] > 0.9
    assert result["novel_auroc"] > 0.95
    assert result["false_novel"] < 0.05


@pytest.mark.slow
def test_nothing_novel_is_seen_in_the_pancreas_across_technologies(pair):
    result = novel_found(*pair("pancreas_baron_to_segerstolpe"))
    assert result["seen_accuracy"] > 0.95
    assert result["false_novel"] < 0.05


@pytest.mark.slow
def test_hidden_types_of_the_pancreas_are_found_across_technologies(pair):
    adata, ref = pair("pancreas_baron_to_segerstolpe")
    result = novel_found(adata, ref[~ref.obs["cell_type"].isin(["ductal", "delta"])].copy())
    assert result["overall_accuracy"] > 0.8
    assert result["novel_auroc"] > 0.95


@pytest.mark.slow
def test_most_of_a_type_with_five_labelled_cells_is_found(read_real):
    # The type's other cells are in the query, with a tenth of every other type.
    task = next(t for t in load_suite("rare").tasks if t.name == "pbmc3k_rare_5")
    parts = split(read_real("pbmc3k_seurat"), task, 0)
    truth, is_rare = parts.truth.to_numpy(), (parts.truth == parts.rare).to_numpy()
    kinds = {"contrastive": {}, "logistic": {"C": "auto", "min_type_weight": np.inf}}
    recall, others = {}, {}
    for method, settings in kinds.items():
        adata = sctool.tl.annotate(
            parts.query, parts.reference, method=method, model_kwargs=settings, copy=True
        )
        right = adata.obs["sctool"].astype(str).to_numpy() == truth
        recall[method], others[method] = right[is_rare].mean(), right[~is_rare].mean()
    assert recall["contrastive"] > recall["logistic"] + 0.3
    assert recall["contrastive"] > 0.8
    assert others["contrastive"] >= others["logistic"] - 0.005

"""Checks of a reference: what is found is what was planted, and nothing is changed."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from synthetic import TYPES, simulate

import sctool
from sctool import _label_errors

KEY = "sctool_reference"


def flip(ref: ad.AnnData, share: float = 0.05) -> np.ndarray:
    """Give a share of the cells another label, at random; return which."""
    rng = np.random.default_rng(0)
    labels = ref.obs["cell_type"].astype("category")
    flipped, n = rng.random(ref.n_obs) < share, len(labels.cat.categories)
    codes = (labels.cat.codes + flipped * rng.integers(1, n, ref.n_obs)) % n
    ref.obs["cell_type"] = pd.Categorical.from_codes(codes, labels.cat.categories)
    return flipped


def checked(ref: ad.AnnData, **settings) -> ad.AnnData:
    """A copy with the results."""
    return sctool.tl.check_reference(ref, "cell_type", copy=True, **settings)


def test_planted_wrong_labels_are_found():
    ref = simulate(400)
    truth = ref.obs["cell_type"].astype(str)
    flipped = flip(ref)
    given = ref.obs["cell_type"].copy()
    result = checked(ref)
    obs, labels = result.obs, result.obs["cell_type"].astype(str)
    assert obs[f"{KEY}_given"].dtype == np.float32
    assert roc_auc_score(flipped, -obs[f"{KEY}_given"]) > 0.97
    suspect = obs[f"{KEY}_suspect"]
    assert suspect.dtype == bool
    assert suspect[flipped].mean() > 0.5  # the rule prefers few false alarms
    assert suspect[~flipped].mean() < 0.02
    assert (obs[f"{KEY}_suggested"].astype(str) == truth)[flipped & suspect].mean() > 0.9
    assert obs[f"{KEY}_suggested"][suspect].notna().all()
    assert not (obs[f"{KEY}_suggested"].astype(str) == labels).any()
    pd.testing.assert_series_equal(given, obs["cell_type"])
    types = result.uns[KEY]["types"]
    assert types.index.tolist() == TYPES
    assert types["n_cells"].tolist() == labels.value_counts()[TYPES].tolist()
    assert types["recall"].between(0.85, 1).all()
    np.testing.assert_allclose(types["suspect"], suspect.groupby(labels).mean()[TYPES])
    assert not types["too_small"].any()
    assert len(result.uns[KEY]["pairs"]) == 0


def test_wrong_labels_of_real_cells_are_found():
    _, ref = sctool.datasets.blood()
    flipped = flip(ref)
    result = checked(ref)
    assert roc_auc_score(flipped, -result.obs[f"{KEY}_given"]) > 0.9


@pytest.mark.slow
def test_wrong_labels_of_pbmc3k_are_found(read_real):
    ref = read_real("pbmc3k_seurat")
    flipped = flip(ref)
    assert roc_auc_score(flipped, -checked(ref).obs[f"{KEY}_given"]) > 0.95


def test_random_labels_are_not_recognised():
    ref = simulate(200)
    ref.obs["cell_type"] = np.random.default_rng(0).permutation(ref.obs["cell_type"])
    assert checked(ref).uns[KEY]["types"]["recall"].mean() < 0.4


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_two_names_of_the_same_cells_are_a_pair(share):
    ref = simulate(400)
    labels = ref.obs["cell_type"].astype(str)
    own = np.random.default_rng(0).random(400) < share
    ref.obs["cell_type"] = labels.where((labels != "Mono") | ~own, "Mono/2")
    pairs = checked(ref).uns[KEY]["pairs"]
    assert pairs.loc["0", ["first", "second"]].tolist() == ["Mono", "Mono/2"]
    assert len(pairs) == 1
    assert pairs.loc["0", "overlap"] > 0.7
    types = checked(ref).uns[KEY]["types"]
    assert types.loc["Mono/2", "confused_with"] == "Mono"
    assert types.loc["Mono/2", "confused"] == pytest.approx(pairs.loc["0", "second_as_first"])


def test_what_cannot_be_judged_is_left_out_and_said():
    ref = simulate(120)
    labels = ref.obs["cell_type"].astype(object)
    dc = np.flatnonzero(labels == "DC")
    labels.iloc[dc[1:]] = np.nan
    ref.obs["cell_type"] = labels
    x = ref.X.toarray()
    x[0] = 0
    ref.X = x
    result = checked(ref)
    unjudged = labels.isna().to_numpy().copy()
    unjudged[[0, dc[0]]] = True
    assert (result.obs[f"{KEY}_given"].isna() == unjudged).all()
    assert result.obs[f"{KEY}_suggested"][unjudged].isna().all()
    assert not result.obs[f"{KEY}_suspect"][unjudged].any()
    types = result.uns[KEY]["types"]
    assert types.loc["DC", ["n_cells", "too_small"]].tolist() == [1, True]
    assert types.loc["DC", ["recall", "confused", "suspect"]].isna().all()
    notes = " ".join(result.uns[KEY]["audit"])
    assert "29 cells without a label were left out" in notes
    assert "1 cells express no gene and were left out" in notes
    assert "['DC'] have a single cell, which cannot be judged" in notes


def test_results_survive_a_file_and_a_second_call(tmp_path):
    ref = simulate(80)
    assert sctool.tl.check_reference(ref, "cell_type") is None
    sctool.tl.check_reference(ref, "cell_type", random_state=1)
    ref.write_h5ad(tmp_path / "ref.h5ad")
    read = ad.read_h5ad(tmp_path / "ref.h5ad")
    pd.testing.assert_frame_equal(
        read.uns[KEY]["types"], ref.uns[KEY]["types"], check_index_type=False, check_dtype=False
    )
    assert list(read.uns[KEY]["pairs"]) == list(ref.uns[KEY]["pairs"])
    assert read.obs[f"{KEY}_suggested"].dtype == "category"


def test_a_copy_and_the_same_seed_give_the_same():
    ref = simulate(80)
    before = ref.copy()
    first, second = checked(ref), checked(ref)
    pd.testing.assert_frame_equal(first.obs, second.obs)
    assert list(ref.obs) == list(before.obs)
    assert not set(ref.uns) & {KEY}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 80, r"has 1 cell type\(s\), the largest with 80"),
        ([np.nan] * 80, r"has 0 cell type\(s\), the largest with 0"),
        ([f"t{i}" for i in range(80)], r"has 80 cell type\(s\), the largest with 1 cell"),
    ],
    ids=["one-type", "no-type", "single-cells"],
)
def test_a_reference_that_cannot_be_judged_is_refused(labels, message):
    ref = simulate(80)
    ref.obs["cell_type"] = labels
    with pytest.raises(ValueError, match=message):
        checked(ref)


def test_what_is_missing_is_named():
    ref = simulate(20)
    with pytest.raises(KeyError, match="labels_key='type' is not in the ref's obs"):
        sctool.tl.check_reference(ref, "type")
    with pytest.raises(TypeError, match="ref must be an AnnData, not str"):
        sctool.tl.check_reference("ref.h5ad", "cell_type")
    ref.obs["mine_suspect"] = 1
    with pytest.raises(ValueError, match=r"adata.obs\['mine_suspect'\] exists"):
        checked(ref, key_added="mine")


def test_a_suspect_is_as_typical_of_another_type_as_its_own_cells_are():
    # type 0 is easy (0.9 on average), type 1 is hard (0.6)
    proba = np.array([[0.95, 0.05], [0.85, 0.15], [0.35, 0.65], [0.45, 0.55], [0.3, 0.7]])
    y = np.array([0, 0, 1, 1, 0])
    given, best, suspect = _label_errors.find_suspects(proba, y)
    assert best.tolist() == [0, 0, 1, 1, 1]
    assert suspect.tolist() == [False, False, False, False, True]
    np.testing.assert_allclose(given, [0.95, 0.85, 0.65, 0.55, 0.3])
    # 0.55 is below what is usual for type 1
    _, _, suspect = _label_errors.find_suspects(np.vstack([proba[:4], [0.45, 0.55]]), y)
    assert not suspect.any()

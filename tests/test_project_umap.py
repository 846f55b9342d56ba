"""The query on the reference's map."""

import anndata as ad
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from synthetic import simulate_sides

import sctool
from sctool._umap import ReferenceMap
from sctool.tl import _project_umap

SLOT = "X_sctool_umap"


@pytest.fixture(scope="module")
def trained():
    """A query and a reference, and a model of theirs without a map."""
    adata, ref = simulate_sides()
    return adata, ref, sctool.tl.annotate(adata, ref, method="logistic", return_model=True)


@pytest.fixture
def mapped(trained, monkeypatch):
    """The same, with a made-up map of the query's own cells: nothing is compiled."""
    adata, ref, model = trained
    latent = model.predict_cells(adata).latent
    positions = np.arange(2 * adata.n_obs, dtype=np.float32).reshape(-1, 2)
    monkeypatch.setattr(model, "map_", ReferenceMap(latent, positions))
    return adata.copy(), ref, model


def test_cells_of_the_map_have_their_places(mapped):
    adata, _, model = mapped
    before = adata.obsm["X_umap"] = np.ones((adata.n_obs, 2))
    sctool.tl.project_umap(adata, model)
    np.testing.assert_array_equal(adata.obsm[SLOT], model.map_.positions)
    assert adata.obsm["X_umap"] is before or (adata.obsm["X_umap"] == 1).all()
    assert "map: 80 cells of the reference" in list(adata.uns["sctool_umap"]["audit"])
    sctool.tl.project_umap(adata, model)  # its own result may be replaced
    joined = ad.concat([adata[:40], adata[40:]])  # which loses uns
    sctool.tl.project_umap(joined, model)
    np.testing.assert_array_equal(joined.obsm[SLOT], model.map_.positions)


def test_a_saved_model_keeps_the_map(mapped, tmp_path):
    adata, _, model = mapped
    model.save(tmp_path / "model")
    sctool.tl.project_umap(adata, tmp_path / "model")
    np.testing.assert_array_equal(adata.obsm[SLOT], model.map_.positions)
    loaded = sctool.model.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.map_.latent, model.map_.latent)


def test_a_copy_leaves_the_cells_as_they_are(mapped):
    adata, _, model = mapped
    copied = sctool.tl.project_umap(adata, model, copy=True)
    assert SLOT in copied.obsm
    assert SLOT not in adata.obsm
    assert "sctool_umap" not in adata.uns


def test_what_is_not_ours_is_not_replaced(mapped):
    adata, _, model = mapped
    adata.obsm["X_mine"] = np.zeros((adata.n_obs, 2))
    with pytest.raises(ValueError, match="was not written by sctool"):
        sctool.tl.project_umap(adata, model, key_added="mine")
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    with pytest.raises(ValueError, match="was not written by sctool"):
        sctool.tl.project_umap(adata, model, key_added="umap")


def test_wrong_arguments(trained):
    adata, ref, model = trained
    with pytest.raises(TypeError, match="adata must be an AnnData"):
        sctool.tl.project_umap(None, model)
    with pytest.raises(ValueError, match="pass model="):
        sctool.tl.project_umap(adata, ref)
    with pytest.raises(ValueError, match="pass one of them"):
        sctool.tl.project_umap(adata, model, model=model)
    with pytest.raises(TypeError, match="ref must be an AnnData, a model"):
        sctool.tl.project_umap(adata, 3)
    with pytest.raises(TypeError, match="model must be a model"):
        sctool.tl.project_umap(adata, ref, model=3)
    with pytest.raises(ValueError, match="has no map of its reference"):
        sctool.tl.project_umap(adata, model)
    with pytest.raises(ValueError, match="9 cells of ref express"):
        sctool.tl.project_umap(adata, ref[:9], model=model)
    with pytest.raises(ValueError, match="the model's 300 genes"):
        sctool.tl.project_umap(adata[:, :100], ref, model=model)  # as annotate refuses it
    assert SLOT not in adata.obsm


def test_of_many_cells_rare_types_are_kept(trained, monkeypatch):
    _, ref, model = trained
    monkeypatch.setattr(_project_umap, "N_CELLS", 40)
    monkeypatch.setattr(_project_umap, "N_RARE", 8)
    monkeypatch.setattr(ReferenceMap, "fit", lambda latent, seed: latent)
    most = ad.concat([ref[ref.obs["cell_type"] == "B"]] * 3 + [ref[:32]], index_unique="-")
    latent = _project_umap._fit(most, model, None, 0)
    assert len(latent) == 40
    kept = np.array(model.classes_)[latent.argmax(axis=1)]  # the logits
    found = dict(zip(*np.unique(kept, return_counts=True), strict=True))
    others = model.predict(most)
    for name in model.classes_[1:]:
        assert found[name] == min((others == name).sum(), 8)


# Compiling UMAP takes 20 s and more in each process.
@pytest.mark.slow
def test_types_are_near_their_own_on_the_map(trained, tmp_path):
    adata, ref, model = trained
    adata, before = adata.copy(), ref.copy()
    sctool.tl.project_umap(adata, ref, model=model)
    np.testing.assert_array_equal(ref.X.toarray(), before.X.toarray())
    assert list(ref.obsm) == list(ref.uns) == []
    assert list(ref.obs) == list(before.obs)
    sctool.tl.project_umap(ref, model)
    nearest = KNeighborsClassifier(10).fit(ref.obsm[SLOT], ref.obs["cell_type"].astype(str))
    truth = adata.obs["truth"].astype(str)
    assert nearest.score(adata.obsm[SLOT], truth) > 0.9  # 0.25 for cells anywhere on the map
    mixed = np.random.default_rng(0).permutation(adata.obsm[SLOT])
    assert nearest.score(mixed, truth) < 0.5

    # the same again; from a file; another seed
    model.save(tmp_path / "model")
    for given in ((ref,), (tmp_path / "model",)):
        with_model = {"model": model} if given[0] is ref else {}
        again = sctool.tl.project_umap(adata, *given, **with_model, copy=True)
        np.testing.assert_array_equal(again.obsm[SLOT], adata.obsm[SLOT])
    other = sctool.tl.project_umap(adata, model, random_state=1, copy=True)
    assert (other.obsm[SLOT] != adata.obsm[SLOT]).any()

    # few cells, one of them empty
    few = adata[:20].copy()
    few.X = few.X.multiply((np.arange(20) != 3)[:, None]).tocsr()
    sctool.tl.project_umap(few, model)
    assert few.obsm[SLOT].shape == (20, 2)
    assert np.isnan(few.obsm[SLOT][3]).all()
    assert np.isfinite(np.delete(few.obsm[SLOT], 3, axis=0)).all()
    one = sctool.tl.project_umap(adata[:1], model, copy=True)
    assert np.isfinite(one.obsm[SLOT]).all()


@pytest.mark.slow
def test_equal_cells_and_few_make_a_map():
    latent = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    made = ReferenceMap.fit(latent, 0)
    assert np.isfinite(made.positions).all()
    placed = made.place(latent[:3], 0)
    assert np.isfinite(placed).all()

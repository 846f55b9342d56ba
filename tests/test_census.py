"""References from CELLxGENE Census, read from a small local one."""

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool import datasets

N = {"B cell": 60, "T cell": 300, "rare cell": 4}


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    with pytest.raises(ImportError, match=r"sctool-annotate\[census\]"):
        datasets.census("human", "blood")


def test_a_number_of_cells_below_one_is_refused():
    with pytest.raises(ValueError, match="max_cells=0"):
        datasets.census("human", "blood", max_cells=0)


@pytest.fixture(scope="module")
def cells():
    """Cells as in Census, among them some of another disease, copies and unknown types."""
    types = np.repeat([*N, "unknown"], [*N.values(), 5])
    rng = np.random.default_rng(0)
    types = np.concatenate([types, types[rng.integers(0, len(types), 60)]])
    normal = len(types) - 60
    obs = pd.DataFrame(
        {
            "cell_type": types,
            "cell_type_ontology_term_id": np.where(types == "unknown", "unknown", "CL:0000236"),
            "tissue_general": "blood",
            "disease": np.where(np.arange(len(types)) < normal + 30, "normal", "influenza"),
            "is_primary_data": np.arange(len(types)) < normal,
            "dataset_id": "d1",
        },
        index=[f"c{i}" for i in range(len(types))],
    )
    obs["is_primary_data"] |= obs["disease"] == "influenza"
    for column in datasets.COLUMNS:
        if column not in obs:
            obs[column] = "x"
    var = pd.DataFrame({"feature_id": [f"ENSG{i:011d}" for i in range(20)]})
    var["feature_name"] = [f"G{i}" for i in range(20)]
    var.index = [f"{i}" for i in range(20)]
    x = sp.csr_matrix(rng.poisson(2.0, (len(types), 20)).astype(np.float32))
    return ad.AnnData(x, obs=obs, var=var)


@pytest.fixture(scope="module")
def soma(cells, tmp_path_factory):
    """A collection of the shape of Census."""
    reason = "needs the extra 'census'"
    pytest.importorskip("cellxgene_census", reason=reason)
    tiledbsoma = pytest.importorskip("tiledbsoma", reason=reason)
    from_anndata = pytest.importorskip("tiledbsoma.io", reason=reason).from_anndata

    path = tmp_path_factory.mktemp("census")
    experiment = str(path / "experiment")
    from_anndata(experiment, cells, measurement_name="RNA", X_layer_name="raw")
    with tiledbsoma.Collection.create(str(path / "soma")) as made:
        data = made.add_new_collection("census_data")
        with tiledbsoma.Experiment.open(experiment) as opened:
            data.set("homo_sapiens", opened, use_relative_uri=False)
    with tiledbsoma.open(str(path / "soma")) as opened:
        yield opened


def draw(soma, tissue="blood", max_cells=50, condition="disease == 'normal'", seed=0):
    return datasets._draw_cells(soma, "human", tissue, max_cells, condition, seed)


def test_types_are_capped_and_their_cells_as_they_were(soma, cells):
    ref = draw(soma)
    assert ref.obs["cell_type"].value_counts().to_dict() == {
        "B cell": 50,
        "T cell": 50,
        "rare cell": 4,
    }
    own = cells[ref.obs_names.astype(int)]
    assert (own.obs["cell_type"].to_numpy() == ref.obs["cell_type"].to_numpy()).all()
    assert own.obs["is_primary_data"].all()
    assert (own.obs["disease"] == "normal").all()
    np.testing.assert_array_equal(ref.X.toarray(), own.X.toarray())
    assert list(ref.var_names) == list(cells.var["feature_id"])
    assert list(ref.var["feature_name"]) == list(cells.var["feature_name"])
    assert ref.uns["census"]["few"] == ["rare cell"]
    assert ref.uns["census"]["datasets"] == ["d1"]
    # the draw is at random, and the same again
    assert list(draw(soma).obs_names) == list(ref.obs_names)
    assert list(draw(soma, seed=1).obs_names) != list(ref.obs_names)


def test_other_diseases_are_read_when_asked_for(soma):
    assert set(draw(soma, condition="").obs["disease"]) == {"normal", "influenza"}


def test_no_cell_is_an_error_that_says_what_was_asked_for(soma):
    with pytest.raises(ValueError, match="tissue_general == 'moon'"):
        draw(soma, tissue="moon")


def test_a_missing_network_is_said(monkeypatch):
    module = pytest.importorskip("cellxgene_census", reason="needs the extra 'census'")

    def refuse(**_):
        raise OSError("no route")

    monkeypatch.setattr(module, "open_soma", refuse)
    with pytest.raises(ConnectionError, match="Census cannot be reached"):
        datasets.census("human", "blood")

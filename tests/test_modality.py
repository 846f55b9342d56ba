"""Gene expression within an object of several modalities."""

import anndata as ad
import numpy as np
import pytest
from stages import logistic
from synthetic import simulate_sides, without_pulling

import sctool
from sctool._data import rna_of
from sctool._data._gene_names import gene_names

mudata = pytest.importorskip("mudata", reason="needs mudata")
HUMAN = list(gene_names().orthologue["human"])[:300]


def antibodies(adata: ad.AnnData) -> ad.AnnData:
    own = ad.AnnData(np.ones((adata.n_obs, 30), np.float32), obs=adata.obs[[]].copy())
    own.var_names = [f"{name}_TotalSeq" for name in HUMAN[:30]]
    return own


def multimodal(adata: ad.AnnData, name: str = "rna") -> "mudata.MuData":
    with without_pulling():
        return mudata.MuData({"prot": antibodies(adata), name: adata.copy()})


@pytest.fixture
def sides():
    adata, ref = simulate_sides()
    adata.var_names = ref.var_names = HUMAN
    return adata, ref


@pytest.mark.parametrize("name", ["rna", "GEX", "my cells"])
def test_the_expression_of_both_sides_is_found(sides, name):
    adata, ref = sides
    mdata, reference = multimodal(adata, name), multimodal(ref, name)
    expected = logistic(adata, ref)
    assert sctool.tl.annotate(mdata, reference, method="logistic") is None
    own = mdata.mod[name]
    assert (own.obs["sctool"] == expected.obs["sctool"]).all()
    np.testing.assert_array_equal(own.obsm["sctool_proba"], expected.obsm["sctool_proba"])
    assert "sctool" in own.uns
    assert "sctool" not in mdata.mod["prot"].obs


def test_a_copy_is_of_the_whole_object(sides):
    adata, ref = sides
    mdata = multimodal(adata)
    result = sctool.tl.annotate(mdata, ref, method="logistic", copy=True)
    assert isinstance(result, mudata.MuData)
    assert "sctool" in result.mod["rna"].obs
    assert "sctool" not in mdata.mod["rna"].obs


def test_what_is_not_clear_is_refused_with_the_names(sides):
    adata, _ = sides
    mdata = mudata.MuData({"spliced": adata.copy(), "unspliced": adata.copy()})
    with pytest.raises(ValueError, match=r"\['spliced', 'unspliced'\] of them may be"):
        rna_of(mdata, "adata")
    with pytest.raises(ValueError, match=r"\['prot'\]; none of them is known to be"):
        rna_of(mudata.MuData({"prot": antibodies(adata)}), "ref")

"""Several references as people have them: what is refused, and what is noted."""

import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from synthetic import TYPES, simulate, simulate_sides, without_pulling

import sctool
from sctool.model import load

QUICK = {"method": "logistic", "train_kwargs": {"enable_progress_bar": False}}


def query():
    return simulate_sides(80, 4)[0]


def lacking(seed, *types, n=160):
    ref = simulate(n, seed=seed)
    return ref[~ref.obs["cell_type"].isin(types)].copy()


def trained(ref):
    return sctool.tl.annotate(simulate(60, seed=9), ref, return_model=True, **QUICK)


def annotated(refs, **arguments):
    adata = query()
    sctool.tl.annotate(adata, refs, **QUICK, **arguments)
    return adata


def right(adata):
    return (adata.obs["sctool"].astype(str) == adata.obs["truth"].astype(str)).mean()


def said(adata, slot):
    return "\n".join(adata.uns["sctool"][slot])


def without_expression(ref, *types):
    x = ref.X.toarray()
    x[ref.obs["cell_type"].isin(types).to_numpy()] = 0
    ref.X = x
    return ref


# -- shares in training ---------------------------------------------------------------------------

EQUAL = dict.fromkeys(TYPES, 0.25)


@pytest.mark.parametrize("order", [1, -1])
def test_a_model_that_does_not_say_its_shares_counts_as_having_equal_ones(order):
    """Its own types seemed to have had no cells, and took all others'."""
    model = trained(lacking(5, "B"))
    expected = annotated([lacking(0, "Mono"), model][::order], prior=EQUAL)
    model.class_shares_ = None  # as of CellTypist, or of an earlier version
    adata = annotated([lacking(0, "Mono"), model][::order], prior=EQUAL)
    name = "ref2" if order == 1 else "ref1"
    assert f"prior: ['{name}'] do not say how frequent types were" in said(adata, "audit")
    assert "do not say" not in said(expected, "audit")
    assert right(adata) > 0.9
    # types took turns in training, so that equal shares are the true ones
    for one in (adata, expected):
        one.obsm["sctool_proba"] = one.obsm["sctool_proba"][
            :, pd.Index(one.uns["sctool"]["classes"]).get_indexer(TYPES)
        ]
    np.testing.assert_allclose(adata.obsm["sctool_proba"], expected.obsm["sctool_proba"], atol=0.02)


def test_models_of_which_none_says_its_shares():
    models = [trained(lacking(0, "Mono")), trained(lacking(5, "B"))]
    for model in models:
        model.class_shares_ = None
    adata = annotated(models, prior=EQUAL)
    assert right(adata) > 0.85
    assert "prior: ['ref1', 'ref2'] do not say" in said(adata, "audit")
    assert "do not say" not in said(annotated(models, allowed=TYPES[:2]), "audit")


# -- types that could not be learnt ---------------------------------------------------------------


def test_types_that_no_reference_could_learn_raise_an_alarm():
    both = annotated([without_expression(lacking(seed), "DC") for seed in (0, 5)])
    assert "types: no reference cell of ['DC'] expresses" in said(both, "alarms")
    assert "DC" not in both.uns["sctool"]["classes"]
    one = annotated([without_expression(lacking(0), "DC"), lacking(5)])
    assert "types:" not in said(one, "alarms")
    assert "ref1: ref: no cell of ['DC'] expresses" in said(one, "audit")
    assert right(one) > 0.9


def test_a_type_that_another_reference_knows_as_a_coarser_one_is_not_lost():
    coarse, fine = lacking(0), lacking(5)
    coarse.obs["cell_type"] = coarse.obs["cell_type"].map(
        dict(zip(TYPES, ["B", "T cell", "DC", "Mono"], strict=True))
    )
    fine.obs["cell_type"] = fine.obs["cell_type"].astype(str).replace({"CD4 T/NK": "CD4 T"})
    other = without_expression(coarse.copy(), "T cell")
    adata = annotated([other, fine, coarse[::-1].copy()])
    assert "types:" not in said(adata, "alarms")


@pytest.mark.parametrize(
    "arguments",
    [
        {"allowed": ["B", "DC"]},
        {"prior": {"B": 0.5, "DC": 0.5}},
        {
            "hierarchy": {"DC": "rare", "rare": "myeloid", "Mono": "myeloid", "B": "any"},
            "risk": 0.1,
        },
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_type_that_none_could_learn_may_be_named(arguments):
    """It was a KeyError, or refused, after all had been trained."""
    adata = annotated([without_expression(lacking(seed), "DC") for seed in (0, 5)], **arguments)
    assert "types: no reference cell of ['DC'] expresses" in said(adata, "alarms")
    if "risk" not in arguments:
        assert set(adata.obs["sctool"]) == {"B"}


def test_no_type_is_left():
    refs = [without_expression(lacking(seed), "DC") for seed in (0, 5)]
    with pytest.raises(ValueError, match=r"None of the allowed types \['DC'\] could be learnt"):
        annotated(refs, allowed=["DC"])


# -- the same reference twice ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    trained(lacking(5, "B")).save(folder / "m")
    (folder / "link").symlink_to(folder / "m", target_is_directory=True)
    return folder


@pytest.mark.parametrize(
    "spelling", ["m", "m/", "./m", "link", "absolute", "up", "path", "object", "itself"]
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_model_is_known_by_what_it_is(saved, monkeypatch, spelling, order):
    monkeypatch.chdir(saved)
    model = load("m")
    other = {
        "absolute": str(saved / "m"),
        "up": os.path.join("..", saved.name, "m"),
        "path": saved / "m",
        "object": load("m"),
        "itself": model,
    }.get(spelling, spelling)
    refs = [lacking(0), *(("m" if spelling != "itself" else model), other)[::order]]
    with pytest.raises(ValueError, match="same reference twice.*element 3"):
        annotated(refs)


def test_models_of_the_same_types_are_not_the_same():
    adata = annotated([trained(lacking(0)), trained(lacking(5))])
    assert right(adata) > 0.9


@pytest.mark.parametrize("how", ["itself", "copy", "view", "reordered", "log1p"])
def test_cells_are_known_by_what_they_are(how):
    ref = lacking(0)
    other = {
        "itself": ref,
        "copy": ref.copy(),
        "view": ref[:],
        "reordered": ref[::-1, ::-1].copy(),
        "log1p": ref.copy(),
    }[how]
    if how == "log1p":
        sc.pp.normalize_total(other, target_sum=1e4)
        sc.pp.log1p(other)
    with pytest.raises(ValueError, match="same reference twice.*element 2"):
        annotated([ref, other])


def test_a_mudata_is_known_by_its_cells():
    mudata = pytest.importorskip("mudata")
    ref = lacking(0)
    with without_pulling():
        both = mudata.MuData({"rna": ref})
        for other in (both, both["rna"]):
            with pytest.raises(ValueError, match="same reference twice.*element 2"):
                annotated([both, other])


def test_cells_in_two_references_raise_an_alarm():
    ref = lacking(0)
    adata = annotated([ref, ad.concat([ref[:40], lacking(5)])])
    assert "references: about 40 cells are in both 'ref1' and 'ref2'" in said(adata, "alarms")
    coarse = ref.copy()  # the same cells, of other types
    coarse.obs["cell_type"] = np.where(coarse.obs["cell_type"].isin(TYPES[:2]), "L", "M")
    assert "about 160 cells are in both" in said(annotated([ref, coarse]), "alarms")


def test_cells_of_one_name_are_not_the_same():
    ref, other = lacking(0), lacking(5)
    other.obs_names = ref.obs_names
    adata = annotated([ref, other])
    assert "are in both" not in said(adata, "alarms")
    assert right(adata) > 0.9
    expected = annotated([lacking(0), lacking(5)])
    np.testing.assert_allclose(adata.obsm["sctool_proba"], expected.obsm["sctool_proba"], atol=1e-6)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_names_that_are_not_unique_say_nothing():
    ref, other = lacking(0), lacking(5)
    ref.obs_names = other.obs_names = ["cell"] * ref.n_obs
    assert right(annotated([ref, other])) > 0.9


# -- references that can hardly be used -----------------------------------------------------------


def test_a_reference_without_labels_or_of_one_type():
    for names, n in ((np.full(160, np.nan), 0), (np.full(160, "unassigned"), 0), (["B"] * 160, 1)):
        ref = lacking(5)
        ref.obs["cell_type"] = names
        with pytest.raises(ValueError, match=rf"ref2 has {n} cell type\(s\) .* at least 2"):
            annotated([lacking(0), ref])


def test_references_that_share_no_gene_are_not_compared():
    adata = annotated([lacking(0)[:, :150].copy(), lacking(5)[:, 150:].copy()], risk=0.1)
    audit = said(adata, "audit")
    assert "'ref2' cannot judge 'ref1'" in audit
    assert "'ref1' cannot judge 'ref2'" in audit
    assert "0 cells could be held out and judged by all references, too few" in audit
    assert "risk: no name is safe" in said(adata, "alarms")
    assert set(adata.obs["sctool_safe"]) == {"unknown"}
    assert set(adata.uns["sctool"]["alignment"]["how"]) == {"name"}


def test_references_of_twenty_cells():
    adata = annotated([lacking(0, n=20), lacking(5, n=20)], risk=0.1)
    assert right(adata) > 0.7
    assert "0 cells could be held out and judged by all references, too few" in said(adata, "audit")
    assert set(adata.obs["sctool_safe"]) == {"unknown"}
    beside = annotated([lacking(0, n=20), lacking(5)])
    assert right(beside) > 0.9


def test_references_of_different_scales_and_layers():
    counts, logs, layer = lacking(0), lacking(5), lacking(7)
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    layer.layers["counts"] = layer.X.copy()
    layer.X = layer.X.toarray() - 3.0  # scaled
    adata = annotated([counts, logs, layer])
    audit = said(adata, "audit")
    for note in (
        "ref1: ref: read count values from X",
        "ref2: ref: read log1p values from X",
        "ref3: ref: read count values from layers['counts'], because X holds scaled values",
    ):
        assert note in audit
    assert right(adata) > 0.9


# -- names ----------------------------------------------------------------------------------------


def test_a_path_may_be_called_like_another_reference(saved, monkeypatch):
    monkeypatch.chdir(saved)
    os.rename("m", "ref2")
    try:
        adata = annotated(["ref2", lacking(0)])
    finally:
        os.rename("ref2", "m")
    table = adata.uns["sctool"]["alignment"]
    assert set(table["reference"]) == {"ref2", "ref2'"}
    assert table.groupby("reference")["type"].apply(len).to_dict() == {"ref2": 3, "ref2'": 4}


# -- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("novel", ["auto", 0])
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_the_answer_can_be_stored(saved, tmp_path, novel, form):
    adata = annotated(
        [lacking(0, "Mono"), saved / "m"],
        novel=novel,
        prior={"CD4 T/NK": np.float32(0.5), "B": 1, "Mono": 1, "DC": 1},
        hierarchy={"CD4 T/NK": "T/B", "B": "T/B"},
        model_kwargs={"n_top_genes": np.int64(200), "C": None},
        risk=0.1,
    )
    assert ("sctool_novel" in adata.obs) is False
    getattr(adata, f"write_{form}")(tmp_path / "a")
    again = {"h5ad": ad.read_h5ad, "zarr": ad.read_zarr}[form](tmp_path / "a").uns["sctool"]
    assert again["params"]["model_kwargs"]["n_top_genes"] == 200
    assert list(again["params"]["hierarchy"]["parents"]) == ["T/B", "T/B"]
    pd.testing.assert_series_equal(
        again["alignment"]["type"].astype(str).reset_index(drop=True),
        adata.uns["sctool"]["alignment"]["type"].astype(str),
        check_dtype=False,
    )

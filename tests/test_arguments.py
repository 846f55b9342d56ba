"""Arguments of the wrong kind, with a reference, several, a saved model, and one that adapts."""

import re

import numpy as np
import pandas as pd
import pytest
from synthetic import TYPES, simulate, simulate_sides

import sctool

QUIET = {"train_kwargs": {"enable_progress_bar": False}}
SMALL = {"n_top_genes": 100, "n_hidden": 16, "min_steps": 8, "min_epochs": 1}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """What is passed as a reference, with the arguments that go with it."""
    query, ref = simulate_sides(60, 120)
    folder = tmp_path_factory.mktemp("models")
    for method, settings in (("logistic", {}), ("auto", SMALL)):
        model = sctool.tl.annotate(
            query.copy(), ref, method=method, return_model=True, model_kwargs=settings, **QUIET
        )
        model.save(folder / method)
    return {
        "one": (ref, {"method": "logistic"}),
        "several": ([ref, simulate(120, seed=5)], {"method": "logistic"}),
        "saved": (folder / "logistic", {}),
        "adapting": (folder / "auto", {"adapt": True}),
    }


every_way = pytest.mark.parametrize("way", ["one", "several", "saved", "adapting"])


def annotate(calls, way, **arguments):
    ref, own = calls[way]
    adata = simulate_sides(60, 4)[0]
    adata.obs["leiden"] = pd.Categorical([np.nan] * adata.n_obs, categories=["0"])
    try:
        sctool.tl.annotate(adata, ref, **own, **QUIET, **arguments)
    finally:
        if "sctool" not in adata.uns:  # nothing is written half
            assert list(adata.obs) == ["truth", "leiden"]
    return adata


@every_way
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hierarchy": ["B"]}, TypeError, r"hierarchy=\['B'\]: pass a dictionary"),
        ({"hierarchy": 5}, TypeError, "hierarchy=5: pass a dictionary"),
        ({"hierarchy": pd.Series({"B": "x"})}, TypeError, "pass a dictionary"),
        ({"hierarchy": {"B": ["x"]}}, TypeError, r"hierarchy has \['x'\] as a parent"),
        # a table's empty fields would be a group called nan
        ({"hierarchy": {"B": np.nan}}, ValueError, r"names no parent for \['B'\]"),
        ({"hierarchy": {"B": None, "DC": "x"}}, ValueError, r"names no parent for \['B'\]"),
        ({"hierarchy": {"B": "x", "no": "x"}}, ValueError, r"a parent for \['no'\]"),
        ({"hierarchy": {"B": "x", 1: "x"}}, ValueError, r"a parent for \['1'\]"),
        ({"hierarchy": {1: "x", "1": "x"}}, ValueError, "names that are equal as text"),
        ({"hierarchy": "no"}, ValueError, "hierarchy='no': pass 'ontology'"),
        ({"allowed": "B"}, TypeError, "allowed='B': pass a list"),
        ({"allowed": b"B"}, TypeError, "allowed=b'B': pass a list"),
        ({"allowed": {"B": 1.0}}, TypeError, "allowed=.*: pass a list"),
        ({"allowed": 3}, TypeError, "allowed=3: pass a list"),
        ({"allowed": []}, ValueError, "allowed is empty"),
        ({"allowed": [None]}, ValueError, "allowed names types .*: 'None'"),
        ({"prior": ["B"]}, TypeError, "prior=.*: pass a dictionary"),
        ({"prior": {}}, ValueError, "prior is empty"),
        ({"prior": {"B": "0.5"}}, TypeError, "prior=.*: the shares must be numbers"),
        ({"prior": {"B": True}}, TypeError, "prior=.*: the shares must be numbers"),
        ({"prior": {"B": np.nan}}, ValueError, "prior=.*: the shares must be finite"),
        ({"prior": {"B": 0}}, ValueError, "prior=.*: the shares must be finite, .* not all 0"),
        ({"allowed": ["B"], "prior": {"B": 1}}, ValueError, "both given"),
        ({"groupby": "no"}, KeyError, "groupby='no' is not in the query's obs"),
        ({"groupby": ["truth"]}, KeyError, r"groupby=\['truth'\] is not in"),
        ({"groupby": "leiden"}, ValueError, "groupby='leiden': no cell has a value"),
        ({"labels_key": None}, TypeError, "labels_key=None: pass the name"),
        ({"labels_key": 3}, TypeError, "labels_key=3: pass the name"),
        ({"labels_key": []}, ValueError, r"labels_key=\[\] is empty"),
        ({"labels_key": ["cell_type", 3]}, TypeError, "labels_key=.*: pass the name"),
        ({"batch_key": ["a"]}, ValueError, r"batch_key=\['a'\] must be a text or None"),
        ({"layer": ["a"]}, ValueError, r"layer=\['a'\] must be a text or None"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_of_the_wrong_kind_is_refused(calls, way, arguments, error, message):
    with pytest.raises(error, match=message):
        annotate(calls, way, **arguments)


@every_way
def test_names_may_come_as_any_list(calls, way):
    results = [
        annotate(calls, way, allowed=allowed).obs["sctool"].astype(str)
        for allowed in (["B", "DC"], (name for name in ("B", "DC")), pd.Index(["B", "DC"]))
    ]
    assert set(results[0]) <= {"B", "DC"}
    for other in results[1:]:
        pd.testing.assert_series_equal(results[0], other)


def test_shares_are_relative_however_large(calls):
    shares = [
        annotate(calls, "one", prior={"B": n, "DC": np.float32(n / 1e300), "Mono": n})
        for n in (1.0, 1e308)
    ]
    for adata in shares:
        stored = adata.uns["sctool"]["params"]["prior"]
        by_type = dict(zip(stored["types"], stored["shares"], strict=True))
        assert by_type["B"] == by_type["Mono"] == pytest.approx(0.5)


def test_a_type_has_one_share(calls):
    ref = simulate(80)
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.codes.to_numpy()
    adata = simulate_sides(20, 4)[0]
    sctool.tl.annotate(adata, ref, method="logistic", prior={1: 0.5, 2: 0.5}, **QUIET)
    assert set(adata.obs["sctool"]) <= {"1", "2"}
    with pytest.raises(ValueError, match="names a type more than once"):
        sctool.tl.annotate(adata, ref, method="logistic", prior={1: 0.5, "1": 0.5}, **QUIET)


def test_names_of_a_hierarchy_are_text_without_spaces():
    ref = simulate(120)
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.codes.to_numpy()
    adata = simulate_sides(20, 4)[0]
    model = sctool.tl.annotate(
        adata,
        ref,
        method="logistic",
        hierarchy={0: " low", "1 ": "low"},
        return_model=True,
        **QUIET,
    )
    assert "low" in list(model.hierarchy_.names)
    stored = adata.uns["sctool"]["params"]["hierarchy"]
    assert list(stored["types"]) == ["0", "1"]
    assert list(stored["parents"]) == ["low", "low"]


# -- types that could not be learnt ---------------------------------------------------------------


def without_expression(ref, *types):
    """The reference with cells of some types that express nothing."""
    x = ref.X.toarray()
    x[ref.obs["cell_type"].isin(types).to_numpy()] = 0
    ref.X = x
    return ref


@pytest.fixture
def lacking():
    return without_expression(simulate(120), "DC")


def test_a_hierarchy_may_name_a_type_that_could_not_be_learnt(lacking):
    """It was found wrong only after training."""
    adata = simulate_sides(40, 4)[0]
    tree = {"DC": "rare", "rare": "myeloid", "Mono": "myeloid", "B": "lymphoid", "CD4 T/NK": "any"}
    tree |= {"lymphoid": "any"}
    model = sctool.tl.annotate(
        adata, lacking, method="logistic", hierarchy=tree, return_model=True, **QUIET
    )
    assert "DC" not in model.classes_
    assert "rare" not in set(model.hierarchy_.names)
    assert "any" in set(model.hierarchy_.names)
    assert any("'DC'" in a for a in adata.uns["sctool"]["alarms"] if a.startswith("types:"))


def test_levels_may_name_a_type_that_could_not_be_learnt(lacking):
    lacking.obs["coarse"] = lacking.obs["cell_type"].map(
        dict(zip(TYPES, ["lymphoid", "lymphoid", "myeloid", "myeloid"], strict=True))
    )
    adata = simulate_sides(40, 4)[0]
    keys = ["coarse", "cell_type"]
    model = sctool.tl.annotate(
        adata, lacking, method="logistic", labels_key=keys, return_model=True, **QUIET
    )
    assert "lymphoid" in set(model.hierarchy_.names)


def test_a_number_of_novel_groups_that_nothing_looks_for_is_noted(calls):
    adata = simulate_sides(60, 4)[0]
    sctool.tl.annotate(adata, calls["adapting"][0], novel=3, **QUIET)
    notes = list(adata.uns["sctool"]["audit"])
    assert "novel: 3 groups were asked for, but nothing was trained: the model has 0" in notes
    with pytest.raises(ValueError, match=re.escape("novel=3: LogisticClassifier cannot group")):
        sctool.tl.annotate(adata, calls["saved"][0], novel=3, **QUIET)

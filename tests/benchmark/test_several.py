"""Several references beside each alone and their cells joined."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from synthetic import simulate

from sctool_benchmark import several
from sctool_benchmark._tasks import known_data
from sctool_benchmark.several import Case, as_markdown, cases, main


def small() -> Case:
    refs = {name: simulate(80, seed=i) for i, name in enumerate(["one", "other"])}
    refs["one"] = refs["one"][refs["one"].obs["cell_type"] != "B"].copy()
    return Case("small", simulate(60, seed=3, shift=0.3), refs)


def test_the_command_measures_each_way_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(several, "cases", lambda: {"small": small})
    words = ["--method", "logistic", "-o", str(tmp_path)]
    assert main(words) == 0
    runs = pd.read_csv(tmp_path / "runs.csv").set_index("how")
    assert list(runs.index) == ["several", "one", "other", "joined"]
    assert runs.loc["one", "seen_accuracy"] < 0.8 < runs.loc["several", "seen_accuracy"]
    text = (tmp_path / "table.md").read_text()
    assert text.count("| small |") == 5
    monkeypatch.setattr(several, "run", lambda *_: pytest.fail("it was done"))
    assert main(words) == 0


def test_the_gain_is_over_the_best_single_reference():
    rows = [("several", 0.9), ("a", 0.8), ("b", 0.85), ("joined", 0.95)]
    runs = pd.DataFrame(
        [{"case": "c", "tuned": True, "method": "m", "how": h, "seen_accuracy": v} for h, v in rows]
    )
    assert "| c | True | m | 0.850 | 0.900 | 0.050 | 0.950 |" in as_markdown(runs)
    assert "| **mean** | True | m | 0.850 | 0.900 | 0.050 |  |" in as_markdown(runs)


def test_types_can_be_scored_as_one():
    case = small()
    result = case.query.copy()
    result.obs["sctool"] = result.obs["cell_type"].astype(str).replace("DC", "Mono")
    result.obs["sctool_score"] = result.obs["sctool_novel_score"] = 0.5
    result.uns["sctool"] = {"reasons": pd.DataFrame({"status": [], "reason": []})}
    assert several.score(case, result)["seen_accuracy"] == 0.75
    same = Case("small", case.query, case.references, {"DC": "M", "Mono": "M"})
    assert several.score(same, result)["seen_accuracy"] == 1


def blood_like(name: str) -> ad.AnnData:
    """Cells of the types, donors and sides that the cases ask for, without expression."""
    types = [*several.SORTED] if name == "zheng" else ["B", "NK", "T_CD4", "T_CD8", "Mono_CD14"]
    types = [*several.KANG] if name == "kang" else types
    donors = [*several.LEFT_OUT, *np.ravel(several.DONORS)]
    obs = pd.MultiIndex.from_product(
        [types, donors, ["reference", "query"]], names=["cell_type", "batch", "split"]
    ).to_frame(index=False)
    return ad.AnnData(np.zeros((len(obs), 1), np.float32), obs.set_index(obs.index.astype(str)))


def types_of(adata: ad.AnnData) -> set[str]:
    return set(adata.obs["cell_type"].astype(str))


def test_cases_are_made_of_known_data(monkeypatch):
    read: dict[str, set[str]] = {}
    found = {}
    for name, make in cases().items():
        used = read[name] = set()
        monkeypatch.setattr(
            several, "_data", lambda data, to=used: to.add(data) or blood_like(data)
        )
        found[name] = make()
    assert set.union(*read.values()) <= set(known_data())
    for name, case in found.items():
        assert case.name == name
        assert case.tuned == all(known_data()[data].get("tuned", False) for data in read[name])
    donors = found["kang_donor_101"]
    assert set(donors.query.obs["batch"]) == {"101"}
    assert [set(r.obs["batch"]) for r in donors.references.values()] == [
        set(group) for group in several.DONORS
    ]
    lacking = found["both_lack_nk"]
    assert "NK" in types_of(lacking.query)
    assert "NK" not in set.union(*map(types_of, lacking.references.values()))
    own = found["mouse_and_human"]
    assert len(own.query) + len(own.references["own"]) == len(blood_like("")) // 2
    assert not set(own.query.obs_names) & set(own.references["own"].obs_names)

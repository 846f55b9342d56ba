"""Several references beside each alone and their cells joined."""

import pandas as pd
import pytest
from synthetic import simulate

from sctool_benchmark import several
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


def test_cases_are_of_known_data(monkeypatch):
    monkeypatch.setattr(several, "_data", lambda name: pytest.skip("read"))
    assert {"pbmc3k_and_zheng", "both_lack_nk", "mouse_and_human"} <= set(cases())

"""Known markers among the genes that explain a type."""

from pathlib import Path

import pandas as pd
import pytest
from synthetic import MARKERS, simulate

from sctool.model import SCNYM
from sctool_benchmark import markers
from sctool_benchmark._tasks import load_suite


def test_markers_that_are_not_measured_are_not_counted() -> None:
    found = {
        "guided": pd.DataFrame({"B": ["MS4A1", "X"], "NK": ["GNLY", "NKG7"]}),
        "t-test": pd.DataFrame({"B": ["X", "Y"], "NK": ["NKG7", "Z"], "DC": ["CST3", "X"]}),
        "measured": pd.DataFrame({"genes": ["MS4A1", "GNLY", "NKG7", "CST3", "X", "Y", "Z"]}),
    }
    known = {"B": ["MS4A1", "CD79A"], "NK": ["GNLY", "NKG7"], "DC": ["CST3"], "MK": ["PPBP"]}
    table = markers.recovered(found, known)
    # (dendritic cells are named on one side alone, no marker of megakaryocytes is measured)
    assert table.to_dict("records") == [
        {"type": "B", "known": "MS4A1", "guided": 1.0, "t-test": 0.0},
        {"type": "NK", "known": "GNLY, NKG7", "guided": 1.0, "t-test": 0.5},
    ]


def test_only_the_highest_genes_count() -> None:
    genes = [f"g{i}" for i in range(25)]
    found = {"guided": pd.DataFrame({"B": genes}), "measured": pd.DataFrame({"genes": genes})}
    (row,) = markers.recovered(found, {"B": ["g19", "g20"]}).to_dict("records")
    assert row["guided"] == 0.5


def test_every_marker_has_a_source_and_a_type_of_the_data() -> None:
    known = markers.known_markers()
    assert known["B"] == ["MS4A1", "CD79A"]
    assert set(known) == {"B", "T_CD4", "T_CD8", "NK", "Mono_CD14", "Mono_CD16", "DC", "MK"}
    assert load_suite("scnym_markers").tasks[0].name == "kang_stim"


def test_planted_markers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("captum")
    small = SCNYM.PRESETS["default"].__class__(
        **{"n_top_genes": 200, "n_hidden": 32, "min_steps": 60, "min_epochs": 1}
    )
    monkeypatch.setitem(SCNYM.PRESETS, "default", small)
    query = simulate(120, seed=1)
    query.obs = query.obs[[]].copy()
    found = markers.top_genes(query, simulate(160), 0)
    table = markers.recovered(found, MARKERS)
    assert list(table["type"]) == list(MARKERS)
    assert (table[list(markers.EXPLAINED_BY)] > 0.5).all(axis=None)
    assert (table[markers.T_TEST] > 0.9).all()


def test_without_data_there_is_no_table(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SCTOOL_DATA_DIR", str(tmp_path))
    assert markers.main(["-o", str(tmp_path / "out")]) == 2
    assert "skipped" in capsys.readouterr().err

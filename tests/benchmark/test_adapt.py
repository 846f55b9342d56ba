"""What adapting is worth: the three answers and the table."""

import pandas as pd
import pytest
from synthetic import simulate

from sctool.model._auto import AutoClassifier, AutoSettings
from sctool_benchmark._tasks import Split, load_suite
from sctool_benchmark.adapt import ANSWERS, as_markdown, compare, main

SMALL = {"n_top_genes": 100, "n_hidden": 16, "min_steps": 10, "min_epochs": 1}


def test_the_suite_uses_data_that_may_choose_settings():
    tasks = load_suite("adapt").tasks
    assert len(tasks) == 5
    assert all(task.tuned for task in tasks)


@pytest.mark.slow
def test_three_answers_are_compared(monkeypatch):
    monkeypatch.setitem(AutoClassifier.PRESETS, "default", AutoSettings(**SMALL))
    reference, query = simulate(160), simulate(240, seed=1, shift=0.3)
    reference = reference[reference.obs["cell_type"] != "DC"].copy()
    truth = query.obs.pop("cell_type").astype(object)
    rows = compare(Split(reference, query, truth, None, None), 0)
    assert [row["answer"] for row in rows] == list(ANSWERS)
    assert all(row["macro_f1"] > 0.9 for row in rows)
    saved, adapted, _ = rows
    assert saved["novel_recall"] == saved["false_novel"] == 0
    assert adapted["novel_recall"] > 0.6
    assert 0 < saved["megabytes"] < 1


def test_the_table_has_means_over_seeds_and_tasks():
    runs = pd.DataFrame(
        [("a", 0, "saved", 0.5), ("a", 1, "saved", 0.7), ("b", 0, "saved", 0.8)],
        columns=["task", "seed", "answer", "macro_f1"],
    )
    lines = as_markdown(runs).splitlines()
    assert lines[2:] == [
        "| a | saved | 0.600 |",
        "| b | saved | 0.800 |",
        "| mean | saved | 0.700 |",
    ]


def test_without_data_there_is_no_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCTOOL_DATA_DIR", str(tmp_path))
    assert main(["-o", str(tmp_path / "out")]) == 2
    assert "skipped" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--seeds", "x", "-o", "out"]])
def test_wrong_arguments_are_refused(argv):
    with pytest.raises(SystemExit):
        main(argv)

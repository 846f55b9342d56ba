"""scNym's table 1: our accuracies, the published ones, tests over data sets, flags."""

import json
from pathlib import Path

import pytest

from sctool_benchmark._tasks import load_suite
from sctool_benchmark.scnym_table1 import main

#: Seen accuracy by method and task; the folds are one hundredth apart.
ACCURACY = {
    "scnym": {"kang_stim": 0.91, "cellbench": 0.95, "baron_segerstolpe": 0.9},
    "svm": {"kang_stim": 0.81, "cellbench": 0.85, "baron_segerstolpe": 0.89},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        {
            "task": task,
            "method": method,
            "seed": seed,
            "error": None,
            "seen_accuracy": value + seed / 100,
            "novel_recall": 0.5 if task == "cellbench" else None,
            "novel_precision": 0.25 if method == "scnym" and task == "cellbench" else None,
            "false_novel": 0.125,
            "made_by": "a command",
            "commit": "abc",
            "date": "2026-01-02T00:00:00",
        }
        for method, by_task in ACCURACY.items()
        for task, value in by_task.items()
        for seed in (0, 1)
    ]
    # an earlier run of the same fold, and one that failed, do not count
    rows = [rows[0] | {"seen_accuracy": 0.0}, *rows, rows[0] | {"error": "no", "seed": 2}]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "results.jsonl").write_text(text + "\n")
    return tmp_path


def test_published_accuracies_stand_beside_ours(results: Path, capsys) -> None:
    assert main([str(results)]) == 0
    text = (results / "published.md").read_text()
    assert text in capsys.readouterr().out
    # in the order of the suite: rivals first
    assert "| task | svm | scnym |" in text
    assert "| kang_stim | 81.5 | 91.5 |\n| *hPBMC Cross-Stim* | *81.9* | *91.7* |" in text
    assert text.count("hPBMC") == 1
    # what we have no data for stands below
    assert "| *TM 10x to MCA* | *88.4* | *91.4* |" in text
    # three data sets, all better: 2 / 2^3; the ranks of baron_segerstolpe's folds have a tie
    (line,) = (line for line in text.splitlines() if line.startswith("| svm | 3 |"))
    assert line == "| svm | 3 | 3 of 3 | +10.0 | 0.25 | 0.25 |"
    assert "| svm | 0.50 / - / 0.12 |" in text
    assert "| scnym | 0.50 / 0.25 / 0.12 |" in text
    assert "- commit abc\n- date 2026-01-02\n" in text


def test_without_results_it_says_what_to_run(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path)]) == 2
    assert "run the suite scnym_table1" in capsys.readouterr().err


def test_the_suite_holds_all_that_the_paper_compares() -> None:
    suite = load_suite("scnym_table1")
    rivals = {"scmap-cell", "scmap-cluster", "svm", "singlecellnet", "scpred", "chetah"}
    assert rivals | {"scnym"} <= {method.name for method in suite.methods}
    assert suite.seeds == 5
    assert all(task.training_folds == 5 for task in suite.tasks)

"""What a component adds to its base: bars, and differences by the size of a type."""

import json
from pathlib import Path

import pytest

from sctool_benchmark.contrastive_figures import gains, gains_by_size, main


def row(method: str, task: str, seed: int, accuracy: float, auprc: dict, base: str | None) -> dict:
    return {
        "id": f"{task}/{method}/{seed}",
        "task": task,
        "method": method,
        "base": base,
        "seed": seed,
        "error": None,
        "seen_accuracy": accuracy,
        "macro_f1": accuracy / 2,
        "auprc": auprc,
        "n_labelled": {"A": 10 + seed, "B": 200},
    }


ROWS = [
    row("lr", "a", 0, 0.5, {"A": 0.2, "B": 0.9}, None),
    row("lr", "a", 1, 0.7, {"A": 0.4, "B": 0.9}, None),
    row("lr", "b", 0, 0.9, {"A": 0.5, "B": 0.8}, None),
    row("lr+mls", "a", 0, 0.6, {"A": 0.5, "B": 0.8}, "lr"),
    row("lr+mls", "a", 1, 0.8, {"A": 0.4, "B": 0.9}, "lr"),
    row("lr+mls", "b", 0, 0.8, {"A": 0.6, "B": 0.8}, "lr"),
    row("orphan", "a", 0, 0.8, {"A": 0.6}, "absent"),
]


def test_gains_are_means_over_tasks() -> None:
    table = gains(ROWS)
    assert list(table.index) == ["lr+mls"]
    # +10 points on one task, -10 on the other, whatever their numbers of runs
    assert table.loc["lr+mls", "seen_accuracy"] == pytest.approx(0)
    table = gains(ROWS[:2] + ROWS[3:5])
    assert table.loc["lr+mls"].to_list() == pytest.approx([10, 5])


def test_each_type_has_its_gain_and_its_size() -> None:
    points = gains_by_size(ROWS).groupby(["type", "n_labelled"])["gain"].apply(sorted)
    assert len(points) == 3
    assert points["A", 11] == pytest.approx([0])
    assert points["A", 10] == pytest.approx([0.1, 0.3])
    assert points["B", 200] == pytest.approx([-0.1, 0, 0])


def test_both_figures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "contrastive_nine" in capsys.readouterr().err
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert main([str(tmp_path)]) == 0
    for name in ("gains.png", "by_size.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"

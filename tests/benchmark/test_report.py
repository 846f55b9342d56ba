"""The tables."""

from pathlib import Path

import numpy as np
import pandas as pd

from sctool_benchmark import _report


def row(method: str, task: str, seed: int, **entries) -> dict:
    """A run that succeeded, on data that may choose no settings."""
    return {
        "id": f"{task}/{method}/{seed}",
        "task": task,
        "kind": "pair",
        "data": "worm",
        "tuned": False,
        "method": method,
        "base": None,
        "protocol": "blind",
        "seed": seed,
        "error": None,
        "made_by": "python -m sctool_benchmark --suite s -o results",
        "commit": "abc1234+changes",
        "date": f"2026-01-0{seed + 1}T10:00:00+00:00",
        "versions": {"python": "3.11.1"},
        **entries,
    }


def table(tmp_path: Path, rows: list[dict]) -> str:
    _report.write_reports(tmp_path, rows)
    return (tmp_path / "table.md").read_text()


def test_means_over_seeds_and_then_over_tasks(tmp_path: Path) -> None:
    rows = [
        row("m", "a", 0, seen_accuracy=0.9),
        row("m", "a", 1, seen_accuracy=0.7),
        row("m", "b", 0, seen_accuracy=0.4),
        row("k", "a", 0, error="out of luck"),
    ]
    text = table(tmp_path, rows)
    assert "| a | m | 2 | 0.800 ± 0.141 |" in text
    assert "| b | m | 1 | 0.400 |" in text
    assert "| a | k | 0 of 1 | - |" in text
    assert "| m | 2 | 0.600 |" in text
    assert "| k | 0 of 2 | - |" in text
    assert "- `a/k/0`: out of luck" in text


def test_data_that_may_choose_settings_are_never_pooled_with_others(tmp_path: Path) -> None:
    rows = [
        row("m", "a", 0, seen_accuracy=0.9, tuned=True, data="zheng"),
        row("m", "b", 0, seen_accuracy=0.7, tuned=True, data="kang"),
        row("m", "c", 0, seen_accuracy=0.3),
    ]
    text = table(tmp_path, rows)
    title = "### Mean over the tasks on data that may choose settings (kang, zheng)\n"
    tuned, other = text.split(title)[1].split("### Mean over the tasks on other data\n")
    assert "| m | 2 | 0.800 |" in tuned
    assert "| m | 1 | 0.300 |" in other
    assert "other data" not in table(tmp_path, rows[:2])
    assert "may choose settings" not in table(tmp_path, rows[2:])


def test_how_it_was_made(tmp_path: Path) -> None:
    made = table(tmp_path, [row("m", "a", seed, seen_accuracy=1.0) for seed in range(3)])
    assert made.endswith(
        "## Made by\n\n    python -m sctool_benchmark --suite s -o results\n\n"
        "- commit abc1234+changes\n- date 2026-01-01 to 2026-01-03\n- python 3.11.1\n"
    )
    assert "- date 2026-01-01\n" in table(tmp_path, [row("m", "a", 0, seen_accuracy=1.0)])


def test_estimated_numbers_of_types_stand_beside_guesses() -> None:
    rows = [(1, 3, 1, 0, 2), (3, 3, 5, 4, 6), (4, 2, 4, 4, 4)]  # true, seen, found, low, high
    columns = ["n_novel_types", "n_types", "novel_types_n", "novel_types_low", "novel_types_high"]
    frame = pd.DataFrame(rows, columns=columns).assign(task=["a", "b", "c"], seed=0, method="m")
    lines = list(_report._numbers(frame))
    assert "| m | 3 | 0.67 | 0.67 |" in lines
    assert "| a constant | 3 | 1.00 | - |" in lines  # 3
    assert "| half of the seen | 3 | 1.67 | - |" in lines
    assert "| as many as the seen | 3 | 1.33 | - |" in lines


def test_the_curve_of_each_method_over_tasks() -> None:
    rows = [("m", "a", 0.9, 0.5), ("m", "a", 0.7, 0.3), ("m", "b", 0.6, 0.2), ("k", "b", 0.5, 0.1)]
    columns = ["method", "task", "seen_at_recall.0.0", "seen_at_recall.0.5"]
    lines = list(_report._curves(pd.DataFrame(rows, columns=columns).assign(error=None)))
    assert "| method | tasks | 0.0 | 0.5 |" in lines
    assert "| m | 2 | 0.700 | 0.300 |" in lines  # not the mean over runs
    assert "| k | 1 | 0.500 | 0.100 |" in lines


def test_a_method_is_compared_with_its_base_type_by_type(tmp_path: Path) -> None:
    rows = []
    for seed, (ours, theirs) in enumerate([((0.9, 0.8), (0.5, 0.6)), ((0.7, 0.2), (0.8, 0.2))]):
        for method, values, base in (("m", ours, "b"), ("b", theirs, None)):
            auprc = dict(zip(["A", "B"], values, strict=True))
            rows.append(row(method, "a", seed, base=base, auprc=auprc))
    # its base has no such run
    rows.append(row("m", "a", 2, base="b", auprc={"A": 0.0, "B": 0.0}))
    difference = np.array([0.4, 0.2, -0.1, 0.0])
    t = difference.mean() / (difference.std(ddof=1) / 2)
    assert f"\n| m | b | 4 | 0.525 | +0.125 | {t:.1f} | " in table(tmp_path, rows)
    # and by AUROC, if the runs have it
    assert "AUROC" not in table(tmp_path, rows)
    both = [one | {"auroc": one["auprc"], "n_labelled": {"A": 3}} for one in rows]
    assert table(tmp_path, both).count("\n| m | b | 4 | 0.525 | +0.125 |") == 2
    assert "| base AUROC |" in table(tmp_path, both)
    alone = [one for one in rows if one["method"] == "m"]
    assert "AUPRC" not in table(tmp_path, alone)


def test_names_at_a_risk_and_what_two_ways_to_reject_leave(tmp_path: Path) -> None:
    rows = []
    for task, seed, tuned, errors in (
        ("a", 0, True, (0.04, 0.10)),
        ("a", 1, True, (0.08, 0.10)),
        ("b", 0, True, (0.02, 0.10)),
        ("c", 0, False, (0.05, 0.20)),
    ):
        entries = {
            f"safe_at.{risk}.{name}": value
            for risk, error in zip((0.05, 0.1), errors, strict=True)
            for name, value in {
                "error": error,
                "specificity": 0.8,
                "named": 0.7,
                "unknown": 0.1,
                "missed": 0.03,
                "set_size": 1.5,
                "rejection": 0.6,
            }.items()
        }
        entries |= {"safe_at.0.3.error": 0.4, "safe_at.0.3.specificity": 0.9}
        rows.append(row("m", task, seed, tuned=tuned, seen_accuracy=0.9, **entries))
    text = table(tmp_path, rows)
    spread = "0.800 ± 0.000 | 0.700 ± 0.000 | 0.100 ± 0.000 | 0.030 ± 0.000 | 1.500 ± 0.000"
    assert f"| a | m | 2 | 0.05 | 0.060 ± 0.028 | +0.010 | {spread} |" in text
    others = "0.800 | 0.700 | 0.100 | 0.030 | 1.500"
    # the mean of 0.06 and 0.02, and not of the three runs
    title = "mean of 2 tasks on data that may choose settings"
    assert f"| {title} | m |  | 0.05 | 0.040 | -0.010 | {others} |" in text
    assert f"| mean of 1 tasks on other data | m |  | 0.1 | 0.200 | +0.100 | {others} |" in text
    assert (
        "| data that may choose settings | m | 2 | 0.1 | 0.100 | 0.800 | 0.700 | 0.100 | 0.600 |"
        in text
    )
    assert "| other data | m | 1 | 0.3 | 0.400 | 0.900 | - | - | - |" in text
    assert (tmp_path / "rejection.png").read_bytes().startswith(b"\x89PNG")


def test_columns_that_no_run_has_are_left_out(tmp_path: Path) -> None:
    text = table(tmp_path, [row("m", "a", 0, seen_accuracy=0.9, seconds=2.0), row("k", "a", 0)])
    assert "| task | method | runs | seen_accuracy | seconds |" in text
    assert not (tmp_path / "rejection.png").exists()
    assert "### Names and sets" not in text

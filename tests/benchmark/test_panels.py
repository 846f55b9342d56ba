"""What few genes can tell: panels, scores, and what is written of them."""

import numpy as np
import pandas as pd
from synthetic import MARKERS, simulate

from sctool_benchmark.panels import judge, panel, write


def test_panels_of_markers_and_of_random_genes():
    ref = simulate(160)
    markers = panel(ref, "markers", 20, 0)
    assert len(set(np.concatenate(list(MARKERS.values()))) & set(markers)) > 15
    draws = [set(panel(ref, "random", 20, seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert all(len(draw) == 20 for draw in draws)


def test_only_known_types_are_scored():
    ref, query = simulate(160), simulate(120, seed=1)
    scores = judge(query, ref[ref.obs["cell_type"] != "DC"].copy(), "logistic", 0)
    assert scores["accuracy"] > 0.95
    assert scores["macro_f1"] > 0.95


def test_the_table_has_means_over_seeds_and_the_figure_all_genes(tmp_path):
    rows = [("a", "random", 100, 0.4), ("a", "random", 100, 0.6), ("a", "markers", 100, 0.7)]
    rows += [("a", "all", 2000, 0.8)]
    table = pd.DataFrame(rows, columns=["pair", "panel", "genes", "accuracy"])
    table = table.assign(macro_f1=0.5, ece=0.1, named=[0.2, 0.4, np.nan, np.nan])
    write(table, tmp_path, ["--seeds", "2", "-o", "results/panels"])
    text = (tmp_path / "panels.md").read_text()
    assert text.splitlines()[2:5] == [
        "| a | random | 100 | 0.500 | 0.500 | 0.100 | 30% |",
        "| a | markers | 100 | 0.700 | 0.500 | 0.100 |  |",
        "| a | all | 2,000 | 0.800 | 0.500 | 0.100 |  |",
    ]
    assert "python -m sctool_benchmark.panels --seeds 2 -o results/panels" in text
    assert (tmp_path / "panels.png").stat().st_size > 5_000

"""The thesis' figures 5 and 6: ``python -m sctool_benchmark.contrastive_figures DIR``.

``DIR`` is the folder of results of a suite whose methods have a base, such as
``contrastive_nine``. ``gains.png`` in it has what each component adds to its base in top-1 accuracy
and macro-F1, ``by_size.png`` what it adds to the AUPRC of a type, against the number of the type's
labelled cells.
Figure 7, the circles, is `sctool.pl.mls`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sctool_benchmark._report import pairs_by_type

GAINS = {"seen_accuracy": "top-1 accuracy", "macro_f1": "macro-F1"}


def gains(rows: Sequence[dict]) -> pd.DataFrame:
    """What each method adds to its base, in points: the mean over tasks of the means over seeds.

    Parameters
    ----------
    rows
        One run each that succeeded.

    Returns
    -------
    A row a method with a base, a column a score.
    """
    frame = pd.DataFrame(rows)
    means = frame.groupby(["method", "task"], sort=False)[list(GAINS)].mean()
    bases = frame.dropna(subset="base").drop_duplicates("method").set_index("method")["base"]
    bases = bases[bases.isin(frame["method"])]
    added = {m: (100 * (means.loc[m] - means.loc[base])).mean() for m, base in bases.items()}
    return pd.DataFrame(added).T


def gains_by_size(rows: Sequence[dict]) -> pd.DataFrame:
    """What each method adds to the AUPRC of a type, with the number of its labelled cells.

    Parameters
    ----------
    rows
        One run each that succeeded.

    Returns
    -------
    A row a type and run: ``method``, ``type``, ``gain`` and ``n_labelled``.
    """
    pairs = pairs_by_type(pd.DataFrame(rows), {row["id"]: row["auprc"] for row in rows})
    size = {
        (row["task"], row["seed"], name): n
        for row in rows
        for name, n in row.get("n_labelled", {}).items()
    }
    keys = zip(pairs["task"], pairs["seed"], pairs["type"], strict=True)
    pairs = pairs.assign(
        gain=pairs["value"] - pairs["value_base"], n_labelled=[size.get(key) for key in keys]
    )
    return pairs.dropna(subset="n_labelled")[["method", "type", "gain", "n_labelled"]]


def plot(rows: Sequence[dict], folder: Path) -> None:
    """Draw both figures into a folder."""
    from matplotlib.figure import Figure

    bars = gains(rows)
    figure = Figure(figsize=(1 + 0.9 * len(bars), 5), layout="constrained")
    for ax, (name, title) in zip(figure.subplots(2, 1, sharex=True), GAINS.items(), strict=True):
        ax.bar(bars.index, bars[name])
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_ylabel(f"{title}, points")
        ax.tick_params(axis="x", rotation=30)
    figure.savefig(folder / "gains.png", dpi=150)

    points = gains_by_size(rows)
    methods = list(points["method"].unique())
    figure = Figure(figsize=(3.5 * max(len(methods), 1), 3.5), layout="constrained")
    panels = figure.subplots(1, max(len(methods), 1), squeeze=False, sharey=True)[0]
    for ax, method in zip(panels, methods, strict=False):
        some = points[points["method"] == method]
        ax.scatter(some["n_labelled"], some["gain"], s=12)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_title(method)
        ax.set_xlabel("labelled cells of the type")
    panels[0].set_ylabel("difference of AUPRC")
    figure.savefig(folder / "by_size.png", dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m sctool_benchmark.contrastive_figures")
    top.add_argument("folder", type=Path, metavar="DIR", help="results of a suite")
    results = top.parse_args(argv).folder / "results.jsonl"
    if not results.is_file():
        print(f"{results.parent} holds no results: run contrastive_nine", file=sys.stderr)
        return 2
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    plot([row for row in rows if row["error"] is None], results.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())

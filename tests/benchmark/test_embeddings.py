"""Pictures of embeddings."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmark.cells import make_adata
from sctool.model import CLUSTER_METHODS, METHODS
from sctool_benchmark import embeddings
from sctool_benchmark._figures import plot_cells


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A pair of ten types' worth of genes under a known name."""
    adata = make_adata(split=True)
    wide = adata[:, np.repeat(np.arange(10), 20)].copy()
    wide.var_names = [f"g{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    wide.X = rng.poisson(np.asarray(wide.X)).astype(np.float32)
    wide.write_h5ad(tmp_path / "cells.h5ad")
    entry = {"mine": {"file": str(tmp_path / "cells.h5ad")}}
    monkeypatch.setattr(embeddings, "known_data", lambda: entry)
    before = dict(METHODS), dict(CLUSTER_METHODS)
    yield tmp_path
    for methods, own in zip((METHODS, CLUSTER_METHODS), before, strict=True):
        methods.clear()
        methods.update(own)


def test_clusters_are_drawn_and_watched(data: Path) -> None:
    out = data / "out"
    words = ["clusters", "--data", "mine", "--methods", "cicl,leiden", "--max-epochs", "5"]
    embeddings.main([*words, "-o", str(out)])
    lines = (out / "epochs.csv").read_text().splitlines()
    assert lines[0] == "epoch,ari,nmi"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert float(lines[-1].split(",")[1]) > 0.8
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"tsne.png", "tsne_epochs.png", "epochs.png"}
    assert "python -m sctool_benchmark.embeddings clusters" in (out / "made_by.md").read_text()


def test_types_are_drawn_by_truth_and_prediction(data: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(embeddings, "plot_cells", lambda rows, path: drawn.append((rows, path)))
    monkeypatch.setattr(embeddings, "umap", lambda z, seed: z[:, :2])
    words = ["types", "--data", "mine", "--methods", "mars", "--hidden", "1", "--max-epochs", "5"]
    embeddings.main([*words, "-o", str(data / "out")])
    (((truth,), (predicted,)), path) = drawn[0]
    assert path.name == "umap.png"
    assert truth[0] == "mars: truth"
    assert predicted[0].startswith("mars: predicted, overall ")
    assert set(truth[2]) - {"unknown"} == {"B", "CD4 T/NK", "DC", "Mono"}
    assert "novel_1" in predicted[2]


def test_a_name_has_one_colour_in_both_rows_and_clusters_have_their_own(tmp_path, monkeypatch):
    drawn: list[tuple[str, tuple[float, ...]]] = []
    own = Axes.scatter

    def scatter(ax, *args, **kwargs):
        drawn.append((kwargs["label"], kwargs["color"]))
        return own(ax, *args, **kwargs)

    monkeypatch.setattr(Axes, "scatter", scatter)
    place = np.zeros((3, 2))

    def colours(*names: list[str]) -> dict[str, set[tuple[float, ...]]]:
        drawn.clear()
        plot_cells([[("", place, np.array(row))] for row in names], tmp_path / "cells.png")
        return {name: {colour for other, colour in drawn if other == name} for name, _ in drawn}

    types = colours(["B", "DC", "T"], ["B", "T", "novel_1"])
    assert all(len(found) == 1 for found in types.values())
    assert len(set.union(*types.values())) == len(types) == 4
    clusters = colours(["10", "2", "2"], ["B", "B", "T"])
    assert list(clusters) == ["2", "10", "B", "T"]
    assert clusters["2"] == clusters["B"]

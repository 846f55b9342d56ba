"""Rivals of scDET that learn from a labelled reference."""

import numpy as np
import pytest
import torch

from sctool import metrics
from sctool.tl import annotate
from sctool_benchmark import Task, _zinb_labelled, split

pytestmark = pytest.mark.usefixtures("registered")
PARTS = ("assigned", "paired", "compact", "mask_estimated", "neighbours", "apart")
FAST = {"enable_progress_bar": False, "max_epochs": 40}


def test_neighbours_are_mutual() -> None:
    near = _zinb_labelled.mutual_neighbours(torch.tensor([[0.0], [1.0], [1.5], [9.0]]), 1)
    expected = torch.zeros(4, 4)
    expected[1, 2] = expected[2, 1] = 1  # 0 is near to 1, but not 1 to 0
    assert torch.equal(near, expected)


def test_half_of_each_cluster_is_confident() -> None:
    z = torch.tensor([[0.0], [1.0], [2.0], [10.0], [9.0]])
    sure = _zinb_labelled.confident(z, torch.tensor([[0.0], [10.0]]), torch.tensor([0, 0, 0, 1, 1]))
    assert sure.tolist() == [True, True, False, True, False]


def test_presets_differ_in_what_the_papers_differ_in() -> None:
    published = _zinb_labelled.PUBLISHED
    used = {
        name: [part for part in PARTS if getattr(settings, part)]
        for name, settings in published.items()
    }
    assert used == {"itclust": ["assigned"], "mars": ["apart"], "scgad": ["mask_estimated"]}
    assert {n for n, s in published.items() if s.likelihood == "mse"} == {"itclust", "mars"}


def test_landmarks_that_push_each_other_away_stay_in_the_embedding(cells) -> None:
    task = Task(name="t", data="t", kind="intra", file="t.h5ad", hidden=0.5)
    parts = split(cells, task, 0)
    train = FAST | {"max_epochs": 80}
    words = {"labels_key": "cell_type", "novel": 2, "key_added": "found", "train_kwargs": train}
    annotate(parts.query, parts.reference, method="rival-mars", **words)
    z = parts.query.obsm["X_found"]
    assert (np.linalg.norm(z, axis=1) <= np.sqrt(z.shape[1]) * 2).all()
    found = parts.query.obs["found"].astype(str)
    assert metrics.overall_accuracy(parts.truth, found, parts.seen) > 0.8


@pytest.mark.parametrize("method", ["itclust", "mars", "scgad"])
def test_known_types_are_named_and_novel_ones_found(cells, method: str) -> None:
    task = Task(name="t", data="t", kind="intra", file="t.h5ad", hidden=0.5)
    parts = split(cells, task, 0)
    n_novel = "auto" if method == "itclust" else len(parts.novel)
    annotate(
        parts.query,
        parts.reference,
        labels_key="cell_type",
        method=f"rival-{method}",
        novel=n_novel,
        key_added="found",
        train_kwargs=FAST | ({"max_epochs": 30} if method != "scgad" else {"max_epochs": 15}),
    )
    found = parts.query.obs["found"].astype(str)
    scores = metrics.summary(parts.truth, found, parts.seen)
    assert scores["seen_accuracy"] > 0.8
    if method == "itclust":  # it knows no novel types
        assert set(found) <= set(parts.seen)
    else:
        assert scores["novel_accuracy"] > 0.6

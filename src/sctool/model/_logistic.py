"""Multinomial logistic regression: the closed-set floor that every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
from torch import Tensor, nn

from sctool._batches import stratified_holdout
from sctool._data import Features, TrainingData
from sctool._data._features import marker_genes
from sctool._docs import docs
from sctool._regression import GENES_GRID, choose_C, cross_entropy, regress, set_linear
from sctool._train import TrainOptions
from sctool.model._base import AnnotationModel, Settings


@dataclass(frozen=True)
class LogisticSettings(Settings):
    """Hyperparameters of the logistic regression.

    Parameters
    ----------
    n_marker_genes
        Of the ``n_top_genes``, keep so many: those that the types of the labelled cells differ in
        most, by the F statistic. None keeps all.
    C
        Inverse strength of the L2 penalty, as in scikit-learn. "auto": of a grid, the one with
        the lowest cross entropy on held-out cells.
    min_type_weight
        A type weighs at least so much, relative to the type of median size: with 0 every cell
        weighs the same, with infinity every type.
    validation
        Share of each type's labelled cells held out to choose ``C``, if it is chosen.
    max_iter
        Iterations of L-BFGS at most.
    """

    n_marker_genes: int | None = None
    C: float | str = 1.0
    min_type_weight: float = 0.0
    validation: float = 0.1
    max_iter: int = 500

    def __post_init__(self) -> None:
        n = self.n_marker_genes
        if n is not None and (not isinstance(n, int) or n < 1):
            raise ValueError(f"n_marker_genes={n!r} must be a whole number above 0, or None.")
        least = self.min_type_weight
        if not isinstance(least, Real) or not least >= 0:
            raise ValueError(f"min_type_weight={least!r} must be a number, 0 or more.")
        C = self.C
        if C != "auto" and not (isinstance(C, Real) and C > 0):
            raise ValueError(f"C={C!r} must be a number above 0, or 'auto'.")


def keep_marker_genes(
    features: Features, x: sp.csr_matrix, data: TrainingData, n: int
) -> sp.csr_matrix:
    """Of the selected genes keep those that the types differ in most; the inputs on these."""
    labelled = np.flatnonzero(data.labels.codes >= 0)
    kept = marker_genes(x[labelled], data.labels.codes[labelled], n)
    features.keep(kept)
    return x[:, kept]


class LinearModule(nn.Module):
    """One linear layer: logits, and the logits again in place of an embedding."""

    def __init__(self, n_input: int, n_classes: int):
        super().__init__()
        self.head = nn.Linear(n_input, n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_cells, n_classes), twice, of log1p values (n_cells, n_genes)."""
        logits = self.head(x)
        return logits, logits


def pick_C(
    C: float | str,
    x: sp.csr_matrix | np.ndarray,
    y: np.ndarray,
    split: tuple[np.ndarray, np.ndarray],
    *,
    min_type_weight: float,
    max_iter: int,
    grid: tuple[float, ...] = GENES_GRID,
) -> tuple[float, list[str]]:
    """``C``, if it is "auto" the one of ``grid`` that does best on held-out cells; and notes.

    Parameters
    ----------
    x, y
        Cells (n_cells, n_input), and the code of each one's name.
    split
        Positions to train on and to hold out.
    """
    if C != "auto":
        return float(C), []
    train, held_out = split
    chosen = choose_C(x, y, train, held_out, max_iter, min_type_weight, grid)
    return chosen, [f"training: C={chosen:g} chosen on {len(held_out)} held-out cells"]


def fit_head(
    head: nn.Linear,
    x: sp.csr_matrix | np.ndarray,
    y: np.ndarray,
    *,
    C: float,
    max_iter: int,
    min_type_weight: float = 0.0,
) -> tuple[pd.DataFrame, list[str]]:
    """Set a linear layer to the regression of names on cells.

    Parameters
    ----------
    x, y
        Inputs of the layer, (n_cells, n_input), and the code of each cell's name.

    Returns
    -------
    The loss, as scvi-tools keeps histories; and notes.
    """
    fitted, notes = regress(x, y, C, max_iter, min_type_weight)
    set_linear(head, fitted)
    n_iter = pd.Index([int(np.max(fitted.n_iter_))], name="epoch")
    return pd.DataFrame({"loss": [cross_entropy(fitted, x, y)]}, index=n_iter), notes


@docs.dedent
class LogisticClassifier(AnnotationModel):
    """Multinomial logistic regression on log1p CP10k.

    The optimum of a convex problem, so scikit-learn's L-BFGS finds it, on all labelled cells at
    once: the result depends on no seed and no number of epochs. Their selected genes are made dense
    for it up to 1 GiB (130,000 cells of 2,000 genes); more stay sparse.

    Parameters
    ----------
    %(adata)s
    preset
        "default" alone.
    %(ignore_case)s
    **settings
        Changes to the preset, fields of :class:`LogisticSettings`.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": LogisticSettings()}
    TRAINER_ARGUMENTS: ClassVar[list[str]] = []
    settings_: LogisticSettings
    module: LinearModule

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return LinearModule(n_input, n_classes)

    def _fit_features(
        self, data: TrainingData
    ) -> tuple[Features, sp.csr_matrix, np.ndarray | None, list[str]]:
        features, x, fill, notes = super()._fit_features(data)
        if (n := self.settings_.n_marker_genes) is not None:
            x = keep_marker_genes(features, x, data, n)
        return features, x, fill, notes

    def _labelled_cells(self) -> tuple[sp.csr_matrix, np.ndarray]:
        """Cells to learn from, CSR (n_cells, n_genes), and the code of each one's type."""
        cells = self._training_cells()
        labelled = np.flatnonzero(cells.arrays["label"] >= 0)
        return cells.x[labelled], cells.arrays["label"][labelled]

    def _train(self, options: TrainOptions) -> None:
        s = self.settings_
        x, y = self._labelled_cells()
        how: dict[str, Any] = {
            "max_iter": options.max_epochs or s.max_iter,
            "min_type_weight": s.min_type_weight,
        }
        C, chosen = pick_C(s.C, x, y, stratified_holdout(y, s.validation), **how)
        loss, notes = fit_head(self.module.head, x, y, C=C, **how)
        self.audit_ += chosen + notes
        self.history_ = {"supervised_train": loss}

"""Multinomial logistic regression, the closed-set baseline."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from torch import Tensor, nn

from sctool._batches import stratified_holdout
from sctool._checks import AnyWeight, Count, Part, Positive
from sctool._data import Features, TrainingData
from sctool._data._features import marker_genes
from sctool._docs import docs
from sctool._regression import (
    GENES_GRID,
    MIN_TYPE_WEIGHT,
    choose_C,
    cross_entropy,
    regress,
    set_linear,
    type_weights,
)
from sctool._train import TrainOptions
from sctool.model._base import AnnotationModel, Settings


@dataclass(frozen=True)
class LogisticSettings(Settings):
    """Hyperparameters of :class:`LogisticClassifier`.

    Parameters
    ----------
    n_marker_genes
        Number of the ``n_top_genes`` to keep: those with the largest F statistic between the types
        of the labelled cells; where cells are held out, they are chosen again without these. None
        keeps all.
    C
        Inverse strength of the L2 penalty, as in scikit-learn. None is 100 over the number of
        labelled cells; "auto" chooses the value with the lowest cross entropy on held-out cells
        from a grid.
    min_type_weight
        Minimum total weight of a type, relative to the type of median size: 0 weights all cells
        equally, infinity all types.
    validation
        Share of each type's labelled cells held out to choose ``C`` if it is "auto".
    max_iter
        Maximum number of iterations of L-BFGS.
    """

    n_marker_genes: Count | None = None
    C: Positive | Literal["auto"] | None = None
    min_type_weight: AnyWeight = MIN_TYPE_WEIGHT
    validation: Part = 0.1
    max_iter: Count = 500


@dataclass(frozen=True)
class MarkerCandidates:
    """Labelled cells on all genes that the ``n`` marker genes are chosen from.

    Parameters
    ----------
    x, y
        Log1p values, CSR (n_cells, n_genes), and type codes, (n_cells,).
    """

    x: sp.csr_matrix
    y: np.ndarray
    n: int

    def genes(self, some: np.ndarray) -> np.ndarray:
        """Positions of the marker genes that only some of the cells choose."""
        return marker_genes(self.x[some], self.y[some], self.n)

    def inputs(self, some: np.ndarray) -> sp.csr_matrix:
        """All cells on the marker genes that only some of them choose, CSR (n_cells, n)."""
        return self.x[:, self.genes(some)]


class LinearModule(nn.Module):
    """One linear layer; its logits also serve as the embedding."""

    def __init__(self, n_input: int, n_classes: int):
        super().__init__()
        self.head = nn.Linear(n_input, n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_cells, n_classes) of log1p values (n_cells, n_genes), returned twice."""
        logits = self.head(x)
        return logits, logits


def pick_C(
    C: float | str | None,
    x: sp.csr_matrix | np.ndarray,
    y: np.ndarray,
    split: tuple[np.ndarray, np.ndarray],
    candidates: MarkerCandidates | None = None,
    *,
    min_type_weight: float,
    max_iter: int,
    grid: tuple[float, ...] = GENES_GRID,
) -> tuple[float | None, list[str]]:
    """Return ``C``, or if it is "auto" the best of ``grid`` on held-out cells; and audit notes.

    Parameters
    ----------
    x, y
        Inputs, (n_cells, n_input), and type codes, (n_cells,).
    split
        Positions of the training and of the held-out cells.
    candidates
        Replace ``x`` by the marker genes that the training cells choose of these.
    """
    if C is None or isinstance(C, Real):
        return C, []
    train, held_out = split
    if candidates is not None:
        x = candidates.inputs(train)
    chosen = choose_C(x, y, train, held_out, max_iter, min_type_weight, grid)
    return chosen, [f"training: C={chosen:g} chosen on {len(held_out)} held-out cells"]


def shares_in_training(y: np.ndarray, n_types: int, min_type_weight: float) -> list[float]:
    """Share of each type of the total weight of the cells, which the probabilities follow.

    Parameters
    ----------
    y
        Type codes, (n_cells,).
    """
    n = np.bincount(y, minlength=n_types)
    share = n * type_weights(np.maximum(n, 1), min_type_weight)
    return (share / share.sum()).tolist()


def fit_head(
    head: nn.Linear,
    x: sp.csr_matrix | np.ndarray,
    y: np.ndarray,
    *,
    C: float | None,
    max_iter: int,
    min_type_weight: float = 0.0,
) -> tuple[pd.DataFrame, list[str]]:
    """Set a linear layer to a logistic regression fitted to cells.

    Parameters
    ----------
    x, y
        Inputs of the layer, (n_cells, n_input), and type codes, (n_cells,).

    Returns
    -------
    The loss in the format of scvi-tools' histories, and audit notes.
    """
    fitted, notes = regress(x, y, C, max_iter, min_type_weight)
    set_linear(head, fitted)
    n_iter = pd.Index([int(np.max(fitted.n_iter_))], name="epoch")
    return pd.DataFrame({"loss": [cross_entropy(fitted, x, y)]}, index=n_iter), notes


class MarkerGenesModel(AnnotationModel):
    """Base of the models that may use marker genes only.

    Genes that were chosen with a cell's label reveal that label, whatever is fitted to them. So
    wherever cells are held out, the genes are chosen again without them: if the labels are random,
    these cells are then right by chance only.
    """

    settings_: LogisticSettings
    #: None if all genes are used.
    _candidates: MarkerCandidates | None = None

    def _keep_marker_genes(
        self,
        features: Features,
        x: sp.csr_matrix,
        data: TrainingData,
        some: np.ndarray | None = None,
    ) -> sp.csr_matrix:
        """Keep the genes that differ most between types; return the inputs on these.

        ``some`` are the positions, among the labelled cells, of those that choose; default all.
        """
        n = self.settings_.n_marker_genes
        if n is None or n >= x.shape[1]:
            return x
        labelled = np.flatnonzero(data.labels.codes >= 0)
        self._candidates = MarkerCandidates(x[labelled], data.labels.codes[labelled], n)
        kept = self._candidates.genes(np.arange(len(labelled)) if some is None else some)
        features.keep(kept)
        return x[:, kept]

    def _drop_cells(self) -> None:
        super()._drop_cells()
        self._candidates = None


@docs.dedent
class LogisticClassifier(MarkerGenesModel):
    """Multinomial logistic regression on log1p CP10k.

    A convex problem, solved by scikit-learn's L-BFGS on all labelled cells at once: the result
    does not depend on a seed or on a number of epochs. Inputs of up to 1 GiB (130,000 cells of
    2,000 genes) are made dense for the fit; larger ones stay sparse.

    Parameters
    ----------
    %(adata)s
    preset
        "default" is the only one.
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
        return features, self._keep_marker_genes(features, x, data), fill, notes

    def _labelled_cells(self) -> tuple[sp.csr_matrix, np.ndarray]:
        """Labelled cells, CSR (n_cells, n_genes), and their type codes."""
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
        split = stratified_holdout(y, s.validation)
        C, chosen = pick_C(s.C, x, y, split, self._candidates, **how)
        loss, notes = fit_head(self.module.head, x, y, C=C, **how)
        self.audit_ += chosen + notes
        self.class_shares_ = shares_in_training(y, len(self.classes_), s.min_type_weight)
        self.history_ = {"supervised_train": loss}

"""Multinomial logistic regression: the closed-set floor that every other method has to beat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from sctool.model._base import AnnotationModel, Settings


@dataclass(frozen=True)
class LogisticSettings(Settings):
    """Hyperparameters of the logistic regression.

    Parameters
    ----------
    C
        Inverse strength of the L2 penalty, as in scikit-learn.
    max_iter
        Iterations of L-BFGS at most.
    """

    C: float = 1.0
    max_iter: int = 500


def regress(
    x: sp.csr_matrix, y: np.ndarray, C: float, max_iter: int
) -> tuple[LogisticRegression, list[str]]:
    """Fit scikit-learn's regression of codes ``y`` on cells ``x``; says if it did not converge."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = LogisticRegression(C=C, max_iter=max_iter).fit(x, y)
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        return fitted, [f"training: not converged after {max_iter} iterations of L-BFGS"]
    return fitted, []


def weights(fitted: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_types, n_genes) and biases (n_types,) of a regression, also of one on two types.

    There scikit-learn has a single score, for the second type.
    """
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:
        weight, bias = np.vstack([-weight, weight]) / 2, np.r_[-bias, bias] / 2
    return weight, bias


class LinearModule(nn.Module):
    """One linear layer; its logits are all there is to embed a cell in."""

    def __init__(self, n_input: int, n_classes: int):
        super().__init__()
        self.head = nn.Linear(n_input, n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, twice; (n_cells, n_classes)."""
        logits = self.head(x)
        return logits, logits


class LOGISTIC(AnnotationModel):
    """Multinomial logistic regression on log1p CP10k.

    The optimum of a convex problem, so scikit-learn's L-BFGS finds it, on all labelled cells at
    once and without densifying them: the result depends on no seed and no number of epochs.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    preset
        "default" alone.
    ignore_case
        Compare gene names without regard to case.
    **settings
        Changes to the preset: see :class:`LogisticSettings`.
    """

    PRESETS: ClassVar[dict[str, LogisticSettings]] = {"default": LogisticSettings()}
    settings_: LogisticSettings
    module: LinearModule

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return LinearModule(n_input, n_classes)

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int | None = None,
        enable_progress_bar: bool = True,
    ) -> None:
        """Fit the weights to the labelled cells.

        Parameters
        ----------
        max_epochs
            Iterations of L-BFGS at most; default: the settings' ``max_iter``.
        accelerator, devices, batch_size, enable_progress_bar
            As other models take them; the CPU sees all cells at once.
        """
        x, y = self._examples(enable_progress_bar)
        max_iter = self.settings_.max_iter if max_epochs is None else max_epochs
        fitted, notes = regress(x, y, self.settings_.C, max_iter)
        self.audit_ += notes
        weight, bias = weights(fitted)
        head = self.module.head
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
        proba = fitted.predict_proba(x)[np.arange(len(y)), y]
        loss = -np.log(np.clip(proba, 1e-12, None)).mean()
        n_iter = pd.Index([int(np.max(fitted.n_iter_))], name="epoch")
        self.history_ = {
            "supervised_train": pd.DataFrame({"supervised_train": [loss]}, index=n_iter)
        }
        self.module.eval()
        self.is_trained_ = True

    def _examples(self, progress: bool) -> tuple[sp.csr_matrix, np.ndarray]:
        """Cells to learn from, CSR (n_cells, n_genes), and the code of each one's name."""
        cells = self._training_cells()
        labelled = np.flatnonzero(cells.arrays["label"] >= 0)
        return cells.x[labelled], cells.arrays["label"][labelled]

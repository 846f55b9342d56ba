"""sskm: semi-supervised k-means; labelled cells determine the centres of the known types.

Developed for this package: a simple open-world baseline without a network. ``docs/methods/sskm.md``
describes the algorithm and its limitations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.metrics import pairwise_distances_argmin
from sklearn.metrics.pairwise import euclidean_distances
from torch import Tensor, nn

from sctool import novelty
from sctool._checks import Count, Positive, Whole
from sctool._docs import docs
from sctool._neighbors import fit_pca
from sctool._regression import regress, weights
from sctool._train import TrainOptions, numpy_generator
from sctool.model._base import OpenWorldModel, Settings

#: Maximum iterations of k-means; it stops when no assignment changes.
MAX_ROUNDS = 100


@dataclass(frozen=True)
class SSKMSettings(Settings):
    """Hyperparameters of :class:`SSKM`.

    Parameters
    ----------
    n_novel
        Number of novel groups; None estimates it, 0 disables the search.
    n_components
        Number of principal components, of reference and query together.
    n_init
        Number of restarts; the one with the lowest inertia is kept.
    C, max_iter
        Inverse strength of the L2 penalty of the regression, and maximum iterations of L-BFGS.
    """

    n_novel: Whole | None = None
    n_components: Count = 20
    n_init: Count = 10
    C: Positive = 1.0
    max_iter: Count = 500


@dataclass(frozen=True)
class Clustering:
    """Result of k-means.

    Attributes
    ----------
    centres
        (n_groups, n_latent): known types, then novel groups.
    codes
        Group of each cell, (n_cells,).
    inertia
        Sum of squared distances of cells to the centres of their groups, after each iteration.
    converged
        Whether the last iteration changed no assignment.
    """

    centres: np.ndarray
    codes: np.ndarray
    inertia: list[float]
    converged: bool


def scatter_centres(
    z: np.ndarray, centres: np.ndarray, n_novel: int, rng: np.random.Generator
) -> np.ndarray:
    """Add ``n_novel`` centres, drawn from cells by k-means++, (n_centres + n_novel, n_latent).

    The probability of a cell is proportional to its squared distance to the nearest centre.
    """
    if not n_novel:
        return centres
    nearest = euclidean_distances(z, centres, squared=True).min(axis=1)
    for _ in range(n_novel):
        total = nearest.sum()
        drawn = z[[rng.choice(len(z), p=nearest / total if total > 0 else None)]]
        centres = np.concatenate([centres, drawn])
        nearest = np.minimum(nearest, euclidean_distances(z, drawn, squared=True)[:, 0])
    return centres


def update_centres(z: np.ndarray, codes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Means of the groups, (n_groups, n_latent); an empty group keeps its centre."""
    n = np.bincount(codes, minlength=len(centres))
    cells = np.arange(len(codes))
    members = sp.csr_matrix((np.ones(len(codes)), (codes, cells)), shape=(len(n), len(codes)))
    return np.where(n[:, None] > 0, members @ z / np.maximum(n, 1)[:, None], centres)


def cluster(
    z: np.ndarray,
    labels: np.ndarray,
    n_novel: int,
    rng: np.random.Generator,
    n_init: int = 10,
    max_rounds: int = MAX_ROUNDS,
) -> Clustering:
    """K-means in which labelled cells stay in the group of their label.

    Parameters
    ----------
    z
        Labelled and unlabelled cells, (n_cells, n_latent).
    labels
        Codes of the known types from 0 without gaps, (n_cells,); -1 for unlabelled cells.
    n_novel
        Number of further groups, of unlabelled cells only.
    n_init
        Number of restarts, each with other initial centres of the further groups.
    max_rounds
        Maximum iterations of assignment and update in each.
    """
    free = np.flatnonzero(labels < 0)
    n_novel = min(n_novel, len(free))
    n_known = labels.max() + 1
    means = np.stack([z[labels == code].mean(axis=0) for code in range(n_known)])
    best = None
    for _ in range(n_init if n_novel else 1):
        centres = scatter_centres(z[free], means, n_novel, rng)
        codes, inertia, converged = labels, [], False
        for _ in range(max_rounds):
            before, codes = codes, labels.copy()
            if len(free):
                codes[free] = pairwise_distances_argmin(z[free], centres)
            centres = update_centres(z, codes, centres)
            inertia.append(float(((z - centres[codes]) ** 2).sum()))
            converged = np.array_equal(codes, before)
            if converged:
                break
        if best is None or inertia[-1] < best.inertia[-1]:
            best = Clustering(centres, codes, inertia, converged)
    if best is None:
        raise ValueError(f"n_init={n_init!r}: at least 1 is needed.")
    return best


class CentresModule(nn.Module):
    """An affine map to the joint representation, and the centres of the groups.

    The groups are treated as spherical Gaussians of equal variance and weight. The probability of
    group ``k`` is then the softmax of ``-|z - c_k|^2 / (2 s)``. The logits omit ``-|z|^2 / (2 s)``,
    which is the same for all groups, so that they are linear in the genes.

    Parameters
    ----------
    n_input, n_latent, n_groups
        Numbers of genes, latent dimensions and groups.
    """

    centres: Tensor  # (n_groups, n_latent)
    variance: Tensor  # of a group, per dimension, ()

    def __init__(self, n_input: int, n_latent: int, n_groups: int):
        super().__init__()
        self.project = nn.Linear(n_input, n_latent)
        self.register_buffer("centres", torch.zeros(n_groups, n_latent))
        self.register_buffer("variance", torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_cells, n_groups) and representation (n_cells, n_latent) of inputs."""
        z = self.project(x)
        logits = z @ self.centres.T - self.centres.square().sum(dim=1) / 2
        return logits / self.variance, z


@docs.dedent
class SSKM(OpenWorldModel):
    """Semi-supervised k-means on principal components and the logits of a regression.

    Labelled cells stay with the centre of their type; query cells are assigned to the nearest
    centre, of a known type or of a novel group.

    Parameters
    ----------
    %(adata)s
    preset
        "default" is the only one.
    %(ignore_case)s
    **settings
        Changes to the preset, fields of :class:`SSKMSettings`.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": SSKMSettings()}
    TRAINER_ARGUMENTS: ClassVar[list[str]] = []
    settings_: SSKMSettings
    module: CentresModule

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        # Few cells have fewer components: the remaining dimensions stay 0.
        return CentresModule(n_input, self.settings_.n_components + len(self.classes_), n_classes)

    def _train(self, options: TrainOptions) -> None:
        """Fit the representation and the centres; ``max_epochs`` limits the k-means iterations."""
        rng = numpy_generator()
        cells = self._training_cells()
        labels = cells.arrays["label"]
        weight, bias = self._representation(cells.x, labels, int(rng.integers(2**31)))
        n_novel = self.settings_.n_novel
        if n_novel is None:
            n_novel = self._estimate(cells.x, labels, rng, options.progress)
        max_rounds = options.max_epochs or MAX_ROUNDS
        z = cells.x @ weight.T + bias
        found = cluster(z, labels, n_novel, rng, self.settings_.n_init, max_rounds)
        if not found.converged:
            self.audit_.append(f"training: not converged after {max_rounds} iterations of k-means")

        n_known = len(self.classes_)
        sizes = np.bincount(found.codes, minlength=len(found.centres))[n_known:]
        by_size = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
        if self.settings_.n_novel:
            self.audit_.append(f"novel: number of types: {len(by_size)}, requested: {n_novel}")
        self._name_novel(len(by_size))
        self._build()
        centres = found.centres[np.r_[np.arange(n_known), n_known + by_size]]
        varying = max(int(np.count_nonzero(z.var(axis=0))), 1)
        variance = found.inertia[-1] / (len(z) * varying)
        with torch.no_grad():
            self.module.project.weight.copy_(torch.from_numpy(weight))
            self.module.project.bias.copy_(torch.from_numpy(bias))
            self.module.centres.copy_(torch.from_numpy(centres))
            # above 0 even if all cells coincide with their centres
            self.module.variance.fill_(max(variance, 1e-6))
        rounds = pd.RangeIndex(1, len(found.inertia) + 1, name="epoch")
        self.history_ = {
            "inertia_train": pd.DataFrame({"inertia_train": found.inertia}, index=rounds)
        }

    def _representation(
        self, x: sp.csr_matrix, labels: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit the affine map of cells to the joint representation.

        Principal components of all cells and the logits of a regression on the labelled ones, each
        block centred and scaled to a total variance of 1 over all cells. The components capture
        variation without a label in the reference, the logits what separates its types.

        Returns
        -------
        Weights (n_latent, n_genes) and biases (n_latent,), float64.
        """
        s = self.settings_
        labelled = np.flatnonzero(labels >= 0)
        fitted, notes = regress(x[labelled], labels[labelled], s.C, s.max_iter)
        self.audit_ += notes
        pca = fit_pca(x, s.n_components, seed)
        components = np.zeros((s.n_components, x.shape[1]))
        components[: pca.n_components_] = pca.components_
        blocks = []
        for weight in (components, weights(fitted)[0]):
            total = (x @ weight.T).var(axis=0).sum()
            blocks.append(weight / np.sqrt(total) if total > 0 else weight)
        weight = np.concatenate(blocks)
        return weight, -weight @ pca.mean_

    def _estimate(
        self, x: sp.csr_matrix, labels: np.ndarray, rng: np.random.Generator, progress: bool
    ) -> int:
        """Estimate the number of novel groups as in scDET; the audit has its interval."""
        labelled, free = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
        found = novelty.find(x[labelled], labels[labelled], x[free], None, rng, progress)
        self.audit_.append(found.audit[-1])
        if found.sought:
            self.n_novel_ = found.interval
        return found.n

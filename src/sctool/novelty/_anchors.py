"""Evidence of novelty that survives a batch effect: groups of the query compared with each other.

A batch effect separates all cells of a query from the reference, but not from each other. Of the
groups that resemble the same known type, the one closest to it is taken for that type: its anchor.
Another group is novel as far as it differs from this anchor as two types of the reference differ.
``docs/methods/auto.md`` describes the algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import expit, logit

from sctool._neighbors import group_means, leiden, neighbor_graph
from sctool.novelty._n_types import TypeSeparation
from sctool.novelty._programmes import programme_scores, programme_slopes

N_NEIGHBORS = 15
#: Leiden resolutions. No single one suits both rare and common types, so the evidence is averaged.
RESOLUTIONS = (1.0, 2.0, 3.0, 4.0, 6.0)
#: The resolution whose groups serve for names and for the search for a second batch.
MAIN = 3.0
#: Groups whose mean probability of a type is at least this are of that type.
SURE = 0.7
#: With fewer anchors than this, the shift cannot be told from what the types deviate.
FEW_ANCHORS = 3
#: Rounds in which the shift of the query and the anchors are estimated in turn.
ROUNDS = 3
#: Rounds in which the evidence of a cell is averaged with that of its neighbours.
SMOOTHING = 2
#: Groups with more evidence than this may belong to a second batch if their profiles, centred among
#: themselves, correlate by ``ALIKE`` with at least ``SEVERAL`` known types. The batches must have
#: ``COMMON`` types in common. Smaller groups than ``MIN_GROUP`` are ignored.
SUSPECT, ALIKE, SEVERAL, COMMON, MIN_GROUP = -1.5, 0.5, 3, 4, 15
#: Share of a squared distance that is left at least when the errors of the means are subtracted.
MIN_LEFT = 0.3
#: Keeps the log odds finite.
MARGIN = 0.01


def _log_odds(p: np.ndarray) -> np.ndarray:
    """Log odds of probabilities, kept finite."""
    return logit(MARGIN + (1 - 2 * MARGIN) * p)


def means_and_errors(x: sp.csr_matrix, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each group, and by how much it may be off.

    Parameters
    ----------
    x, codes
        Cells, CSR (n_cells, n_genes), and the group of each, (n_cells,).

    Returns
    -------
    Means, (n_groups, n_genes), and their squared standard errors, summed over genes, (n_groups,).
    """
    n, means = np.bincount(codes), group_means(x, codes)
    norm = np.asarray(x.multiply(x).sum(axis=1)).ravel()
    squared = group_means(norm[:, None], codes)[:, 0] - (means**2).sum(axis=1)
    variance = np.maximum(squared, 0) * n / np.maximum(n - 1, 1)
    # A single cell says nothing about how cells of its group vary.
    others = np.average(variance, weights=n - 1) if (n > 1).any() else 0.0
    return means, np.where(n > 1, variance, others) / n


@dataclass(frozen=True)
class Groups:
    """Groups of a query's cells at one resolution.

    Attributes
    ----------
    codes
        Group of each cell, (n_cells,).
    means
        Mean log1p CP10k of each group, (n_groups, n_genes), less what stress and the cell cycle
        explain of it.
    proba
        Mean probability of the known types, (n_groups, n_types).
    apart
        Probability that two groups are of different types, (n_groups, n_groups).
    error
        Of ``means``, see :func:`means_and_errors`, (n_groups,).
    """

    codes: np.ndarray
    means: np.ndarray
    proba: np.ndarray
    apart: np.ndarray
    error: np.ndarray

    def types(self, profiles: np.ndarray) -> np.ndarray:
        """Known type of each group, (n_groups,), by its mean probability and its profile.

        A shift can mislead a regression about whole groups, but hardly changes by what a group
        deviates from the others.

        Parameters
        ----------
        profiles
            Mean log1p CP10k of the known types, (n_types, n_genes). Types whose profile is NaN are
            left out, as if the reference did not have them.
        """
        possible = np.flatnonzero(~np.isnan(profiles[:, 0]))
        likeness = self.proba[:, possible]
        if min(likeness.shape) > 1:
            own, known = (m - m.mean(axis=0) for m in (self.means, profiles[possible]))
            alike = np.corrcoef(own, known)[: len(own), len(own) :]
            unsure = likeness.max(axis=1) < SURE
            likeness = likeness + alike * unsure[:, None]
        return possible[likeness.argmax(axis=1)]

    def evidence(self, profiles: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Evidence that each group is novel, (n_groups,).

        The log odds that the group and its anchor are of different types, plus the logarithm of how
        much further the group is from its type than anchors usually are, if there are at least
        three. The second term also concerns anchors: a novel type may be the only group that
        resembles a type.

        Parameters
        ----------
        profiles
            See :meth:`types`.
        error
            Of the profiles, see :func:`means_and_errors`, (n_types,).
        """
        types = self.types(profiles)
        residual = self.means - profiles[types]
        shift = np.zeros(self.means.shape[1])
        best: dict[int, int] = {}
        for _ in range(ROUNDS):
            squared = ((residual - shift) ** 2).sum(axis=1)
            for t in np.unique(types):
                groups = np.flatnonzero(types == t)
                best[t] = groups[squared[groups].argmin()]
            anchors = list(best.values())
            # The median over types: a type that the query lacks does not distort the shift.
            shift = np.median(residual[anchors], axis=0)
        log_odds = _log_odds(self.apart[np.arange(len(types)), [best[t] for t in types]])
        if len(anchors) < FEW_ANCHORS:  # the shift would be that of the anchors themselves
            return log_odds
        # Means of few cells lie far apart by chance. (As anchors, well measured groups are better.)
        squared = ((residual - shift) ** 2).sum(axis=1)
        distance = np.maximum(squared - self.error - error[types], MIN_LEFT * squared) + 1e-6
        return log_odds + np.log(distance / np.median(distance[anchors]))


@dataclass(frozen=True)
class QueryGroups:
    """Groups of a query at several resolutions, and the graph of its cells.

    Attributes
    ----------
    groups
        One for each of ``RESOLUTIONS``.
    smoother
        Row-normalised weights of each cell's neighbours, CSR (n_cells, n_cells).
    """

    groups: list[Groups]
    smoother: sp.csr_matrix

    @property
    def main(self) -> Groups:
        """The groups at the resolution ``MAIN``."""
        return self.groups[RESOLUTIONS.index(MAIN)]

    def evidence(self, profiles: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Evidence that each cell is novel, (n_cells,): that on its groups and its neighbours'.

        Parameters
        ----------
        profiles, error
            See :meth:`Groups.evidence`.
        """
        mean = np.mean([g.evidence(profiles, error)[g.codes] for g in self.groups], axis=0)
        for _ in range(SMOOTHING):
            mean = (mean + self.smoother @ mean) / 2
        return mean

    def second_batch(self, profiles: np.ndarray, error: np.ndarray) -> np.ndarray | None:
        """Cells of a second batch, a mask (n_cells,); None if there is none.

        A second batch, as of another technology, is far from the anchors, all of which the batch
        closer to the reference provides. Unlike novel types, its groups resemble several known
        types once their common difference is removed.

        Parameters
        ----------
        profiles, error
            See :meth:`Groups.evidence`.
        """
        g = self.main
        n = np.bincount(g.codes)
        far = group_means(self.evidence(profiles, error)[:, None], g.codes)[:, 0] > SUSPECT
        suspects = np.flatnonzero(far & (n >= MIN_GROUP))
        if len(suspects) < SEVERAL:
            return None
        own = g.means[suspects] - np.average(g.means[suspects], axis=0, weights=n[suspects])
        correlation = np.corrcoef(own, profiles - profiles.mean(axis=0))[: len(own), len(own) :]
        matched = correlation.argmax(axis=1)[correlation.max(axis=1) > ALIKE]
        if len(np.unique(matched)) < SEVERAL:
            return None
        # Groups of a batch have in common by what they deviate from their types.
        types, large = g.types(profiles), n >= MIN_GROUP
        residual = g.means - profiles[types]
        second = np.isin(np.arange(len(n)), suspects)
        for _ in range(ROUNDS):
            if second.all() or not second.any():
                return None
            first_shift, second_shift = (np.median(residual[s], axis=0) for s in (~second, second))
            to_first = ((residual - first_shift) ** 2).sum(axis=1)
            second = ((residual - second_shift) ** 2).sum(axis=1) < to_first
        in_both = np.intersect1d(types[second & large], types[~second & large])
        return second[g.codes] if len(in_both) >= COMMON else None


def group_query(
    x: sp.csr_matrix,
    z: np.ndarray,
    proba: np.ndarray,
    separations: Sequence[TypeSeparation],
    seed: int,
    programmes: Sequence[np.ndarray] = (),
) -> QueryGroups:
    """Group the cells of a query.

    Parameters
    ----------
    x, z
        Query, log1p CP10k, CSR (n_cells, n_genes), and its principal components, (n_cells,
        n_components).
    proba
        Probabilities of the known types, (n_cells, n_types).
    separations
        Of types. The log odds that two groups are of different types are averaged over them.
    programmes
        Positions of genes, see :func:`sctool.novelty.programme_genes`. By what cells that are alike
        differ with them is taken out of the groups' means: a state is no type.
    """
    # UMAP weights: an anchor of a few cells must form its own group.
    graph = neighbor_graph(z, N_NEIGHBORS, seed, "umap")
    at = [leiden(graph, resolution, seed + i) for i, resolution in enumerate(RESOLUTIONS)]
    scores = programme_scores(x, programmes)
    # Within groups as well: the novel cells among those of a predicted type differ from the others.
    within = np.unique(np.stack([proba.argmax(axis=1), at[0]]), axis=1, return_inverse=True)[1]
    slopes = programme_slopes(x, scores, within.ravel())
    groups = []
    for codes in at:
        means, error = means_and_errors(x, codes)
        means = means - group_means(scores, codes) @ slopes
        apart = expit(np.mean([_log_odds(s.distance(means)) for s in separations], axis=0))
        groups.append(Groups(codes, means, group_means(proba, codes), apart, error))
    weights = graph.obsp["connectivities"]
    total = np.maximum(np.asarray(weights.sum(axis=1)).ravel(), 1e-9)
    return QueryGroups(groups, sp.csr_matrix(sp.diags(1 / total) @ weights))

"""Clusters of a query's cells, each judged as a whole to be of a known or of a novel type.

``docs/methods/gate.md`` describes the evidence and why it is relative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sctool._neighbors import group_means, leiden, neighbor_graph, principal_components
from sctool._progress import progress as progress_bar
from sctool.novelty._episodes import MIN_CELLS, hide_types

#: Number of principal components.
N_COMPONENTS = 30
#: Leiden resolution of the clusters; high, so that a cluster contains a single type.
RESOLUTION = 2.0
#: Number of training episodes, and maximum number of cells in each.
EPISODES, EPISODE_CELLS = 12, 2500
#: Standard deviation of the log factors applied to the genes of the query in episodes, in turn.
SHIFTS = (0.0, 0.2, 0.4)
#: Share of a cluster's cells that must agree on a type for it to be assigned to all of them.
MAJORITY = 0.7
EVIDENCE = (
    "log_probability",
    "margin",
    "agreement",
    "correlation",
    "correlation_gap",
    "nearness",
    "anchor_correlation",
    "anchor_correlation_gap",
    "anchor_connectivity",
    "is_anchor",
)


@dataclass(frozen=True)
class JudgedClusters:
    """Clusters of a query and the evidence on each.

    Attributes
    ----------
    codes
        Cluster of each cell, (n_cells,).
    evidence
        (n_clusters, len(EVIDENCE)); higher values mean more similar to a known type.
    known_as
        Code of the best known type of each cell, (n_cells,).
    """

    codes: np.ndarray
    evidence: np.ndarray
    known_as: np.ndarray


def fit_regression(x_ref: sp.csr_matrix, labels: np.ndarray, C: float = 1.0) -> LogisticRegression:
    """Fit the regression used as evidence; less exact than the one that assigns types."""
    return LogisticRegression(C=C, max_iter=200, tol=1e-3).fit(x_ref, labels)


def judge(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    seed: int,
    *,
    regression: LogisticRegression,
    n_components: int = N_COMPONENTS,
    resolution: float = RESOLUTION,
) -> JudgedClusters:
    """Cluster the cells of a query and compute the evidence on each cluster.

    A batch effect shifts all clusters, so the evidence is relative. Of the clusters that resemble
    the same type, the most similar one is its anchor; the others are compared with it, both in
    their similarity to the type and within the query.

    Parameters
    ----------
    x_ref
        Reference, log1p CP10k, CSR (n_ref, n_genes).
    labels
        Its type codes from 0, (n_ref,).
    x
        Query, CSR (n_cells, n_genes).
    regression
        Result of :func:`fit_regression` on the reference.
    n_components, resolution
        Number of principal components and Leiden resolution of the clusters.
    """
    z = principal_components(x, n_components, seed)
    # UMAP weights: an anchor of a few cells must form its own cluster.
    codes = leiden(neighbor_graph(z, 15, seed, "umap"), resolution, seed)
    n_groups = codes.max() + 1

    logits = regression.decision_function(x)
    if logits.ndim == 1:
        logits = np.stack([-logits, logits], axis=1) / 2
    log_proba = log_softmax(logits, axis=1)
    second, first = np.sort(log_proba, axis=1)[:, -2:].T
    # Profiles relative to the mean of their own side cancel effects common to all types.
    ref_profile, profile = group_means(x_ref, labels), group_means(x, codes)
    ref_profile -= ref_profile.mean(axis=0)
    # A single cluster is itself the mean of the query: use the mean of the reference.
    profile -= profile.mean(axis=0) if n_groups > 1 else group_means(x_ref, labels).mean(axis=0)
    correlation = np.corrcoef(profile, ref_profile)[:n_groups, n_groups:]
    within = np.corrcoef(profile) if n_groups > 1 else np.ones((1, 1))
    # A shift can mislead the regression on whole clusters, but not the profile.
    n_types = logits.shape[1]
    agreement = group_means(np.eye(n_types)[logits.argmax(axis=1)], codes)
    looks_like = (agreement + correlation).argmax(axis=1)
    # The cluster's type is assigned to all its cells if they agree or the profile overrules them.
    decided = (agreement.max(axis=1) >= MAJORITY) | (agreement.argmax(axis=1) != looks_like)
    known_as = np.where(decided[codes], looks_like[codes], logits.argmax(axis=1))

    joint = principal_components(sp.vstack([x_ref, x], format="csr"), n_components, seed)
    to_ref = NearestNeighbors(n_neighbors=min(10, len(labels))).fit(joint[: len(labels)])
    to_own = NearestNeighbors(n_neighbors=min(10, len(codes) - 1)).fit(joint[len(labels) :])
    nearness = np.log(to_own.kneighbors()[0].mean(axis=1) + 1e-6) - np.log(
        to_ref.kneighbors(joint[len(labels) :])[0].mean(axis=1) + 1e-6
    )
    rows = np.arange(n_groups)
    absolute = np.stack(
        [
            group_means(first[:, None], codes)[:, 0],
            group_means((np.exp(first) - np.exp(second))[:, None], codes)[:, 0],
            agreement[rows, looks_like],
            correlation[rows, looks_like],
            [_gap(correlation[g], looks_like[g]) for g in rows],
            group_means(nearness[:, None], codes)[:, 0],
        ],
        axis=1,
    )
    spread = absolute.std(axis=0) + 1e-6
    # One measure of each kind: regression, profile, nearest cells.
    which = [EVIDENCE.index(name) for name in ("log_probability", "correlation", "nearness")]
    likeness = ((absolute - absolute.mean(axis=0)) / spread)[:, which].sum(axis=1)
    types = np.unique(looks_like)
    anchor = {t: rows[looks_like == t][likeness[looks_like == t].argmax()] for t in types}

    neighbors = NearestNeighbors(n_neighbors=min(15, len(z) - 1)).fit(z).kneighbors()[1]
    edges = np.zeros((n_groups, n_groups))
    np.add.at(edges, (codes[:, None], codes[neighbors]), 1)
    edges += edges.T
    degree = edges.sum(axis=1)
    connectivity = np.log(edges * degree.sum() / np.outer(degree, degree) + 0.01)

    evidence = np.zeros((n_groups, len(EVIDENCE)))
    for g in rows:
        own = anchor[looks_like[g]]
        alike = looks_like == looks_like[g]
        rivals = [anchor[t] for t in types if t != looks_like[g]]
        evidence[g, :6] = absolute[g] - absolute[alike].max(axis=0)
        evidence[g, 6] = within[g, own]
        evidence[g, 7] = within[g, own] - max((within[g, r] for r in rivals), default=0)
        # The value for the anchor itself only has to exceed that of any two clusters.
        evidence[g, 8] = connectivity[g, own] if own != g else np.log(10)
        evidence[g, 9] = own == g
    return JudgedClusters(codes, evidence, known_as)


def _gap(values: np.ndarray, column: int) -> float:
    others = np.delete(values, column)
    return float(values[column] - others.max()) if len(others) else 0.0


def shift_genes(x: sp.csr_matrix, sd: float, rng: np.random.Generator) -> sp.csr_matrix:
    """Simulate a batch effect: multiply each gene by a random factor."""
    if sd == 0:
        return x
    y = x.copy()
    y.data = np.expm1(y.data)
    total = np.asarray(y.sum(axis=1)).ravel()
    y = sp.csr_matrix(y.multiply(np.exp(sd * rng.standard_normal(x.shape[1]))[None, :]))
    after = np.asarray(y.sum(axis=1)).ravel()
    y.data *= np.repeat(total / np.where(after > 0, after, 1), np.diff(y.indptr))
    y.data = np.log1p(y.data).astype(np.float32)
    return y


def learn_to_judge(
    x: sp.csr_matrix,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    C: float = 1.0,
    n_components: int = N_COMPONENTS,
    resolution: float = RESOLUTION,
    episodes: int = EPISODES,
    episode_cells: int = EPISODE_CELLS,
    progress: bool = False,
) -> Pipeline | None:
    """Learn from the reference to recognise clusters of novel types.

    Parameters
    ----------
    x, labels
        Reference, log1p CP10k, CSR (n_ref, n_genes), and its type codes from 0.
    C
        Passed to :func:`fit_regression`.
    episodes, episode_cells
        Number of episodes with hidden types, and maximum number of cells in each.

    Returns
    -------
    A classifier from :attr:`JudgedClusters.evidence` to the probability of being novel; None if
    the episodes had no known or no novel clusters, as with fewer than three types.
    """
    evidence, novel, weight = [], [], []
    bar = progress_bar(range(episodes), desc="hiding types", enabled=progress)
    for i in bar:
        episode = hide_types(labels, rng, episode_cells)
        ref, query = episode.reference, episode.query
        if len(episode.known) < 2 or len(query) < MIN_CELLS // 2:
            continue
        codes = np.searchsorted(episode.known, labels[ref])
        moved = shift_genes(x[query], SHIFTS[i % len(SHIFTS)], rng)
        judged = judge(
            x[ref],
            codes,
            moved,
            int(rng.integers(2**31)),
            regression=fit_regression(x[ref], codes, C),
            n_components=n_components,
            resolution=resolution,
        )
        is_novel = ~np.isin(labels[query], episode.known)
        share = group_means(is_novel[:, None], judged.codes)[:, 0]
        clear = (share < 0.3) | (share > 0.7)  # mixed clusters are neither
        evidence.append(judged.evidence[clear])
        novel.append(share[clear] > 0.5)
        weight.append(np.sqrt(np.bincount(judged.codes)[clear]))
    if not novel or len(np.unique(np.concatenate(novel))) < 2:
        return None
    w = np.concatenate(weight)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.3, class_weight="balanced", max_iter=1000)
    )
    return model.fit(
        np.concatenate(evidence),
        np.concatenate(novel),
        logisticregression__sample_weight=w / w.mean(),
    )

"""gate: the query's own groups, each judged as a whole to be of a known type or of none.

Ours, and without a deep network: the floor that open-world methods have to beat.
``docs/methods/gate.md`` says what each piece of evidence is and why it is relative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from sctool.model._base import OpenWorldModel
from sctool.model._logistic import LOGISTIC
from sctool.model._parting import (
    group_means,
    learn_parting,
    leiden,
    neighbour_graph,
    note_on_number,
    part,
    principal_components,
)
from sctool.model._regression import LogisticSettings

#: Fewer unlabelled cells than this are not searched: their groups are of too few cells to judge.
MIN_CELLS = 200
#: Standard deviations of the genes' log factors between the two sides of the episodes, in turn.
SHIFTS = (0.0, 0.2, 0.4)
#: Share of a group's cells whose common type is given to all of them.
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
class GateSettings(LogisticSettings):
    """Hyperparameters of the gate.

    Parameters
    ----------
    n_novel
        Number of novel groups; None estimates it, 0 seeks none.
    n_components
        Principal components that cells are compared on.
    resolution
        Of the groups that are judged (Leiden); fine, so that a group is of one type.
    episodes, episode_cells
        How often reference types are hidden to learn from, and cells used each time at most.
    threshold
        A group is novel if its probability of being novel is above this.
    """

    n_novel: int | None = None
    n_components: int = 30
    resolution: float = 2.0
    episodes: int = 12
    episode_cells: int = 2500
    threshold: float = 0.5


@dataclass(frozen=True)
class Groups:
    """The groups of a query, and the evidence on each.

    Attributes
    ----------
    codes
        Group of each cell, (n_cells,).
    evidence
        (n_groups, len(EVIDENCE)): the higher, the more the group resembles a known type.
    known_as
        Code of the type that each cell has if its group is known, (n_cells,).
    """

    codes: np.ndarray
    evidence: np.ndarray
    known_as: np.ndarray


def _gap(values: np.ndarray, column: int) -> float:
    others = np.delete(values, column)
    return float(values[column] - others.max()) if len(others) else 0.0


def regression(
    x_ref: sp.csr_matrix, labels: np.ndarray, settings: GateSettings
) -> LogisticRegression:
    """The regression by which groups are judged; rougher than one that names cells."""
    return LogisticRegression(C=settings.C, max_iter=200, tol=1e-3).fit(x_ref, labels)


def judge(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    settings: GateSettings,
    seed: int,
    fitted: LogisticRegression | None = None,
) -> Groups:
    """Group the cells of a query and gather the evidence on each group.

    A constant difference between the two sides moves all groups alike, so nothing is compared in
    absolute terms. Of the groups that look most like one type, the best stands for it (the
    anchor); the others are set beside it, and beside what the query alone says of the two.

    Parameters
    ----------
    x_ref
        Reference, log1p CP10k, CSR (n_ref, n_genes).
    labels
        Its types as codes from 0, (n_ref,).
    x
        Query, CSR (n_cells, n_genes).
    fitted
        :func:`regression` on the reference, if there is one already.
    """
    z = principal_components(x, settings.n_components, seed)
    # An anchor may be of a few cells: it has to be a group of its own.
    codes = leiden(neighbour_graph(z, 15, seed, "umap"), settings.resolution, seed)
    n_groups = codes.max() + 1

    if fitted is None:
        fitted = regression(x_ref, labels, settings)
    logits = fitted.decision_function(x)
    if logits.ndim == 1:
        logits = np.stack([-logits, logits], axis=1) / 2
    log_proba = log_softmax(logits, axis=1)
    second, first = np.sort(log_proba, axis=1)[:, -2:].T
    # Profiles against the mean of their own side: what a technology adds to all types cancels.
    ref_profile, profile = group_means(x_ref, labels), group_means(x, codes)
    ref_profile -= ref_profile.mean(axis=0)
    # (of a single group there is no mean but its own)
    profile -= profile.mean(axis=0) if n_groups > 1 else group_means(x_ref, labels).mean(axis=0)
    correlation = np.corrcoef(profile, ref_profile)[:n_groups, n_groups:]
    within = np.corrcoef(profile) if n_groups > 1 else np.ones((1, 1))
    # A shift may turn the regression's head on whole groups, but not the profile.
    n_types = logits.shape[1]
    agreement = group_means(np.eye(n_types)[logits.argmax(axis=1)], codes)
    looks_like = (agreement + correlation).argmax(axis=1)
    # A group that is of one mind, or whose profile overrules the regression, decides for its cells.
    decided = (agreement.max(axis=1) >= MAJORITY) | (agreement.argmax(axis=1) != looks_like)
    known_as = np.where(decided[codes], looks_like[codes], logits.argmax(axis=1))

    joint = principal_components(sp.vstack([x_ref, x], format="csr"), settings.n_components, seed)
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
    # One measure of each kind: the regression, the profile, the nearest cells.
    which = [EVIDENCE.index(name) for name in ("log_probability", "correlation", "nearness")]
    likeness = ((absolute - absolute.mean(axis=0)) / spread)[:, which].sum(axis=1)
    types = np.unique(looks_like)
    anchor = {t: rows[looks_like == t][likeness[looks_like == t].argmax()] for t in types}

    neighbours = NearestNeighbors(n_neighbors=min(15, len(z) - 1)).fit(z).kneighbors()[1]
    edges = np.zeros((n_groups, n_groups))
    np.add.at(edges, (codes[:, None], codes[neighbours]), 1)
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
        # An anchor's connection with itself only has to be above that of any two groups.
        evidence[g, 8] = connectivity[g, own] if own != g else np.log(10)
        evidence[g, 9] = own == g
    return Groups(codes, evidence, known_as)


def shifted(x: sp.csr_matrix, sd: float, rng: np.random.Generator) -> sp.csr_matrix:
    """The cells as another technology might show them: each gene times a factor of its own."""
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


def learn(
    x: sp.csr_matrix,
    labels: np.ndarray,
    settings: GateSettings,
    rng: np.random.Generator,
    progress: bool = False,
) -> Pipeline | None:
    """Learn from the reference what tells a novel group from a known one.

    In each episode half of the cells play the reference and half the query, and up to four fifths
    of the types are hidden from the former. None if no episode had groups of both kinds, as with
    fewer than three types.
    """
    n_types = labels.max() + 1
    evidence, novel, weight = [], [], []
    episodes = tqdm(range(settings.episodes), "hiding types", leave=False, disable=not progress)
    for episode in episodes:
        cells = rng.permutation(len(labels))[: settings.episode_cells]
        n_hidden = min(int(rng.integers(0, max(int(0.8 * n_types), 1) + 1)), n_types - 2)
        hidden = rng.permutation(n_types)[: max(n_hidden, 0)]
        in_ref = rng.random(len(cells)) < 0.5
        ref, query = cells[in_ref & ~np.isin(labels[cells], hidden)], cells[~in_ref]
        seen, codes = np.unique(labels[ref], return_inverse=True)
        if len(seen) < 2 or len(query) < MIN_CELLS // 2:
            continue
        moved = shifted(x[query], SHIFTS[episode % len(SHIFTS)], rng)
        groups = judge(x[ref], codes, moved, settings, int(rng.integers(2**31)))
        share = group_means(~np.isin(labels[query], seen)[:, None], groups.codes)[:, 0]
        clear = (share < 0.3) | (share > 0.7)  # what a mixed group is has no answer
        evidence.append(groups.evidence[clear])
        novel.append(share[clear] > 0.5)
        weight.append(np.sqrt(np.bincount(groups.codes)[clear]))
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


class GATE(OpenWorldModel, LOGISTIC):
    """Groups of the query judged as a whole, then logistic regression on known and novel types.

    The query's neighbour graph is cut into small groups. Each is judged by evidence whose weights
    are learnt by hiding reference types in turn. The cells of groups judged novel are grouped
    again, as coarsely as the reference's types are, and stand as further types beside the
    reference's in a logistic regression that names every cell.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    preset
        "default" alone.
    ignore_case
        Compare gene names without regard to case.
    **settings
        Changes to the preset: see ``sctool.model._gate.GateSettings``.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": GateSettings()}
    settings_: GateSettings

    def _examples(self, progress: bool) -> tuple[sp.csr_matrix, np.ndarray]:
        """The reference and, once its groups are judged, the query under the names found.

        The cells of known groups are learnt from as well: were the novel types the only ones with
        cells of the query, whatever sets the query apart would make a cell novel.
        """
        x_ref, y = super()._examples(progress)
        cells = self._training_cells()
        x = cells.x[np.flatnonzero(cells.arrays["label"] < 0)]
        found = None
        if self.settings_.n_novel != 0:
            # torch's generator is the one that annotate() seeds
            rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
            found = self._name_cells(x_ref, y, x, rng, progress)
        if found is not None:
            x_ref, y = sp.vstack([x_ref, x], format="csr"), np.concatenate([y, found])
        self._name_novel(int(y.max()) + 1 - len(self.classes_))
        self._build()
        return x_ref, y

    def _name_cells(
        self,
        x_ref: sp.csr_matrix,
        y: np.ndarray,
        x: sp.csr_matrix,
        rng: np.random.Generator,
        progress: bool,
    ) -> np.ndarray | None:
        """Codes of the unlabelled cells, (n_cells,): known types, then novel groups by size.

        None if they cannot be judged.
        """
        s = self.settings_
        if x.shape[0] < MIN_CELLS:
            self.audit_.append(
                f"novel: not sought, {x.shape[0]} cells are too few to form groups "
                f"({MIN_CELLS} are needed)"
            )
            return None
        if (x.max(axis=0) != x.min(axis=0)).nnz == 0:
            self.audit_.append("novel: not sought, all cells of the query are alike")
            return None
        gate = learn(x_ref, y, s, rng, progress)
        if gate is None:
            self.audit_.append(
                "novel: not sought, the reference has too few types or cells to learn from by "
                "hiding some"
            )
            return None
        groups = judge(x_ref, y, x, s, int(rng.integers(2**31)))
        proba = gate.predict_proba(groups.evidence)[:, 1]
        accepted = proba > s.threshold
        if s.n_novel and not accepted.any():
            accepted = proba == proba.max()
        cells = np.flatnonzero(accepted[groups.codes])
        if not len(cells):
            self.audit_.append("novel: no group of cells was found to be of no known type")
            self.n_novel_ = {"n": 0, "low": 0, "high": 1}
            return groups.known_as
        parting = learn_parting(x_ref, y, rng)
        parts, low, high = part(x[cells], parting, s.n_novel, int(rng.integers(2**31)))
        n = int(parts.max()) + 1
        if s.n_novel is None:
            self.n_novel_ = {"n": n, "low": low, "high": high}
        self.audit_.append(note_on_number(n, low, high, s.n_novel))
        named = groups.known_as.copy()
        named[cells] = len(self.classes_) + parts
        return named

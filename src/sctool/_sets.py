"""Prediction sets, and names that are as specific as a chosen risk of error allows.

Split-conformal prediction (Vovk, Gammerman & Shafer 2005): cells of known type that the model was
not trained on say how often, and by how much, its probabilities are wrong. If they and the query
are exchangeable (drawn alike), what holds for them at a risk holds for the query at that risk,
whatever the model: a poor one has large sets and coarse names, not wrong ones. Under a shift
between the two the guarantee is approximate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import linkage
from scipy.optimize import nnls

#: Safe name of a cell for which no type can be ruled out.
UNKNOWN = "unknown"
#: Joins the names of a group of types that has no name of its own.
JOIN = " / "
#: Up to this share of a type's cells may lie outside the coarser type that holds the others:
#: mislabelled cells. With more of them the columns of labels are not levels of one hierarchy.
STRAY = 0.05
#: Bands of confidence: quantiles of the highest probability of the calibration cells. Finer among
#: the cells that the model is unsure of, which hold most of its errors.
BANDS = (0.15, 0.3, 0.5)


# -- Calibration ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Held-out cells, from which thresholds follow for any risk and any hierarchy.

    Two plain arrays, to be kept with a model.

    Parameters
    ----------
    proba
        Probabilities of each type for cells that the model was not trained on, (n_cells, n_types).
    codes
        Their true types, columns of ``proba``, (n_cells,).

    Raises
    ------
    ValueError
        If the arrays do not fit together or hold other values than these.
    """

    proba: np.ndarray
    codes: np.ndarray

    def __post_init__(self) -> None:
        _check_proba(self.proba, np.shape(self.proba)[-1])
        if np.shape(self.codes) != (len(self.proba),):
            raise ValueError(
                f"codes has shape {np.shape(self.codes)}, but proba has {len(self.proba)} cells. "
                "Pass one code per cell."
            )
        if not np.isin(self.codes, np.arange(self.proba.shape[1])).all():
            raise ValueError(
                f"codes holds values outside 0 to {self.proba.shape[1] - 1}, the columns of proba. "
                "Leave out cells without a known type."
            )


def _check_proba(proba: np.ndarray, n_types: int) -> None:
    if np.ndim(proba) != 2 or proba.shape[1] != n_types:
        raise ValueError(
            f"proba has shape {np.shape(proba)}; it must be cells x types, with {n_types} types."
        )
    sums = proba.sum(axis=1)
    if not ((proba >= 0).all() and np.allclose(sums, 1, atol=1e-3)):
        raise ValueError(
            "proba holds rows that are not probabilities: they must be at least 0 and sum to 1, "
            f"but the smallest value is {proba.min():.3g} and the sums are {sums.min():.3g} to "
            f"{sums.max():.3g}."
        )


def thresholds(
    scores: np.ndarray,
    codes: np.ndarray,
    n_types: int,
    risk: float,
    *,
    by_type: bool,
) -> np.ndarray:
    """Largest score at which a type still counts as possible, for each type, (n_types,).

    The ``(1 - risk)`` quantile of the scores of the calibration cells, to which the unknown score
    of the cell to be named is added as infinity. ``n`` cells can therefore support a risk of
    ``1 / (n + 1)`` or more; below that the threshold is infinite, and every type possible.

    Parameters
    ----------
    scores
        Score of the true type of each calibration cell, (n_cells,), large if it seems unlikely.
    codes
        True types, (n_cells,).
    risk
        Greatest share of cells whose true type may be missed, between 0 and 1.
    by_type
        Whether a type whose own cells can support the risk, ``risk * (n + 1) >= 1``, has a
        threshold from these alone. The risk then holds within such a type, also if it is rare.
        The others share the threshold of all cells.

    Raises
    ------
    ValueError
        If ``risk`` is not between 0 and 1.
    """
    if not 0 < risk < 1:
        raise ValueError(f"risk={risk!r} must lie between 0 and 1, for example 0.05.")
    found = np.full(n_types, _quantile(scores, risk))
    if by_type:
        for k in range(n_types):
            own = scores[codes == k]
            if risk * (len(own) + 1) >= 1 - 1e-9:
                found[k] = _quantile(own, risk)
    return found


def _quantile(scores: np.ndarray, risk: float) -> float:
    """``(1 - risk)`` quantile of the scores and infinity."""
    # the tolerance is for products that are whole but for rounding
    rank = int(np.ceil((1 - risk) * (len(scores) + 1) - 1e-9))
    return float(np.append(np.sort(scores), np.inf)[max(rank, 1) - 1])


def label_shift(proba: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Estimate the share of each type in a query relative to the calibration cells, (n_types,).

    If types differ between the two in their shares alone, then the mean probabilities of the query
    are those of the calibration cells of each type, mixed by the query's shares. The weights solve
    this by non-negative least squares (black-box shift estimation, Lipton et al. 2018), drawn
    towards 1 the more, the fewer cells there are (Azizzadenesheli et al. 2019).

    Cells of types that the calibration does not hold, and shifts of expression, bias the weights:
    leave novel cells out.

    Parameters
    ----------
    proba
        Probabilities of the query's cells, (n_cells, n_types).
    """
    n_types = calibration.proba.shape[1]
    _check_proba(proba, n_types)
    true = np.eye(n_types)[calibration.codes]
    joint = calibration.proba.T @ true / len(true)  # predicted x true, sums to 1
    # A type without calibration cells has a weight of 1; elsewhere relative errors count.
    noise = 1 / len(true) + 1 / max(len(proba), 1)
    pull = np.sqrt(noise * (true.mean(axis=0) + noise))
    mean = proba.mean(axis=0) if len(proba) else joint.sum(axis=1)
    return nnls(np.vstack([joint, np.diag(pull)]), np.r_[mean, pull])[0]


# -- Sets ----------------------------------------------------------------------------------------


def prediction_sets(
    proba: np.ndarray,
    calibration: Calibration,
    risk: float,
    *,
    by_type: bool = True,
) -> np.ndarray:
    """Types that are possible for each cell at a risk of error, (n_cells, n_types), bool.

    The true type is in the set for at least ``1 - risk`` of the cells, and ``by_type`` of the
    cells of each type that has enough calibration cells; see :func:`thresholds`.

    A type is in the set if its probability reaches the type's threshold (least ambiguous sets,
    Sadinle, Lei & Wasserman 2019). At equal coverage they are small, and the same cells have the
    same sets; adaptive sets (Romano, Sesia & Candès 2020) need randomisation to be as small, and
    regularised ones have two settings of their own.

    The most probable type is always in the set. This can only raise the coverage; a set that would
    be empty is that of an atypical cell, which is for novelty and the safe name to judge.

    Parameters
    ----------
    proba
        Probabilities of the query's cells, (n_cells, n_types).
    calibration
        Held-out cells with probabilities of the same model.
    risk, by_type
        As in :func:`thresholds`.

    Raises
    ------
    ValueError
        If an argument is out of range or the types differ in number.
    """
    _check_proba(proba, calibration.proba.shape[1])
    found = thresholds(
        1 - _of_true(calibration.proba, calibration.codes),
        calibration.codes,
        proba.shape[1],
        risk,
        by_type=by_type,
    )
    sets = 1 - proba <= found
    sets[np.arange(len(proba)), proba.argmax(axis=1)] = True
    return sets


def _of_true(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The value of each cell in the column of its type."""
    return values[np.arange(len(codes)), codes]


# -- Hierarchies ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hierarchy:
    """Groups of types, nested in one another, from all types down to each one.

    Two plain arrays, to be kept with a model. Made by :meth:`from_parents`, :meth:`from_groups`,
    :meth:`from_levels` or :meth:`from_profiles`.

    Parameters
    ----------
    names
        Name of each node, (n_nodes,). The first is the root, all types, called "unknown".
    members
        Which types belong to each node, (n_nodes, n_types), bool. A node comes after those that
        contain it.
    """

    names: np.ndarray
    members: np.ndarray

    @property
    def specificity(self) -> np.ndarray:
        """Share of the other types that the name of each node rules out, (n_nodes,).

        1 for a single type, 0 for the root.
        """
        n_types = self.members.shape[1]
        return (n_types - self.members.sum(axis=1)) / max(n_types - 1, 1)

    def lowest(self, sets: np.ndarray) -> np.ndarray:
        """The smallest node that contains each set, (n_sets,), from sets (n_sets, n_types)."""
        node = np.zeros(len(sets), dtype=int)
        for i, inside in enumerate(self.members):
            node[~sets[:, ~inside].any(axis=1)] = i
        return node

    @classmethod
    def from_parents(cls, types: Sequence[str], parents: Mapping[str, str]) -> Hierarchy:
        """Build a hierarchy from the parent of each type, and of parents, to any depth.

        Types without a parent lie directly below the root. A parent of all types, or of a single
        one, tells nothing more than the root or the type, and has no node.

        Parameters
        ----------
        types
            Names of the types in the order of the model's output, (n_types,).
        parents
            ``{child: parent}``.

        Raises
        ------
        ValueError
            If a child is neither a type nor a parent of one, a parent has the name of a type, or a
            name lies above itself.
        """
        if stray := sorted(set(parents) - set(types) - set(parents.values())):
            raise ValueError(
                f"hierarchy has a parent for {stray!r}, which are neither cell types of the "
                f"reference nor parents of one. Cell types: {_listed(types)}."
            )
        if both := sorted(set(parents.values()) & set(types)):
            raise ValueError(
                f"hierarchy has {both!r} as parents, but these are cell types of the reference "
                "themselves, and one name cannot mean both. Rename the parents or the types."
            )
        groups: dict[str, np.ndarray] = {}
        for start in [*types, *parents]:
            above = [start]
            while above[-1] in parents:
                above.append(parents[above[-1]])
                if above[-1] in above[:-1]:
                    raise ValueError(
                        "hierarchy has a cycle, so that names lie above themselves: "
                        f"{' -> '.join(map(repr, above))}. Remove one of these parents."
                    )
            for parent in above[1:]:
                groups.setdefault(parent, np.zeros(len(types), dtype=bool))
                groups[parent] |= np.asarray(types) == start
        # lower ones first
        return cls._build(types, sorted(groups.items(), key=lambda group: int(group[1].sum())))

    @classmethod
    def from_groups(
        cls, types: Sequence[str], groups: Sequence[tuple[str, Collection[str]]]
    ) -> Hierarchy:
        """Build a hierarchy from names and types of groups that are nested or disjoint.

        Parameters
        ----------
        types
            Names of the types in the order of the model's output, (n_types,).
        groups
            Name and types of each group, which need not all be among ``types``.
        """
        inside = {name: np.isin(types, list(own)) for name, own in groups}
        return cls._build(types, [(name, own) for name, own in inside.items() if own.any()])

    @classmethod
    def from_levels(
        cls, types: Sequence[str], labels: pd.DataFrame | np.ndarray
    ) -> tuple[Hierarchy, list[str]]:
        """Build a hierarchy from several labels of the same cells, from coarse to fine.

        A type belongs to the coarser type of nearly all of its cells. Up to 5 % may lie elsewhere:
        they are taken as mislabelled, and noted.

        Parameters
        ----------
        types
            Names of the types in the order of the model's output, (n_types,).
        labels
            Columns from coarse to fine, (n_cells, n_levels); the last holds ``types``. Missing
            values are left out.

        Returns
        -------
        The hierarchy, and audit notes.

        Raises
        ------
        ValueError
            If a type lies in two coarser ones, groups overlap without one containing the other, or
            a name stands for two different groups.
        """
        labels = pd.DataFrame(labels)
        fine = labels.iloc[:, -1]
        groups: list[tuple[str, np.ndarray]] = []
        notes: list[str] = []
        for level in range(labels.shape[1] - 2, -1, -1):
            coarse = labels.iloc[:, level]
            column = labels.columns[level]
            holders: dict[str, np.ndarray] = {}
            for k, name in enumerate(types):
                n = coarse[(fine == name).to_numpy()].astype(object).value_counts()
                if not len(n):
                    continue
                n_stray = int(n.iloc[1:].sum())
                if n_stray > STRAY * n.sum():
                    raise ValueError(
                        f"Cell type {name!r} lies in several types of the coarser labels "
                        f"{column!r}: {n.to_dict()!r}. Give its parts names of their own, or leave "
                        "out this column."
                    )
                if n_stray:
                    notes.append(
                        f"hierarchy: {name!r} lies in {n.index[0]!r} of {column!r}, although "
                        f"{n_stray} of its {n.sum()} cells are labelled otherwise"
                    )
                holders.setdefault(str(n.index[0]), np.zeros(len(types), dtype=bool))[k] = True
            groups.extend(holders.items())
        return cls._build(types, groups), notes

    @classmethod
    def from_profiles(cls, types: Sequence[str], profiles: np.ndarray) -> Hierarchy:
        """Learn a hierarchy from the reference: join the most similar types, step by step.

        Average linkage of correlation distances. Inner nodes are called by their members. A tree
        of the types that a model confuses would cost further fits.

        Parameters
        ----------
        types
            Names of the types in the order of the model's output, (n_types,).
        profiles
            Mean expression of each type (n_types, n_genes), log1p CP10k.
        """
        centred = profiles - profiles.mean(axis=1, keepdims=True)
        # (a type without any variation is as far from all others as unrelated ones are)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        unit = centred / np.where(length > 0, length, 1)
        distance = np.clip(1 - unit @ unit.T, 0, None)
        members = list(np.eye(len(types), dtype=bool))
        for a, b in linkage(distance[np.triu_indices(len(types), 1)], "average")[:, :2].astype(int):
            members.append(members[a] | members[b])
        inner = members[len(types) :]
        return cls._build(
            types,
            [
                (name, inside)
                for inside in inner
                # (a type may be called "T / NK" beside "T" and "NK")
                if (name := JOIN.join(np.asarray(types)[inside])) not in types
            ],
        )

    @classmethod
    def _build(cls, types: Sequence[str], groups: Sequence[tuple[str, np.ndarray]]) -> Hierarchy:
        """Order nodes, the root first; of equal groups, the first one names the node."""
        if UNKNOWN in types or UNKNOWN in dict(groups):
            raise ValueError(
                f"{UNKNOWN!r} is the name of cells for which no type can be ruled out, and cannot "
                "be that of a type or of a group of types. Rename it, or leave its cells out."
            )
        nodes = {UNKNOWN: np.ones(len(types), dtype=bool)}
        nodes |= dict(zip(types, np.eye(len(types), dtype=bool), strict=True))
        for name, inside in groups:
            for other, theirs in nodes.items():
                if name == other and (inside != theirs).any():
                    raise ValueError(
                        f"hierarchy has two different groups of types called {name!r}: "
                        f"{_listed(types, inside)} and {_listed(types, theirs)}. Rename one."
                    )
                shared = inside & theirs
                if shared.any() and (shared != inside).any() and (shared != theirs).any():
                    raise ValueError(
                        f"hierarchy has groups that overlap, but neither contains the other: "
                        f"{name!r} ({_listed(types, inside)}) and {other!r} "
                        f"({_listed(types, theirs)}). Leave one of the levels out."
                    )
            if not any((inside == theirs).all() for theirs in nodes.values()):
                nodes[name] = inside
        members = np.array(list(nodes.values()))
        order = np.argsort(-members.sum(axis=1), kind="stable")
        return cls(np.array(list(nodes), dtype=object)[order], members[order])


def _listed(types: Sequence[str], inside: np.ndarray | slice = slice(None)) -> str:
    return ", ".join(map(repr, np.asarray(types, dtype=object)[inside]))


# -- Safe names ----------------------------------------------------------------------------------


def safe_names(
    proba: np.ndarray,
    calibration: Calibration,
    hierarchy: Hierarchy,
    risk: float,
    *,
    by_confidence: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The most specific name of each cell that holds at a risk of error.

    At most a share ``risk`` of the cells has a name that does not contain the true type, and
    ``by_confidence`` at most that share of the cells about which the model is equally sure.

    From the most probable type upwards, the name is the lowest node of the hierarchy whose
    probability, summed over its types, exceeds a threshold. As nodes on the way up contain one
    another, the error can only fall with the threshold, and calibration cells give the smallest one
    that keeps to the risk (conformal risk control, Angelopoulos et al. 2022, with the error of the
    *name* as the loss; it equals split-conformal prediction with the probability of the largest
    node on the way that misses the type as its score). The lowest node around a prediction set
    keeps to the risk as well, but contains more than the set does, and is less specific than need
    be.

    Thresholds ``by_confidence`` come from the calibration cells in the same band of the highest
    probability (:data:`BANDS`; Mondrian categories, Vovk et al. 2005). With one threshold for all
    cells, those that are easy pay for those that are not: where the labels are right often enough,
    each cell has the name of a type, also one of a probability of 0.4; and a query with more of
    such cells than the reference breaks the risk. Bands make names less specific where nothing
    shifts, and keep closer to the risk where the query has more of the cells that are difficult.

    Parameters
    ----------
    proba
        Probabilities of the query's cells, (n_cells, n_types).
    calibration
        Held-out cells with probabilities of the same model.
    hierarchy
        Of the same types.
    risk
        As in :func:`thresholds`.
    by_confidence
        Whether each band of confidence has a threshold of its own.

    Returns
    -------
    Names (n_cells,), "unknown" at the root, and their specificity (n_cells,): the share of the
    other types that they rule out, 1 for a type and 0 for "unknown".

    Raises
    ------
    ValueError
        If an argument is out of range or the types differ in number.
    """
    n_types = calibration.proba.shape[1]
    _check_proba(proba, n_types)
    if hierarchy.members.shape[1] != n_types:
        raise ValueError(
            f"hierarchy has {hierarchy.members.shape[1]} types, but the probabilities are of "
            f"{n_types}. Build it from the model's types."
        )
    codes = calibration.codes
    scores = _of_true(_missed_mass(calibration.proba, hierarchy), codes)
    confidence = calibration.proba.max(axis=1)
    # (few cells have few bands: each must be able to support the risk twice over)
    edges = np.quantile(confidence, BANDS) if by_confidence else np.array([])
    while len(edges) and _smallest(np.digitize(confidence, edges), len(edges)) * risk < 2:
        edges = edges[1:]
    found = np.array(
        [
            thresholds(scores[band], codes[band], n_types, risk, by_type=False)
            for band in np.digitize(confidence, edges) == np.arange(len(edges) + 1)[:, None]
        ]
    )
    band = np.digitize(proba.max(axis=1), edges)
    node = hierarchy.lowest(_missed_mass(proba, hierarchy) <= found[band])
    return hierarchy.names[node], hierarchy.specificity[node]


def _smallest(codes: np.ndarray, last: int) -> int:
    return int(np.bincount(codes, minlength=last + 1).min())


def _missed_mass(proba: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    """Probability of the largest node around the most probable type that misses each type.

    (n_cells, n_types); 0 for the most probable type itself.
    """
    top = proba.argmax(axis=1)
    mass = np.zeros(proba.shape)
    for inside in hierarchy.members:
        below = proba[:, inside].sum(axis=1, dtype=float) * inside[top]
        np.maximum(mass, below[:, None], out=mass, where=~inside)
    return mass

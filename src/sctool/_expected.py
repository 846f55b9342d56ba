"""Types that may be in a query, and their shares: probabilities under that knowledge.

Probabilities of a classifier hold for types as frequent as in its training. If a query differs from
that in the shares alone, Bayes' rule multiplies each by the new share over the old one (Saerens,
Latinne & Decaestecker 2002). Types that cannot be there have a share of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Self

import numpy as np

#: A cell is unexpected if more than this probability lies on types that cannot be there.
UNEXPECTED = 0.5


@dataclass(frozen=True)
class Expected:
    """Types that may be in a query.

    Attributes
    ----------
    names
        The types.
    shares
        Their shares, which sum to 1; None if these are unknown.
    """

    names: list[str]
    shares: list[float] | None

    @classmethod
    def read(cls, allowed: Any, prior: Any, types: Sequence[str]) -> Self | None:
        """Check what users say about a query; None if that is nothing.

        Parameters
        ----------
        allowed, prior
            As in :func:`sctool.tl.annotate`.
        types
            Names of the types that there are to choose from.

        Raises
        ------
        TypeError
            ``allowed`` is not a list, or ``prior`` not a dictionary of numbers.
        ValueError
            Both are given; there is nothing in them; a type is unknown or named twice; shares are
            not numbers that are finite, 0 or more, and not all 0.
        """
        if allowed is None and prior is None:
            return None
        if allowed is not None and prior is not None:
            raise ValueError(
                "allowed and prior were both given: pass one of them. Types that prior does not "
                "name are not allowed."
            )
        if prior is None:
            if isinstance(allowed, str | bytes | Mapping) or not isinstance(allowed, Iterable):
                raise TypeError(f"allowed={allowed!r}: pass a list of names of cell types.")
            names = list(dict.fromkeys(map(str, allowed)))
            cls._check_names("allowed", names, types)
            return cls(names, None)
        if not isinstance(prior, Mapping):
            raise TypeError(f"prior={prior!r}: pass a dictionary, {{cell type: share}}.")
        given = list(map(str, prior))
        cls._check_names("prior", given, types)
        if len(set(given)) < len(given):
            raise ValueError(f"prior={prior!r} names a type more than once.")
        try:
            if any(isinstance(share, bool | np.bool_ | str) for share in prior.values()):
                raise TypeError
            shares = np.array([float(share) for share in prior.values()])
        except (TypeError, ValueError):
            raise TypeError(f"prior={prior!r}: the shares must be numbers.") from None
        if not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
            raise ValueError(
                f"prior={prior!r}: the shares must be finite, 0 or more, and not all 0. They need "
                "not sum to 1."
            )
        shares /= shares.max()  # sums of large numbers are infinite
        shares /= shares.sum()
        present = np.flatnonzero(shares)
        names = [str(name) for name, share in zip(prior, shares, strict=True) if share]
        return cls(names, shares[present].tolist())

    @staticmethod
    def _check_names(argument: str, names: list[str], types: Sequence[str]) -> None:
        if not names:
            raise ValueError(f"{argument} is empty: name at least one cell type, or pass None.")
        unknown = [name for name in names if name not in types]
        if not unknown:
            return
        lower = {name.lower(): name for name in types}
        hints = []
        for name in unknown:
            close = [lower[found] for found in get_close_matches(name.lower(), lower)]
            hints.append(
                f"{name!r}" + (f" (close: {', '.join(map(repr, close))})" if close else "")
            )
        raise ValueError(
            f"{argument} names types that the model does not know: {', '.join(hints)}. It knows "
            f"{len(types)}: {', '.join(map(repr, types[:50]))}{', ...' if len(types) > 50 else ''}."
        )

    def apply(
        self, proba: np.ndarray, classes: Sequence[str], usual: np.ndarray | None
    ) -> tuple[np.ndarray, Fit]:
        """Probabilities under this knowledge, and how well the cells fit it.

        Parameters
        ----------
        proba
            Probabilities of the known types, (n_cells, n_types), and of any novel groups in further
            columns, which stay as they are.
        classes
            Names of the known types.
        usual
            Their shares in training, (n_types,); None for equal ones. Of no use without ``shares``.

        Raises
        ------
        ValueError
            None of the types is among ``classes``.
        """
        n = len(classes)
        given = dict(zip(self.names, self.shares or [1.0] * len(self.names), strict=True))
        expected = np.array([given.get(name, 0.0) for name in classes])
        if not expected.any():
            raise ValueError(f"None of the allowed types {self.names!r} could be learnt.")
        weights = expected
        if self.shares is not None and usual is not None:
            weights = expected / np.maximum(usual, 1e-12)
        known = proba[:, :n]
        total = np.maximum(known.sum(axis=1), 1e-12)
        elsewhere = np.where(weights > 0, 0, known)
        mean = known[proba.argmax(axis=1) < n].sum(axis=0)
        fit = Fit(
            weights,
            elsewhere.sum(axis=1) / total,
            elsewhere.argmax(axis=1),
            None if self.shares is None else expected / expected.sum(),
            mean / max(mean.sum(), 1e-12),
        )
        return np.hstack([fit.reweigh(known), proba[:, n:]]), fit


@dataclass(frozen=True)
class Fit:
    """How the cells of a query fit what is expected of it.

    Attributes
    ----------
    weights
        Factor of the probability of each type, (n_types,); 0 if it cannot be there.
    outside
        Share of the probability of the known types that lay on types that cannot be there,
        (n_cells,).
    other
        Code of the most probable of these, (n_cells,).
    expected, found
        Shares of the types that are expected, None if that is unknown, and those that the model
        finds without that knowledge, both (n_types,).
    """

    weights: np.ndarray
    outside: np.ndarray
    other: np.ndarray
    expected: np.ndarray | None
    found: np.ndarray

    @property
    def unexpected(self) -> np.ndarray:
        """Whether the cell is of a type that cannot be there, rather, (n_cells,) bool."""
        return self.outside > UNEXPECTED

    def reweigh(self, proba: np.ndarray) -> np.ndarray:
        """Multiply probabilities (n_cells, n_types) by the weights; sums of rows stay.

        Cells without any probability of a type that may be there have the same of all of them.
        """
        weighted = proba * self.weights
        total = weighted.sum(axis=1, keepdims=True)
        alike = (self.weights > 0) / np.count_nonzero(self.weights)
        shares = np.where(total > 0, weighted / np.where(total > 0, total, 1), alike)
        return (proba.sum(axis=1, keepdims=True) * shares).astype(proba.dtype)

    def expand(self, kept: np.ndarray) -> Fit:
        """The fit of all cells, given a mask (n_cells,) of those it was made for."""
        outside, other = np.zeros(len(kept)), np.zeros(len(kept), dtype=np.int64)
        outside[kept], other[kept] = self.outside, self.other
        return replace(self, outside=outside, other=other)

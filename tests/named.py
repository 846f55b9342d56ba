"""Names of cells, true and predicted, that tests of scores share."""

import itertools

import numpy as np

# One small case, used throughout.  The reference holds a, b and c; no cell is of type c.
#
#   truth       predicted                        right
#   a a a a     a  a  b  novel_1                 2 of 4
#   b b         b  c                             1 of 2
#   X X X       novel_1  novel_1  a              2 of 3, novel_1 being X
#   Y           novel_2                          1 of 1, novel_2 being Y
SEEN = ["a", "b", "c"]
TRUE = ["a"] * 4 + ["b"] * 2 + ["X"] * 3 + ["Y"]
PRED = ["a", "a", "b", "novel_1", "b", "c", "novel_1", "novel_1", "a", "novel_2"]


def random_case(seed, n_cells=40):
    """Return random names of 3 seen types and 3 novel ones, against up to 6 predicted names."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(["a", "b", "c", "X", "Y", "Z"], size=n_cells)
    pred = rng.choice(["a", "b", "c", "n1", "n2", "n3"][: rng.integers(3, 7)], size=n_cells)
    return truth, pred


def best_by_brute_force(truth, pred, groups, types):
    """Return the most cells that agree, over all one-to-one matchings of groups to types."""
    # Surplus groups, matched to None, stay without a type.
    targets = [*types, *[None] * (len(groups) - len(types))]
    best = 0
    for chosen in itertools.permutations(targets, len(groups)):
        type_of = dict(zip(groups, chosen, strict=True))
        best = max(best, sum(type_of.get(p) == t for t, p in zip(truth, pred, strict=True)))
    return best

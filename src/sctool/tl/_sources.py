"""References, one by one: what is read of them, and what they say of each other's cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import rankdata
from sklearn.metrics import cohen_kappa_score

from sctool import _data, _several
from sctool._batches import stratified_holdout
from sctool._train import numpy_generator, seeded
from sctool.model import AnnotationModel, Prediction
from sctool.tl._apply import trained_model
from sctool.tl._judge import given_terms

#: Share of the labelled cells of each type that are held out, and at most so many of a reference.
HELD_OUT, MAX_HELD_OUT = 0.1, 500
#: Maximum number of cells of a type by which types are compared.
MAX_PER_TYPE = 100
#: Minimum probability of the types of query cells that stand for a saved model's own cells: those
#: of a type that it does not know must not be among them.
SURE = 0.9
#: References may have the same cells: of those that have a name in both, so many are compared, by
#: the order of at least so many genes that a cell expresses.
MAX_COMPARED, MIN_EXPRESSED = 50, 10
#: References with less than this share of the best kappa are unreliable.
UNRELIABLE = 0.5


@dataclass(eq=False)
class Source:
    """One reference, and what it says.

    Attributes
    ----------
    name
        For the table and for messages.
    training
        The reference that a model is trained on, or the trained model itself.
    left_out
        Mask of cells of the reference that are not trained on.
    terms
        Ids of its types in the Cell Ontology, where it gives them.
    cells
        Labelled cells for comparisons; None of a trained model.
    labels
        Names of their types, (n_cells,). Of a trained model, names of cells of the query.
    held_out
        Cells that the model is not trained on, (n_cells,) bool.
    twice
        How many of its cells the references before it, by name, have too.
    result
        Its annotation of the query.
    """

    name: str
    training: AnnData | AnnotationModel
    left_out: np.ndarray | None = None
    terms: dict[str, str] = field(default_factory=dict)
    cells: AnnData | None = None
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=object))
    held_out: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    twice: dict[str, int] = field(default_factory=dict)
    result: Any = None

    @property
    def model(self) -> AnnotationModel:
        """The trained model."""
        return self.result.model

    @property
    def codes(self) -> np.ndarray:
        """Types of the cells, codes of the model's, -1 for others, (n_cells,)."""
        return pd.Index(self.model.classes_).get_indexer(self.labels)

    def has(self, layer: str | None) -> bool:
        """Whether its cells have a layer."""
        return self.cells is not None and _data.layer_of(self.cells, layer) is not None

    def known(self, prediction: Prediction) -> np.ndarray:
        """Probabilities of the known types, (n_cells, n_types)."""
        return prediction.proba[:, : len(self.model.classes_)].astype(float)


def read_sources(
    refs: Sequence[Any],
    labels_key: str,
    layer: str | None,
    random_state: int,
) -> list[Source]:
    """Check the references, load models, and hold out labelled cells.

    Raises
    ------
    ValueError
        There are none, or one of them is there twice.
    """
    if not refs:
        raise ValueError("ref is an empty list: pass at least one reference.")
    paths = {str(ref) for ref in refs if isinstance(ref, str | Path)}
    sources = list[Source]()
    for i, ref in enumerate(refs, start=1):
        name = str(ref) if isinstance(ref, str | Path) else f"ref{i}"
        while not isinstance(ref, str | Path) and name in paths:  # names tell references apart
            name += "'"
        ref = _data.rna_of(ref, name)
        if not isinstance(ref, AnnData):
            try:
                model = trained_model(ref)
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from error
            if any(_same_model(model, source.training) for source in sources):
                _refuse_twice(i)
            sources.append(Source(name, model, terms=dict(model.terms_)))
            continue
        labels = _data.clean_labels(_data.obs_column(ref, labels_key, "labels_key", name))
        if (n := len(labels.categories)) < 2:
            raise ValueError(
                f"{name} has {n} cell type(s) in obs[{labels_key!r}]; at least 2 are needed of "
                "each reference."
            )
        twice = {}
        for source in sources:
            if source.training is ref:
                _refuse_twice(i)
            if not isinstance(source.training, AnnData):
                continue
            if n_same := _n_same_cells(source.training, ref, layer):
                twice[source.name] = n_same
            if n_same == source.training.n_obs == ref.n_obs:
                column = _data.obs_column(source.training, labels_key, "labels_key", name)
                others = pd.Series(_data.clean_labels(column), index=column.index, dtype=object)
                own = pd.Series(labels, index=ref.obs_names, dtype=object)
                if own.equals(others[own.index]):
                    _refuse_twice(i)
        labelled = np.flatnonzero(labels.codes >= 0)
        with seeded(random_state):
            _, held_out = stratified_holdout(labels.codes[labelled], HELD_OUT)
            order = numpy_generator().permutation(ref.n_obs)
        held_out = np.sort(order[np.isin(order, labelled[held_out])][:MAX_HELD_OUT])
        rank = pd.Series(labels.codes[order]).groupby(labels.codes[order]).cumcount().to_numpy()
        some = order[(rank < MAX_PER_TYPE) & (labels.codes[order] >= 0)]
        cells = np.union1d(some, held_out)
        sources.append(
            Source(
                name,
                ref,
                np.isin(np.arange(ref.n_obs), held_out),
                given_terms(ref, labels_key),
                ref[cells],
                np.asarray(labels[cells], dtype=object),
                np.isin(cells, held_out),
                twice,
            )
        )
    return sources


def _refuse_twice(i: int) -> None:
    raise ValueError(f"ref has the same reference twice, which would count twice: element {i}.")


def _n_same_cells(one: AnnData, other: AnnData, layer: str | None) -> int:
    """About how many cells two references have in common: of one name, and of one expression.

    Names alone say little, as those that are numbers or barcodes. The order of a cell's genes by
    expression is the same before and after normalisation.
    """
    names, others = (pd.Index(ref.obs_names.astype(str)) for ref in (one, other))
    shared = names[~names.duplicated(keep=False)].intersection(
        others[~others.duplicated(keep=False)]
    )
    if not len(shared):
        return 0
    some = shared[np.unique(np.linspace(0, len(shared) - 1, MAX_COMPARED).astype(int))]
    try:
        first, second = (
            _data.read_cells(ref[own.get_indexer(some)], _data.layer_of(ref, layer), "ref")
            for ref, own in ((one, names), (other, others))
        )
    except ValueError:  # unusable values, of which training says more
        return 0
    genes = first.genes.index.intersection(second.genes.index)
    x, y = (data.x[:, data.genes.index.get_indexer(genes)].toarray() for data in (first, second))
    same = (rankdata(x, "dense", axis=1) == rankdata(y, "dense", axis=1)).all(axis=1)
    same &= (x > 0).sum(axis=1) >= MIN_EXPRESSED
    return round(same.mean() * len(shared))


def _same_model(one: Any, other: Any) -> bool:
    """Whether two trained models are the same, whatever they were read from."""
    if type(one) is not type(other) or one.names_ != other.names_:
        return False
    if list(one.features_.selected) != list(other.features_.selected):
        return False
    weights, others = one.module.state_dict(), other.module.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weights[key].cpu(), others[key].cpu()) for key in weights
    )


def known_types(sources: list[Source]) -> list[str]:
    """All types of all references, by their own names."""
    each = [
        s.training.classes_ if isinstance(s.training, AnnotationModel) else np.unique(s.labels)
        for s in sources
    ]
    return list(dict.fromkeys(str(name) for own in each for name in own))


def cross_predict(
    adata: AnnData, sources: list[Source], layer: str | None, audit: list[str]
) -> dict[tuple[int, int], Prediction]:
    """Predictions by (i, j): of the cells of reference i by the model of reference j.

    A trained model has no cells: in their place, cells of the query have the types that it gives.
    """
    found = {}
    for i, one in enumerate(sources):
        for j, other in enumerate(sources):
            if one.cells is None:
                found[i, j] = other.result.prediction
                continue
            try:
                found[i, j] = other.model.predict_cells(
                    one.cells,
                    _data.layer_of(one.cells, layer),
                    enable_progress_bar=False,
                )
            except ValueError as error:  # as too few genes of the model
                audit.append(f"references: {other.name!r} cannot judge {one.name!r}: {error}")
    for one in sources:
        if one.cells is None:
            named = one.known(one.result.prediction)
            sure = named.max(axis=1) >= SURE
            names = np.array(one.model.classes_, dtype=object)[named.argmax(axis=1)]
            names[~sure | one.result.prediction.unseen] = None
            one.labels = names
    return found


def compare_types(
    sources: list[Source], seen_by: dict[tuple[int, int], Prediction]
) -> dict[tuple[int, int], np.ndarray]:
    """Shares of the cells of each type of one reference that another takes for each of its own.

    Not of two trained models: cells of the query that one of them is sure of may be of a type that
    it does not know, and say nothing of those that the other knows.
    """
    return {
        (i, j): _several.shares_by_type(
            sources[i].codes,
            prediction.proba.argmax(axis=1),
            len(sources[i].model.classes_),
            len(sources[j].model.classes_),
        )
        for (i, j), prediction in seen_by.items()
        if i != j and not (sources[i].cells is None and sources[j].cells is None)
    }


def _found_again(
    aligned: _several.Alignment, shares: dict[tuple[int, int], np.ndarray], i: int, j: int
) -> np.ndarray:
    """Share of the cells of each type of i that j takes for a related type, (n_types_i,).

    NaN for types without cells, for those of which j has no related one, and if it cannot judge.
    """
    related = (aligned.members[i].astype(int) @ aligned.members[j].T) > 0
    share = np.where(related, shares.get((i, j), np.nan), 0).sum(axis=1)
    return np.where(related.any(axis=1), share, np.nan)


def recognised_shares(
    aligned: _several.Alignment, shares: dict[tuple[int, int], np.ndarray]
) -> np.ndarray:
    """Share of each type's cells that references with related types take for such, on average."""
    n = len(aligned.members)
    each = [
        pd.DataFrame([_found_again(aligned, shares, i, j) for j in range(n)]).mean()
        for i in range(n)
    ]
    return np.concatenate(each)


def transfer_to_others(
    aligned: _several.Alignment,
    shares: dict[tuple[int, int], np.ndarray],
    reliability: np.ndarray,
) -> np.ndarray:
    """How well each reference recognises the types of the others, (n_references,); NaN if unknown.

    The mean over types and then over references, which count by their own reliability.
    """
    n = len(aligned.members)
    found = np.full(n, np.nan)
    for j in range(n):
        each = [pd.Series(_found_again(aligned, shares, i, j)).mean() for i in range(n)]
        known = ~np.isnan(each) & (reliability > 0)
        if known.any():
            found[j] = np.average(np.array(each)[known], weights=reliability[known])
    return found


def reliabilities(sources: list[Source], seen_by: dict[tuple[int, int], Prediction]) -> np.ndarray:
    """Cohen's kappa of each reference with the labels of its held-out cells; NaN without any.

    It is 0 if no more are right than by chance, however unequal the types are, and 1 if all are.
    """
    found = np.full(len(sources), np.nan)
    for i in range(len(sources)):
        proba, codes = _own_held_out(sources, seen_by, i)
        if len(codes):
            kappa = cohen_kappa_score(codes, proba.argmax(axis=1))
            found[i] = 1 if np.isnan(kappa) else max(kappa, 0)
    return found


def retained_confidence(
    sources: list[Source], seen_by: dict[tuple[int, int], Prediction]
) -> np.ndarray:
    """Mean score in the query relative to that in held-out cells; NaN without any."""
    found = np.full(len(sources), np.nan)
    for i, source in enumerate(sources):
        proba, codes = _own_held_out(sources, seen_by, i)
        if len(codes):
            known = source.known(source.result.prediction)
            score = known.max(axis=1) / np.maximum(known.sum(axis=1), 1e-12)
            total = np.maximum(proba.sum(axis=1), 1e-12)
            found[i] = score.mean() / (proba.max(axis=1) / total).mean()
    return found


def _own_held_out(
    sources: list[Source], seen_by: dict[tuple[int, int], Prediction], i: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities by a reference's own model of cells held out of it, and their types."""
    source, kept = sources[i], sources[i].model.calibration_
    if source.cells is not None and (i, i) in seen_by:
        held_out = source.held_out & (source.codes >= 0)
        return source.known(seen_by[i, i])[held_out], source.codes[held_out]
    if source.cells is None and kept is not None:
        return kept.proba, kept.codes
    return np.zeros((0, 1)), np.zeros(0, dtype=np.int64)


def are_unreliable(reliability: np.ndarray) -> np.ndarray:
    """References that are far worse than the best one, (n_references,) bool."""
    return reliability < UNRELIABLE * np.nanmax(np.append(reliability, 0))


def profile_distance(adata: AnnData, source: Source, layer: str | None) -> float:
    """1 - correlation of the mean profiles of the query's and the reference's cells of a type.

    The mean over the types that the reference finds in the query, by their number of cells; NaN of
    a model without cells.
    """
    if source.cells is None:
        return np.nan
    codes = source.known(source.result.prediction).argmax(axis=1)
    seen = ~source.result.prediction.unseen
    theirs = _means(source.model, adata, layer, np.where(seen, codes, -1))
    ours = _means(source.model, source.cells, layer, source.codes)
    n = np.bincount(codes[seen], minlength=len(ours))
    both = [t for t in np.unique(codes[seen]) if not np.isnan(ours[t]).any()]
    if not both:
        return np.nan
    each = [1 - np.corrcoef(ours[t], theirs[t])[0, 1] for t in both]
    return float(np.average(each, weights=n[both]))


def _means(
    model: AnnotationModel, adata: AnnData, layer: str | None, codes: np.ndarray
) -> np.ndarray:
    """Mean input of each type of a model, (n_types, n_genes); NaN for types without cells."""
    n, start, total = len(model.classes_), 0, None
    for part in model._read(adata, _data.layer_of(adata, layer))[0]:
        own = codes[start : start + part.x.shape[0]]
        start += len(own)
        cells = np.flatnonzero(own >= 0)
        member = sp.csr_matrix((np.ones(len(cells)), (own[cells], cells)), shape=(n, len(own)))
        sums = (member @ part.x).toarray()
        total = sums if total is None else total + sums
    count = np.bincount(codes[codes >= 0], minlength=n)
    return np.asarray(total) / np.where(count > 0, count, np.nan)[:, None]


def pool_held_out(
    sources: list[Source],
    seen_by: dict[tuple[int, int], Prediction],
    aligned: _several.Alignment,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pooled probabilities of held-out cells, with the query's weights, and their types.

    A reference gives as many cells as its weight allows. Left out are cells of coarser types, which
    have no type of the answer.

    Returns
    -------
    Probabilities, (n, n_names); types, (n,); and of all held-out cells of references that count,
    for each type how many there are, how many their own reference names right, and how many all
    together do, (n_names, 3).
    """
    probas: list[np.ndarray] = [np.zeros((0, len(aligned.names)))]
    codes: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    right = np.zeros((len(aligned.names), 3), dtype=np.int64)
    for i, source in enumerate(sources):
        if source.cells is None or any((i, j) not in seen_by for j in range(len(sources))):
            continue
        own = np.where(source.codes < 0, -1, single_types(aligned.members[i])[source.codes])
        used = np.flatnonzero(source.held_out & (own >= 0))
        n = int(len(used) * min(1, weights[i] / weights.max()))
        each = [s.known(seen_by[i, j])[used] for j, s in enumerate(sources)]
        novelty = [novel_score(s, seen_by[i, j])[used] for j, s in enumerate(sources)]
        w = np.tile(weights[:, None], len(used))
        proba = _several.pool(each, aligned.members, w, np.stack(novelty))
        if n:
            alone = each[i] @ aligned.members[i]
            named = (
                np.ones(len(used), dtype=bool),
                *(own[used] == p.argmax(1) for p in (alone, proba)),
            )
            for column, cells in enumerate(named):
                right[:, column] += np.bincount(own[used][cells], minlength=len(right))
        kept = np.arange(n) * len(used) // max(n, 1)  # all parts of the reference
        probas.append(proba[kept])
        codes.append(own[used][kept])
    return np.concatenate(probas), np.concatenate(codes), right


def single_types(members: np.ndarray) -> np.ndarray:
    """The type of the answer that each type of a reference is, -1 for coarser ones."""
    return np.where(members.sum(axis=1) == 1, members.argmax(axis=1), -1)


def novel_score(source: Source, prediction: Prediction) -> np.ndarray:
    """Novelty scores, (n_cells,); 0 if it cannot judge: a model may be unsure of known cells."""
    if source.result.novel is None:
        return np.zeros(len(prediction.proba))
    return source.model._novel_score(prediction)


def own_novelty(source: Source) -> np.ndarray:
    """How novel a reference finds each cell of the query, (n_cells,); 0 if it cannot judge."""
    score, flags = novel_score(source, source.result.prediction), source.result.novel
    return score if flags is None else np.maximum(score, flags)

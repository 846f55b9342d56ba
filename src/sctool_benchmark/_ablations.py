"""The papers' ablations: models of the library with a part exchanged, which no user needs."""

import copy
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from anndata import AnnData
from torch import Tensor, nn

from sctool import losses
from sctool._batches import Cells, stratified_holdout
from sctool._checks import Range
from sctool._data import TrainingData
from sctool._regression import regress, set_linear
from sctool._train import TrainOptions, numpy_generator
from sctool.model import CICL, SCDET, AnnotationModel, ContrastiveClassifier
from sctool.model._auto import AutoClassifier, AutoSettings
from sctool.model._base import Prediction
from sctool.model._cicl import CICLModule, CICLSettings
from sctool.model._contrastive import ContrastiveSettings
from sctool.model._scdet import PAPER, SCDETModule, SCDETPlan, SCDETSettings, shares
from sctool_benchmark import _zinb, _zinb_labelled

# -- scDET: tables 3 and 4 of the paper ----------------------------------------------------------


@dataclass(frozen=True)
class SCDETAblationSettings(SCDETSettings):
    """What scDET may be without.

    Parameters
    ----------
    prior
        Where the distribution of types comes from: ``"estimated"`` by k-means on the contrastive
        features, on the ``"classifier"``'s features, ``"balanced"``, of the ``"reference"`` (which
        says nothing of novel types), or the ``"oracle"`` in `distribution` (table 3).
    distribution
        With ``prior="oracle"``: the true share of each type, known ones first.
    slots
        Novel clusters go to novel prototypes by what these predict (``"prediction"``), or by
        ``"size"``.
    contrast
        The third loss of eq. 10: ``"soft"`` (eq. 9), ``"hard"`` (of predicted types), or
        ``"none"`` (table 4).
    """

    initial_names: bool = False
    prior: str = "estimated"
    distribution: tuple[float, ...] | None = None
    slots: str = "prediction"
    contrast: str = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {
            "prior": ("estimated", "classifier", "balanced", "reference", "oracle"),
            "slots": ("prediction", "size"),
            "contrast": ("soft", "hard", "none"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; known: {values!r}")
        if (self.prior == "oracle") != (self.distribution is not None):
            raise ValueError("distribution goes with prior='oracle', and with no other prior")


class SCDETAblationModule(SCDETModule):
    """The network, with another third loss or another term of eq. 5."""

    settings: SCDETAblationSettings

    def _soft_contrast(self, v: Tensor, v_other: Tensor, p: Tensor) -> Tensor:
        s = self.settings
        if s.contrast == "none":
            return v.sum() * 0
        if s.contrast == "hard":
            predicted = p.argmax(dim=1).repeat(2)
            same = predicted == predicted[:, None]
            return losses.contrastive(torch.cat([v, v_other]), same, s.tau_contrast)
        return super()._soft_contrast(v, v_other, p)

    def _divergence(self, mean: Tensor) -> Tensor:
        if self.settings.prior != "reference":
            return super()._divergence(mean)
        mean, pi = mean[: self.n_seen], self.pi[: self.n_seen]
        return losses.distribution_divergence(mean / mean.sum(), pi / pi.sum(), self.settings.rho)


class SCDETAblationPlan(SCDETPlan):
    """The training plan, with another source of the distribution."""

    settings: SCDETAblationSettings

    def _named(self) -> np.ndarray:
        # a source that was asked for holds also where initial names would say something else
        return super()._named() if self.settings.prior == "estimated" else self._estimate()

    def _estimate(self) -> np.ndarray:
        s, n, n_seen = self.settings, self.module.n_types, self.module.n_seen
        if s.distribution is not None:
            if len(s.distribution) != n:
                raise ValueError(f"distribution={s.distribution!r} must have {n} shares")
            return shares(np.array(s.distribution) * len(self.cells))
        if s.prior == "balanced":
            return np.full(n, 1 / n)
        if s.prior == "reference":
            size = np.bincount(self.labels[self.labels >= 0], minlength=n).astype(float)
            size[n_seen:] = size[:n_seen].mean()
            return shares(size)
        return super()._estimate()

    def _match_by_prediction(self) -> bool:
        return self.settings.slots == "prediction"

    def _feature(self, z: Tensor) -> Tensor:
        if self.settings.prior == "classifier":
            return torch.nn.functional.normalize(self.module.hidden(z), dim=1)
        return super()._feature(z)


class SCDETAblation(SCDET):
    """scDET without the names that our default gives before training, and with parts exchanged.

    The preset "published" starts at the paper's settings. It is not called "paper", which the
    protocol of that name would take for every variant.
    """

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": SCDETAblationSettings(),
        "published": SCDETAblationSettings(
            **{field.name: getattr(PAPER, field.name) for field in fields(SCDETSettings)}
        ),
    }
    MODULE = SCDETAblationModule
    PLAN = SCDETAblationPlan


# -- scDET: its search without its network -------------------------------------------------------


class SCDETSearch(SCDET):
    """The names that scDET gives before training: what its network starts from and has to improve.

    With the same seed they are those that scDET itself starts from, unless that searches some of
    many cells.  Only the training cells get them, for a name is no function of a cell's expression.
    The novelty score has the order of the search's own probabilities; the scores of the names are
    not calibrated.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": SCDETSettings()}
    _proba: np.ndarray | None = None  # of the training cells, once they are named

    def _train(self, options: TrainOptions) -> None:
        # All cells, not some of many as scDET: without its network the others would have no name.
        cells = self._training_cells()
        position = {"position": np.arange(len(cells))}
        cells = Cells(cells.x, cells.arrays | position, cells.fill)
        name = cells.arrays["label"].copy()
        query = np.flatnonzero(name < 0)
        found = self._find_novel(cells, name, numpy_generator(), options)
        self._name_novel(found.n if found else 0)
        self._build()
        self._set_inputs(cells.x)
        evidence = np.zeros(len(name))
        if found:
            evidence[query] = found.proba
        self._proba = named_with_certainty(name, evidence, len(self.classes_), len(self.names_))

    def predict_cells(
        self,
        adata: AnnData | None = None,
        layer: str | None = None,
        indices: np.ndarray | None = None,
    ) -> Prediction:
        """Name training cells as the search did; other cells have an embedding only."""
        prediction = super().predict_cells(adata, layer, indices)
        if adata is not None or self._proba is None:
            return prediction
        return replace(prediction, proba=self._proba if indices is None else self._proba[indices])


def named_with_certainty(name: np.ndarray, evidence: np.ndarray, n_seen: int, n: int) -> np.ndarray:
    """Probabilities that agree with given names, and rank cells as novel by given evidence.

    Parameters
    ----------
    name
        Type code of each cell, (n_cells,): known types first.
    evidence
        Probability of being novel, (n_cells,), which need not agree with ``name`` in being above a
        half: thresholds differ.
    n_seen, n
        Numbers of known types and of all types.

    Returns
    -------
    (n_cells, n), rows sum to 1: each cell has more than half at its name.  The rest lies with the
    novel types if the name is known, with the known ones if it is novel, and with all other types
    if none is novel.
    """
    own = np.arange(n) == name[:, None]
    novel = name >= n_seen
    at_own = np.where(novel, 0.51 + 0.49 * evidence, 1 - 0.49 * evidence)[:, None]
    rest = (np.arange(n) >= n_seen) != novel[:, None] if n > n_seen else ~own
    proba = np.where(own, at_own, rest * (1 - at_own) / rest.sum(axis=1, keepdims=True))
    return proba.astype(np.float32)


# -- CLEAR: CICL's frame with a queue instead of clusters ------------------------------------------

CLEAR_SETTINGS = CICLSettings(
    n_components=None,
    width=128,
    n_hidden=1024,
    joined=False,
    n_prototypes=1,
    temperature=0.2,
    masked=0.2,
    noisy=0.8,
    noise=0.5,
    cluster_weight=0.0,
    n_neighbors=0,
    batch_size=512,
    lr=1e-3,
)


class CLEARModule(CICLModule):
    """An encoder, its slow copy, and a queue of what that made of earlier cells.

    Han et al. 2022.  A view is changed in up to five ways, each with a probability of a half: genes
    masked, noise, genes exchanged within the cell, or taken from one other cell, or from many.
    """

    queue: Tensor  # keys, (n_queue, width)

    #: Length of the queue, and the share of the slow encoder that a step keeps.
    QUEUE, MOMENTUM = 1024, 0.99

    def __init__(self, n_input: int, n_centroids: int, settings: CICLSettings):
        super().__init__(n_input, n_centroids, settings)
        s = settings
        sizes = nn.Linear(n_input, s.n_hidden), nn.ReLU(), nn.Linear(s.n_hidden, s.width)
        self.layers, self.projector = nn.Sequential(*sizes, nn.ReLU()), nn.Sequential()
        self.tokens = nn.Identity()
        self.slow = copy.deepcopy(self.layers).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(self.QUEUE, s.width), dim=1))

    def view(self, x: Tensor) -> Tensor:
        """Standardised genes of cells that were changed at random."""
        s, inputs = self.settings, self.inputs(x)
        keep = torch.rand(5, len(x), 1, device=x.device) < 0.5
        chosen = torch.rand(5, *x.shape, device=x.device)
        inputs = inputs.masked_fill(keep[0] & (chosen[0] < s.masked), 0.0)
        inputs = inputs + (keep[1] & (chosen[1] < s.noisy)) * s.noise * torch.randn_like(inputs)
        swapped = inputs[:, torch.randperm(inputs.shape[1], device=x.device)]
        other = inputs[torch.randperm(len(x), device=x.device)]
        many = inputs.gather(0, torch.randint_like(inputs, len(x)).long())
        for i, (values, share) in enumerate(((swapped, 0.1), (other, 0.25), (many, 0.25)), 2):
            inputs = torch.where(keep[i] & (chosen[i] < share), values, inputs)
        return inputs

    def encode(self, inputs: Tensor) -> Tensor:
        """Features of unit length from the slow encoder, (n_cells, width), once trained."""
        encoder = self.layers if self.training else self.slow
        return F.normalize(encoder(inputs), dim=1)

    def loss(
        self, x: Tensor, other: Tensor, n_clusters: int, gather: Any = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each cell is told from the queue by the slow encoding of its other view."""
        with torch.no_grad():
            pairs = zip(self.slow.parameters(), self.layers.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - self.MOMENTUM)
            keys = F.normalize(self.slow(self.view(other)), dim=1)
        z = self.encode(self.view(x))
        positive = (z * keys).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, z @ self.queue.T], dim=1) / self.settings.temperature
        total = (logits.logsumexp(dim=1) - logits[:, 0]).mean()
        self.queue = torch.cat([keys, self.queue])[: len(self.queue)]
        return total, {"instance": total}


class CLEAR(CICL):
    """CLEAR: contrast with a memory queue, then k-means.

    The slow encoder keeps 0.99 of itself in a step instead of 0.999, since a run has hundreds of
    steps, not thousands; Adam takes the place of SGD.
    """

    PRESETS: ClassVar[dict[str, CICLSettings]] = {"default": CLEAR_SETTINGS}

    def _build(self) -> None:
        n = len(self.features_.selected)
        self.module = CLEARModule(n, self._n_centroids, self.settings_)
        self._model_summary_string = f"CLEAR with {n} genes"


# -- MLS-CC: circles that start at a regression, trained further ---------------------------------


def downsample_counts(x: Tensor, size: Tensor, depth: Tensor, target_sum: float) -> Tensor:
    """Return cells as a shallower sequencing would have seen them: counts thinned binomially.

    Parameters
    ----------
    x
        Log1p of counts scaled to ``target_sum``, (n_cells, n_genes).
    size
        Counts of each cell over all genes, also those that ``x`` leaves out, (n_cells,).
    depth
        Share of its counts that each cell keeps on average, (n_cells,) in (0, 1].

    Returns
    -------
    Inputs on the scale of ``x``.  A cell that keeps no count is 0 throughout.
    """
    size, depth = size[:, None], depth[:, None]
    counts = (x.expm1() * size / target_sum).round()
    kept = torch.binomial(counts, depth.expand_as(counts))
    # What the genes that are left out keep is drawn as one.
    elsewhere = (size - counts.sum(dim=1, keepdim=True)).clamp_min(0).round()
    total = kept.sum(dim=1, keepdim=True) + torch.binomial(elsewhere, depth)
    return (kept * target_sum / total.clamp_min(1)).log1p()


@dataclass(frozen=True)
class ContrastiveAblationSettings(ContrastiveSettings):
    """What may be done to circles that follow a regression.

    Parameters
    ----------
    thinning
        Smallest share of its counts that a cell keeps while the component trains: each time it is
        seen, it is thinned to a share drawn between this and 1.  1 leaves cells as they are.
    """

    thinning: Annotated[float, Range("a number above 0 and not above 1", lambda v: 0 < v <= 1)] = (
        1.0
    )


class ContrastiveAblation(ContrastiveClassifier):
    """Circles that start at a regression and are then trained by the contrastive loss."""

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": ContrastiveAblationSettings(
            **{
                name: getattr(ContrastiveClassifier.PRESETS["default"], name)
                for name in ContrastiveSettings.__dataclass_fields__
            }
        )
    }
    settings_: ContrastiveAblationSettings

    def _arrays(self, data: TrainingData) -> dict[str, np.ndarray]:
        if self.settings_.thinning < 1 and not data.is_counts:
            raise ValueError("thinning draws from counts: give counts of reference and query")
        total = np.asarray(sp.csr_matrix(data.x).sum(axis=1), dtype=np.float32).ravel()
        return super()._arrays(data) | {"size": total}

    def _trains_component(self) -> bool:
        return self.settings_.component is not None

    def _component_input(self, batch: dict[str, Tensor]) -> Tensor:
        x, least = batch["x"], self.settings_.thinning
        if least == 1 or not self.module.training:
            return x
        depth = least + (1 - least) * torch.rand(len(x), device=x.device)
        return downsample_counts(x, batch["size"], depth, self.features_.target_sum)


# -- auto: the mean that it must not fall below ----------------------------------------------------


class MeanOfThree(AutoClassifier):
    """A regression on all genes and scNym's two halves, whose probabilities are averaged.

    There is no search for novel types, and each model has the same weight.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": AutoSettings()}

    def _train(self, options: TrainOptions) -> None:
        s, cells = self.settings_, self._training_cells()
        label = cells.arrays["label"]
        labelled, query = np.flatnonzero(label >= 0), np.flatnonzero(label < 0)
        train, held_out = (labelled[i] for i in stratified_holdout(label[labelled], s.validation))
        variable = Cells(cells.x[:, self.variable_], cells.arrays)
        networks = self._train_networks(variable, (train, held_out), query, options)
        linear, notes = regress(cells.x[labelled], label[labelled], s.C, s.max_iter)
        self.audit_ += notes
        self._build()
        for part, network in networks.items():
            self.module.networks[part].load_state_dict(network.state_dict())
        set_linear(self.module.linear, linear)
        # the second linear model, which learns from the query, has no vote
        self.module.weights.copy_(torch.tensor([1.0, 0.0, 1.0, 1.0]) / 3)


#: Name of each ablation, as `methods.toml` has it, to its model.
ABLATIONS: dict[str, type[AnnotationModel]] = {
    "scdet-ablation": SCDETAblation,
    "scdet-search-alone": SCDETSearch,
    "contrastive-ablation": ContrastiveAblation,
    "auto-mean": MeanOfThree,
    **_zinb_labelled.ANNOTATION,
}
#: The same of what clusters cells.
CLUSTER_ABLATIONS: dict[str, type[CICL]] = {"rival-clear": CLEAR, **_zinb.CLUSTERING}

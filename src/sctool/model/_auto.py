"""auto: the default method. Linear models and networks vote, and a search finds novel types.

Developed for this package. ``docs/methods/auto.md`` explains each step and what it was measured to
contribute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from sctool import novelty
from sctool._batches import Cells, stratified_holdout
from sctool._checks import Count, Positive, Whole
from sctool._data import Features, TrainingData
from sctool._data._features import variable_genes
from sctool._data._inputs import product
from sctool._docs import docs
from sctool._neighbors import group_means
from sctool._regression import MIN_TYPE_WEIGHT, regress, set_linear
from sctool._sets import UNKNOWN, Calibration, Hierarchy
from sctool._sketch import sketch_regions, sketch_types
from sctool._train import TrainOptions, numpy_generator
from sctool.model._base import OpenWorldModel, Prediction
from sctool.model._profiles import Profiles, one_count
from sctool.model._scnym import SCNYMModule, SCNYMSettings, train_classifier

#: Share of the two linear models in the vote, for references of fewer and of more cells than these:
#: the networks need many.
FEW_CELLS, SHARE_OF_FEW, SHARE = 500, 1 / 2, 1 / 3
#: Share of the regression on all genes where query and reference mix. There is nothing to adapt to,
#: so the one that learns from the query has none.
SHARE_OF_MIXED = 0.6
#: Probabilities of novelty are kept this far from 0 and 1, so that their logits are finite.
MARGIN = 0.02
#: Maximum number of held-out cells that are kept with the model.
MAX_CALIBRATION = 2000


@dataclass(frozen=True)
class AutoSettings(SCNYMSettings):
    """Hyperparameters of :class:`AutoClassifier`; those of scNym are its two networks'.

    Parameters
    ----------
    n_novel
        Number of novel types; None estimates it, 0 disables the search.
    n_top_genes
        Number of highly variable genes for the networks, the search and the regression that
        learns from the query. The other regression uses all genes.
    adversary, mixmatch
        Whether the network with that part votes.
    min_steps
        Half as many as scNym's default, because two networks are trained.
    C, max_iter
        Inverse strength of the L2 penalty of the regressions that the search starts from and
        that learn from the query, and maximum iterations of L-BFGS. The regression on all genes
        votes with the penalty of :class:`LogisticSettings`.
    """

    n_novel: Whole | None = None
    min_steps: Whole = 200
    C: Positive = 1.0
    max_iter: Count = 500


def _of_network(settings: AutoSettings, part: str) -> AutoSettings:
    """Settings of the network that has only ``part``, "adversary" or "mixmatch"."""
    return replace(settings, adversary=part == "adversary", mixmatch=part == "mixmatch")


class AutoModule(nn.Module):
    """The voters, and the linear model of the novelty.

    Parameters
    ----------
    n_input
        Number of genes.
    variable
        Positions of the highly variable ones, (n_variable,).
    n_classes, n_names, n_domains
        Number of known types, of known and novel types, and of domains.
    """

    variable: Tensor
    weights: Tensor
    temperature: Tensor

    def __init__(
        self,
        n_input: int,
        variable: np.ndarray,
        n_classes: int,
        n_names: int,
        n_domains: int,
        settings: AutoSettings,
    ):
        super().__init__()
        self.n_classes, n = n_classes, len(variable)
        self.register_buffer("variable", torch.from_numpy(variable), persistent=False)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.linear = nn.Linear(n_input, n_classes)
        self.adapted = nn.Linear(n, n_names)
        self.novelty = nn.Linear(n, 1)
        self.networks = nn.ModuleDict(
            {
                part: SCNYMModule(n, n_classes, n_domains, _of_network(settings, part))
                for part in ("adversary", "mixmatch")
                if getattr(settings, part)
            }
        )
        n_voters = 2 + len(self.networks)
        self.register_buffer("weights", torch.full((n_voters,), 1 / n_voters))

    def votes(self, linear: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The voters' output.

        Parameters
        ----------
        linear
            Logits of the known types by the regression on all genes, (n_cells, n_classes).
        v
            Log1p CP10k of the variable genes, (n_cells, n_variable).

        Returns
        -------
        Probabilities of the known types by each voter, (n_voters, n_cells, n_classes), linear
        models first; logits of known and novel types, (n_cells, n_names); embedding.
        """
        names = self.adapted(v)
        outputs = [network(v) for network in self.networks.values()]
        logits = [linear, names[:, : self.n_classes], *(y for y, _ in outputs)]
        # the adversary's embedding, if there is one, is the better aligned
        return torch.stack(logits).softmax(dim=2), names, outputs[0][1] if outputs else names

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities (n_cells, n_names) and embedding of log1p CP10k (n_cells, n_genes)."""
        return self.answer(self.linear(x), x[:, self.variable])

    def answer(self, linear: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, of the parameters of :meth:`votes`."""
        votes, names, z = self.votes(linear, v)
        log_names = names.log_softmax(dim=1)
        known = torch.tensordot(self.weights, votes, dims=1)
        log_known = (known.clamp_min(1e-12).log() / self.temperature).log_softmax(dim=1)
        total = log_names[:, : self.n_classes].logsumexp(dim=1, keepdim=True)
        return torch.cat([total + log_known, log_names[:, self.n_classes :]], dim=1), z

    def novelty_score(self, v: Tensor) -> Tensor:
        """Probability that cells (n_cells, n_variable) are novel, (n_cells,)."""
        return self.novelty(v).squeeze(1).sigmoid()


@docs.dedent
class AutoClassifier(OpenWorldModel):
    """The default: a vote of linear models and networks, and a search for novel types.

    Four models vote on the known type of a cell: a logistic regression on all genes; one on highly
    variable genes that also learns from the query, whose cells get names by group; and two of
    scNym's networks, one trained with the adversary and one with MixMatch. Before that, the query
    is searched for novel types (:func:`sctool.novelty.search`), which the networks do not adapt
    to. A tenth of the labelled cells is held out; the temperature of the vote is fitted to them,
    and prediction sets are calibrated on them.

    Parameters
    ----------
    %(adata)s
    preset
        "default" is the only one.
    %(ignore_case)s
    **settings
        Changes to the preset, fields of :class:`AutoSettings`.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": AutoSettings()}
    settings_: AutoSettings
    module: Any

    #: Positions of the highly variable genes among the model's.
    variable_: np.ndarray
    #: Statistics of the labelled cells, so that the model can adapt without them; of models that an
    #: earlier version saved, None.
    profiles_: Profiles | None = None
    #: Whether a search for novel types was possible.
    searched_: bool = False

    def _fit_features(
        self, data: TrainingData
    ) -> tuple[Features, sp.csr_matrix, np.ndarray | None, list[str]]:
        """Use all genes, and select the highly variable ones among them."""
        s = self.settings_
        features, x = Features.fit(data, None, s.target_sum)
        n = s.n_top_genes
        if n is None or n >= x.shape[1]:
            self.variable_ = np.arange(x.shape[1])
        else:
            self.variable_ = variable_genes(x, data.domain, n)
        return features, x, None, []

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        names = len(self.names_)
        known = len(self.classes_)
        return AutoModule(n_input, self.variable_, known, names, n_domains, self.settings_)

    def _outputs(self) -> dict[str, Any]:
        own: dict[str, Any] = {"variable": self.variable_.tolist(), "searched": self.searched_}
        for name, value in (("calibration", self.calibration_), ("hierarchy", self.hierarchy_)):
            own[name] = value and {k: v.tolist() for k, v in vars(value).items()}
        return super()._outputs() | own

    def _set_outputs(self, state: dict[str, Any]) -> None:
        super()._set_outputs(state)
        self.variable_, self.searched_ = np.array(state["variable"]), state["searched"]
        if (kept := state["calibration"]) is not None:
            self.calibration_ = Calibration(np.array(kept["proba"]), np.array(kept["codes"]))
        if (kept := state["hierarchy"]) is not None:
            names = np.array(kept["names"], dtype=object)
            self.hierarchy_ = Hierarchy(names, np.array(kept["members"]))

    def _tensors(self) -> dict[str, Tensor]:
        if self.profiles_ is None:
            return {}
        return {f"profiles.{k}": torch.from_numpy(v) for k, v in vars(self.profiles_).items()}

    def _set_tensors(self, tensors: dict[str, Tensor]) -> None:
        start = "profiles."
        kept = {k.removeprefix(start): v.numpy() for k, v in tensors.items() if k.startswith(start)}
        self.profiles_ = Profiles(**kept) if kept else None

    # -- training ------------------------------------------------------------------------------

    def _train(self, options: TrainOptions) -> None:
        s, cells = self.settings_, self._training_cells()
        label = cells.arrays["label"]
        labelled, unlabelled = np.flatnonzero(label >= 0), np.flatnonzero(label < 0)
        train, held_out = (labelled[i] for i in stratified_holdout(label[labelled], s.validation))
        variable = Cells(cells.x[:, self.variable_], cells.arrays)
        max_iter = options.max_epochs or s.max_iter
        few = len(train) < FEW_CELLS

        # A regression on all genes and one on the variable ones, which the search starts from
        linear, notes = regress(cells.x[train], label[train], s.C, max_iter)
        first, _ = regress(variable.x[train], label[train], s.C, max_iter)
        self.audit_ += notes
        names, novel_score, mixed = label.copy(), np.zeros(len(label)), 0.0
        some = unlabelled[sketch_regions(variable.x[unlabelled])]
        if len(some) < len(unlabelled):
            self.audit_.append(
                f"query: {len(some)} of {len(unlabelled)} unlabelled cells were grouped, searched "
                "and learnt from; the models that these have trained name the others"
            )
        everyone, unlabelled = unlabelled, some
        if len(unlabelled):
            proba = linear.predict_proba(cells.x[unlabelled])
            proba = (proba + first.predict_proba(variable.x[unlabelled])) / 2
            compared = train[sketch_types(label[train])]
            found = self._search(variable, compared, unlabelled, proba, options)
            names[unlabelled] = found.names
            self.names_by_group_ = np.where(np.isin(everyone, some), names[everyone], -1)
            mixed = found.mixed
            if found.proba is not None:
                novel_score[unlabelled] = found.proba

        # The networks, which adapt to the cells of known types
        known = unlabelled[names[unlabelled] < len(self.classes_)]
        networks = self._train_networks(variable, (train, held_out), known, options)

        self._name_novel(max(int(names.max()) + 1 - len(self.classes_), 0))
        self._build()
        module = self.module
        for part, network in networks.items():
            module.networks[part].load_state_dict(network.state_dict())
        # The search needs clear names; what votes should hold in another experiment
        voting, more = regress(cells.x[train], label[train], None, max_iter, MIN_TYPE_WEIGHT)
        self.audit_ += more
        set_linear(module.linear, voting)
        learnt = np.concatenate([train, unlabelled])
        adapted, notes = regress(variable.x[learnt], names[learnt], s.C, max_iter)
        self.audit_ += notes
        set_linear(module.adapted, adapted)
        self._set_novelty(variable.x[learnt], novel_score[learnt])
        self._weigh(cells, known if len(known) else train, few, mixed)
        self._calibrate(cells, held_out)
        if UNKNOWN not in self.classes_:
            profiles = group_means(variable.x[train], label[train])
            self.hierarchy_ = Hierarchy.from_profiles(self.classes_, profiles)
        unit = one_count(cells.x[train])
        self.profiles_ = Profiles.fit(variable.x[train], label[train], unit)

    def _release(self) -> None:
        super()._release()
        self.names_by_group_ = None

    def _search(
        self,
        variable: Cells,
        train: np.ndarray,
        unlabelled: np.ndarray,
        proba: np.ndarray,
        options: TrainOptions,
    ) -> novelty.QueryNovelty:
        """Search the unlabelled cells for novel types, and note what was found."""
        domain = variable.arrays["domain"][unlabelled]
        found = novelty.search(
            variable.x[train],
            variable.arrays["label"][train],
            variable.x[unlabelled],
            proba,
            self.settings_.n_novel,
            numpy_generator(),
            domain if len(np.unique(domain)) > 1 else None,
            options.progress,
            self._programmes(),
        )
        self.audit_ += found.audit
        self.searched_ = found.proba is not None
        self.n_novel_ = found.interval
        self.sensitivity_ = {self.classes_[t]: share for t, share in found.sensitivity.items()}
        return found

    def _programmes(self) -> list[np.ndarray]:
        """Positions, among the variable genes, of those of each programme."""
        genes = self.features_.genes
        return novelty.programme_genes(genes.loc[self.features_.selected[self.variable_]])

    def _train_networks(
        self,
        variable: Cells,
        split: tuple[np.ndarray, np.ndarray],
        unlabelled: np.ndarray,
        options: TrainOptions,
    ) -> dict[str, nn.Module]:
        """Train the networks in turn."""
        networks: dict[str, Any] = dict(self.module.networks.items())
        history: dict[str, Any] = {}
        for part, network in networks.items():
            self.module, self.is_trained_ = network, False
            network.settings = _of_network(self.settings_, part)
            train_classifier(self, variable, options, split=split, unlabelled=unlabelled, name=part)
            history |= {f"{part}_{name}": v for name, v in vars(self)["history_"].items()}
        self.history_ = history
        return networks

    @torch.no_grad()
    def _weigh(self, cells: Cells, indices: np.ndarray, few: bool, mixed: float) -> None:
        """Set the weights of the voters.

        The networks share what the linear models leave by the square of their agreement with the
        others: adaptation may go wrong, most of all to a query with many novel cells.

        Parameters
        ----------
        indices
            Positions of the cells on which agreement is measured.
        few
            Whether there are few labelled cells.
        mixed
            Share of the query's cells that mix with the reference.
        """
        module = self.module.eval()
        some = np.sort(numpy_generator().permutation(indices)[:MAX_CALIBRATION])
        both = self._for_voters(Cells(cells.x[some], {}, cells.fill))
        parts = np.array_split(np.arange(len(some)), -(-len(some) // 512))
        batches = (both[part] for part in parts)
        votes = torch.cat([module.votes(b["linear"], b["x"])[0] for b in batches], dim=1)
        linear, networks = votes[:2].mean(dim=0), votes[2:]
        agreement = []
        for i in range(len(networks)):
            others = torch.cat([linear[None], networks[:i], networks[i + 1 :]]).mean(dim=0)
            same = networks[i].argmax(dim=1) == others.argmax(dim=1)
            agreement.append(float(same.float().mean()))
        relative = np.square(agreement) / max(np.square(agreement).max(initial=0), 1e-6)
        apart = np.full(2, (SHARE_OF_FEW if few else SHARE) / 2)
        of_linear = (1 - mixed) * apart + mixed * np.array([SHARE_OF_MIXED, 0])
        each = (1 - of_linear.sum()) / max(len(networks), 1)
        weights = np.concatenate([of_linear, each * relative])
        module.weights.copy_(torch.from_numpy(weights / weights.sum()))

    @torch.no_grad()
    def _set_novelty(self, x: sp.csr_matrix, score: np.ndarray) -> None:
        """Fit the linear model of the novelty to the result of the search.

        Parameters
        ----------
        x, score
            Cells, CSR (n_cells, n_variable), and their probability of being novel, (n_cells,).
        """
        p = np.clip(score, MARGIN, 1 - MARGIN)
        fitted = Ridge(solver="sparse_cg", random_state=0).fit(x, np.log(p / (1 - p)))
        self.module.novelty.weight.copy_(torch.from_numpy(fitted.coef_)[None])
        self.module.novelty.bias.fill_(float(fitted.intercept_))

    def _calibrate(self, cells: Cells, held_out: np.ndarray) -> None:
        """Fit the temperature to the held-out cells, at 1 or above, and keep their probabilities.

        A vote is rarely too confident about cells like those that it was fitted to, and should not
        become more confident about those of another experiment.
        """
        if not len(held_out):
            return
        held_out = numpy_generator().permutation(held_out)[:MAX_CALIBRATION]
        parts = self._forward_cells(Cells(cells.x[held_out], {}))
        proba = np.concatenate([p for p, *_ in parts])[:, : len(self.classes_)]
        log_proba = torch.from_numpy(np.log(np.clip(proba, 1e-12, None)))
        codes = cells.arrays["label"][held_out]
        target = torch.from_numpy(codes)

        def loss(temperature: float) -> float:
            return float(F.cross_entropy(log_proba / temperature, target))

        best = minimize_scalar(loss, bounds=(1, 10), method="bounded").x
        temperature = float(best) if loss(best) < loss(1.0) else 1.0
        self.module.temperature.fill_(temperature)
        self.calibration_ = Calibration((log_proba / temperature).softmax(dim=1).numpy(), codes)

    # -- prediction ----------------------------------------------------------------------------

    def _for_voters(self, cells: Cells) -> Cells:
        """The variable genes, and the logits of the regression on all genes, which stay sparse."""
        layer = self.module.linear
        weight, bias = layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()
        logits = product(cells.x, np.ascontiguousarray(weight.T)) + bias
        fill = cells.fill
        if fill is not None:
            logits += weight.astype(float) @ fill
            fill = fill[self.variable_]
        arrays = {"linear": logits.astype(np.float32)}
        return Cells(cells.x[:, self.variable_], arrays, fill)

    def _forward_cells(self, cells: Cells) -> Iterator[tuple[np.ndarray, ...]]:
        return super()._forward_cells(self._for_voters(cells))

    def _forward_batch(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        log_proba, z = self.module.answer(batch["linear"], batch["x"])
        return log_proba.exp(), z, self.module.novelty_score(batch["x"])

    def _novel_score(self, prediction: Prediction) -> np.ndarray:
        if self.searched_ and prediction.novelty is not None:
            return prediction.novelty
        return super()._novel_score(prediction)

    def _is_novel(self, prediction: Prediction) -> np.ndarray | None:
        """Cells assigned to a novel type, if a search was possible."""
        return super()._is_novel(prediction) if self.searched_ else None

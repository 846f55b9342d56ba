"""scDET: known and novel types in one model, for long-tailed type distributions.

Zhai, Chen and Deng, "Distribution-Independent Cell Type Identification for Single-Cell RNA-seq
Data", IJCAI 2024. ``docs/methods/scdet.md`` has the maths and explains the default preset.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scvi.distributions import ZeroInflatedNegativeBinomial
from torch import Tensor, nn

from sctool import losses, novelty
from sctool._batches import Cells, Splitter
from sctool._checks import Count, NonNegative, Part, Positive, Share, Whole
from sctool._docs import docs
from sctool._neighbors import fit_pca, k_means
from sctool._sketch import sketch_regions, sketch_types
from sctool._train import Plan, TrainOptions, fit, n_epochs, numpy_generator
from sctool.model._base import NetworkSettings, OpenWorldModel
from sctool.model._scnym import SCNYM, SCNYMModule, train_classifier

Batch = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class SCDETSettings(NetworkSettings):
    """Hyperparameters of scDET; the values here are the default preset's.

    Parameters
    ----------
    n_novel
        Number of novel types; None estimates it, 0 disables the search.
    initial_names
        Assign types to the query's cells before training, by :func:`sctool.novelty.find`, and
        learn from these names too (ours). Novel clusters are then matched to the prototypes that
        predict their cells; without initial names, in order of size (section 3.3).
    n_components
        Number of principal components used as input; None or 0 uses the standardised genes.
    n_hidden
        Units of the encoder's layers, the last of which is the embedding; mirrored in the decoder.
    reconstruction
        "mse" of the inputs, or "zinb", a zero-inflated negative binomial likelihood of CP10k.
    similarity
        How cells are compared with prototypes (eq. 2): by "cosine" similarity, as the paper's text
        says, or by "inner" product, as the equation prints it. A cosine needs a lower ``tau``.
    tau, tau_sharp, tau_contrast
        Temperatures of the prototype predictions, of the sharpened targets and of the contrastive
        losses.
    rho, gamma, alpha, beta
        Exponent of the distribution (eq. 5), logit adjustment (eq. 7), and sampling rates of
        pseudo-labels for types among the minibatch's labels and for other types (eq. 8).
    classify_weight, contrast_weight
        Weights of the two branches (eq. 11).
    masked
        Share of the genes that a view masks, in half of the cells.
    noisy, noise
        Share of the inputs to which a view adds noise, in half of the cells, and the noise's
        standard deviation.
    estimate_every
        Epochs between estimates of the type distribution.
    """

    n_novel: Whole | None = None
    initial_names: bool = True
    n_components: Whole | None = 50
    n_hidden: tuple[Count, ...] = (128, 128)
    reconstruction: Literal["mse", "zinb"] = "mse"
    similarity: Literal["cosine", "inner"] = "cosine"
    tau: Positive = 0.1
    tau_sharp: Positive = 0.05
    tau_contrast: Positive = 0.2
    rho: NonNegative = 0.5
    gamma: NonNegative = 0.5
    alpha: NonNegative = 0.5
    beta: NonNegative = 0.5
    classify_weight: NonNegative = 1.0
    contrast_weight: NonNegative = 1.0
    masked: Part = 0.1
    noisy: Share = 1.0
    noise: NonNegative = 0.5
    estimate_every: Count = 3
    batch_size: Count = 128
    min_steps: Whole = 600
    min_epochs: Count = 3


#: Section 4.1 of the paper; the documentation lists what it does not specify.
PAPER = SCDETSettings(
    initial_names=False,
    n_components=None,
    n_hidden=(512, 256, 128),
    similarity="inner",
    tau=1.0,
    tau_sharp=0.5,
    tau_contrast=1.0,
    noisy=0.1,
    estimate_every=10,
    lr=1e-4,
    max_epochs=500,
)


def _layers(sizes: tuple[int, ...]) -> nn.Sequential:
    steps: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        steps += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


class SCDETModule(nn.Module):
    """Denoising auto-encoder with a pseudo-labelling and a contrastive branch.

    Parameters
    ----------
    n_input, n_types, n_seen
        Numbers of genes, of all types and of known types, which come first.
    settings
        Hyperparameters.
    """

    mean: Tensor  # of each gene, (n_input,)
    scale: Tensor  # divisor of each gene, (n_input,)
    components: Tensor  # (n_components, n_input), or (0, n_input) without principal components
    pi: Tensor  # estimated share of each type, (n_types,)

    def __init__(self, n_input: int, n_types: int, n_seen: int, settings: SCDETSettings):
        super().__init__()
        self.settings, self.n_seen, self.n_types = settings, n_seen, n_types
        self.register_buffer("mean", torch.zeros(n_input))
        self.register_buffer("scale", torch.ones(n_input))
        self.register_buffer("components", torch.zeros(settings.n_components or 0, n_input))
        self.register_buffer("pi", torch.full((n_types,), 1 / n_types))
        sizes = (settings.n_components or n_input, *settings.n_hidden)
        n_decoded = 3 * n_input if settings.reconstruction == "zinb" else sizes[0]
        n = sizes[-1]
        self.encoder = _layers(sizes)
        self.decoder = _layers((*sizes[:0:-1], n_decoded))
        self.hidden = nn.Sequential(nn.Linear(n, n), nn.ReLU())
        prototypes = torch.randn(n_types, n)
        if settings.similarity == "inner":
            # About unit length: the first predictions are nearly uniform, as those of cosines are.
            prototypes /= n**0.5
        self.prototypes = nn.Parameter(prototypes)
        self.projector = _layers((n, n, n))

    def inputs(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Network inputs from log1p CP10k, with the ``hidden`` genes masked."""
        x = (x - self.mean) / self.scale
        if hidden is not None:
            x = x.masked_fill(hidden, 0.0)
        if len(self.components):
            x = x @ self.components.T
        return x.clamp(-10, 10)

    def view(self, x: Tensor) -> Tensor:
        """Inputs of a random view: genes masked in half of the cells, noise added in half."""
        s = self.settings
        hide, blur = torch.rand(2, len(x), 1, device=x.device) < 0.5
        inputs = self.inputs(x, hide & (torch.rand_like(x) < s.masked))
        blur = blur & (torch.rand_like(inputs) < s.noisy)
        return inputs + blur * s.noise * torch.randn_like(inputs)

    def similarity(self, z: Tensor) -> Tensor:
        """Similarity with the prototypes, (n_cells, n_types); divided by tau, logits (eq. 2)."""
        return losses.prototype_similarity(
            self.hidden(z), self.prototypes, self.settings.similarity
        )

    def project(self, z: Tensor) -> Tensor:
        """Unit-length features of the contrastive branch."""
        return F.normalize(self.projector(z), dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_cells, n_types) and embedding (n_cells, n_hidden[-1]) of log1p CP10k."""
        z = self.encoder(self.inputs(x))
        return self.similarity(z) / self.settings.tau, z

    def loss(
        self, batch: Batch, share: float, gather: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one minibatch (eq. 11), and its terms.

        Parameters
        ----------
        batch
            "labelled" and, if there are any, "unlabelled" cells, each with "x", log1p CP10k, and
            "name", type codes; of unlabelled cells the initial names, or -1.
        share
            Share of labelled cells among all training cells (lower than in minibatches).
        gather
            Concatenates the cells of all processes, if several share the minibatch.
        """
        s = self.settings
        x, name = (
            torch.cat([batch[side][key] for side in ("labelled", "unlabelled") if side in batch])
            for key in ("x", "name")
        )
        n = len(batch["labelled"]["x"])
        own = z = self.encoder(torch.cat([self.view(x), self.view(x)]))
        if gather is not None:  # labelled cells stay first
            parts = [part for view in z.chunk(2) for part in (view[:n], view[n:]) if len(part)]
            z = torch.cat([gather(part) for part in parts])
            name = torch.cat([gather(part) for part in (name[:n], name[n:]) if len(part)])
            n = n * len(name) // len(x)
        similarity, similarity_other = self.similarity(z).chunk(2)
        v, v_other = self.project(z).chunk(2)
        terms = {"reconstruction": self._reconstruction(x, own)}

        # The pseudo-labelling branch, eq. 6
        y = F.one_hot(name[:n], self.n_types).to(z.dtype)
        terms["labelled"] = losses.two_views_cross_entropy(
            similarity[:n] / s.tau, similarity_other[:n] / s.tau, y
        )
        classify = terms["labelled"]
        if len(name) > n:
            terms["unlabelled"] = losses.swapped_cross_entropy(
                similarity[n:], similarity_other[n:], s.tau, s.tau_sharp
            )
            classify = classify + terms["unlabelled"]
        terms["regularizer"] = self._regularizer(similarity, n, share) + self._regularizer(
            similarity_other, n, share
        )
        classify = classify + terms["regularizer"]
        if s.initial_names and len(name) > n:
            given = F.one_hot(name[n:].clamp_min(0), self.n_types) * (name[n:] >= 0)[:, None]
            terms["initial_names"] = losses.two_views_cross_entropy(
                similarity[n:] / s.tau, similarity_other[n:] / s.tau, given.to(z.dtype)
            )
            classify = classify + terms["initial_names"]

        # The contrastive branch, eq. 10
        both = torch.cat([v, v_other])
        cell = torch.arange(len(name), device=z.device).repeat(2)
        terms["unsupervised"] = losses.contrastive(both, cell == cell[:, None], s.tau_contrast)
        of_type = name[:n].repeat(2)
        terms["supervised"] = losses.contrastive(
            torch.cat([v[:n], v_other[:n]]), of_type == of_type[:, None], s.tau_contrast
        )
        contrast = terms["unsupervised"] + terms["supervised"]
        terms["pseudo"] = self._pseudo_contrast(v, v_other, similarity, similarity_other, name[:n])
        contrast = contrast + terms["pseudo"]

        total = terms["reconstruction"] + s.classify_weight * classify
        return total + s.contrast_weight * contrast, terms

    def _reconstruction(self, x: Tensor, z: Tensor) -> Tensor:
        """Reconstruction error of both views, averaged over cells and inputs."""
        decoded = self.decoder(z)
        if self.settings.reconstruction == "mse":
            return F.mse_loss(decoded, self.inputs(x).repeat(2, 1))
        mu, theta, dropout = decoded.chunk(3, dim=1)
        likelihood = ZeroInflatedNegativeBinomial(
            mu=mu.clamp(-10, 10).exp(),
            theta=theta.clamp(-10, 10).exp(),
            zi_logits=dropout,
            validate_args=False,
        )
        # CP10k are not integers, which would raise a warning in every step.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The value argument must be within")
            return -likelihood.log_prob(x.expm1().repeat(2, 1)).mean()

    def _regularizer(self, similarity: Tensor, n: int, share: float) -> Tensor:
        """The term of eq. 5 for one view, whose first ``n`` cells are labelled."""
        s = self.settings
        p = (similarity / s.tau).softmax(dim=1)
        mean = p[:n].mean(dim=0)
        if len(p) > n:
            mean = torch.lerp(p[n:].mean(dim=0), mean, share)
        return self._divergence(mean)

    def _divergence(self, mean: Tensor) -> Tensor:
        """Divergence of the mean prediction, (n_types,), from the estimated distribution."""
        return losses.distribution_divergence(mean, self.pi, self.settings.rho)

    def _pseudo_contrast(
        self,
        v: Tensor,
        v_other: Tensor,
        similarity: Tensor,
        similarity_other: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """The third loss of eq. 10, on labelled cells and sampled pseudo-labels (eqs. 7-9)."""
        s, n = self.settings, len(labels)
        logits = torch.stack([similarity, similarity_other]).detach() / s.tau
        p = torch.stack([losses.rectify(one, self.pi, s.gamma) for one in logits]).mean(dim=0)
        in_batch = torch.bincount(labels, minlength=self.n_types) > 0
        rate = losses.sampling_rate(self.pi, in_batch, s.alpha, s.beta)
        sampled = n + losses.most_confident(p[n:], rate)
        cells = torch.cat([torch.arange(n, device=v.device), sampled])
        return self._soft_contrast(v[cells], v_other[cells], p[cells])

    def _soft_contrast(self, v: Tensor, v_other: Tensor, p: Tensor) -> Tensor:
        """Eq. 9, from the features of both views and the rectified predictions."""
        return losses.soft_contrastive(v, v_other, p, self.settings.tau_contrast)


def distribution(
    clusters: np.ndarray, labels: np.ndarray, predicted: np.ndarray | None, n_seen: int, n: int
) -> np.ndarray:
    """Share of each type from cluster sizes, (n,), known types first (section 3.3).

    Clusters are matched to known types by their labelled cells (Hungarian method).

    Parameters
    ----------
    clusters
        Cluster of each cell, (n_cells,).
    labels
        Type code of each cell, (n_cells,); -1 for unlabelled cells.
    predicted
        Predicted type of each cell, used to match the remaining clusters to novel types; None
        matches them in order of size.
    n_seen, n
        Numbers of known types and of all types.
    """
    size = np.bincount(clusters, minlength=n).astype(float)

    def matched(codes: np.ndarray, lowest: int, highest: int, free: np.ndarray) -> np.ndarray:
        shared = np.zeros((n, n))
        np.add.at(shared, (codes[codes >= 0], clusters[codes >= 0]), 1)
        return free[linear_sum_assignment(-shared[lowest:highest, free])[1]]

    seen = matched(labels, 0, n_seen, np.arange(n))
    free = np.setdiff1d(np.arange(n), seen)
    if predicted is None:
        novel = free[np.argsort(-size[free], kind="stable")]
    else:
        novel = matched(np.where(labels < 0, predicted, -1), n_seen, n, free)
    return shares(size[np.concatenate([seen, novel])])


def shares(size: np.ndarray) -> np.ndarray:
    """Sizes as shares, all above 0 because their logarithms are taken."""
    size = np.maximum(size, 1)
    return size / size.sum()


class SCDETPlan(Plan):
    """Training plan that re-estimates the type distribution every few epochs."""

    shareable = True

    module: SCDETModule

    def __init__(
        self,
        module: SCDETModule,
        settings: SCDETSettings,
        cells: Cells,
        mixed: bool,
        rng: np.random.Generator,
    ):
        super().__init__(module, lr=settings.lr)
        self.settings, self.cells, self.mixed, self.rng = settings, cells, mixed, rng
        self.labels = cells.arrays["label"]
        self.share = float((self.labels >= 0).mean())

    def on_train_epoch_start(self) -> None:
        """Estimate the distribution every ``estimate_every`` epochs."""
        s = self.settings
        # The initial names are the best first estimate. Under a batch effect they are kept to the
        # end: clusters would separate the technologies, and the query's count as novel types.
        known = (
            s.initial_names
            and (self.current_epoch == 0 or not self.mixed)
            and (self.cells.arrays["name"] >= 0).all()
        )
        if self.current_epoch % s.estimate_every == 0:
            pi = self._named() if known else self._estimate()
            self.module.pi.copy_(torch.from_numpy(pi))

    def _named(self) -> np.ndarray:
        return shares(np.bincount(self.cells.arrays["name"], minlength=self.module.n_types))

    def _estimate(self) -> np.ndarray:
        """Share of each type, by k-means on the features of all cells (section 3.3)."""
        features, predicted = self._features()
        n = self.module.n_types
        clusters = k_means(features, n, int(self.rng.integers(2**31)), n_init=3).labels_
        by = predicted if self._match_by_prediction() else None
        return distribution(clusters, self.labels, by, self.module.n_seen, n)

    def _match_by_prediction(self) -> bool:
        """Whether novel clusters are matched to prototypes by prediction rather than by size."""
        return self.settings.initial_names

    @torch.no_grad()
    def _features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features to cluster and predicted types of all cells."""
        module, device = self.module, self.device
        module.eval()
        features, predicted = [], []
        for start in range(0, len(self.cells), 2048):
            x = self.cells[slice(start, start + 2048)]["x"].to(device)
            z = module.encoder(module.inputs(x))
            features.append(self._feature(z).cpu().numpy())
            predicted.append(module.similarity(z).argmax(dim=1).cpu().numpy())
        module.train()
        return np.concatenate(features), np.concatenate(predicted)

    def _feature(self, z: Tensor) -> Tensor:
        """Unit-length features to cluster, from the embedding (n_cells, n_hidden[-1])."""
        return self.module.project(z)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on a labelled and an unlabelled minibatch."""
        total, terms = self.module.loss(batch, self.share, self.gather if self.shared else None)
        self.log_losses({"loss": total, **terms}, len(batch["labelled"]["x"]))
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.module.parameters(), lr=self.settings.lr)


@docs.dedent
class SCDET(OpenWorldModel):
    """scDET: known and novel types in one model, for long-tailed type distributions.

    A prototype classifier learns from labelled cells and its own sharpened predictions, regularised
    towards a type distribution that is estimated by k-means on a contrastive branch. That branch
    learns from the classifier's pseudo-labels, corrected for the long tail. The weights of the last
    epoch are kept.

    Parameters
    ----------
    %(adata)s
    preset
        "default" (principal components, lower temperatures, a few hundred steps, and initial names
        for the query's cells) or "paper" (section 4.1 of the paper).
    %(ignore_case)s
    **settings
        Changes to the preset, fields of :class:`SCDETSettings`.

    Examples
    --------
    >>> SCDET.setup_anndata(joint, "cell_type", unlabeled_category="Unknown")  # doctest: +SKIP
    >>> model = SCDET(joint, n_novel=3)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> joint.obs["predicted"] = model.predict()  # doctest: +SKIP
    """

    PRESETS: ClassVar[dict[str, SCDETSettings]] = {"default": SCDETSettings(), "paper": PAPER}
    MODULE: ClassVar[type[SCDETModule]] = SCDETModule
    PLAN: ClassVar[type[SCDETPlan]] = SCDETPlan
    settings_: SCDETSettings
    module: SCDETModule

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return self.MODULE(n_input, n_classes, len(self.classes_), self.settings_)

    def _train(self, options: TrainOptions) -> None:
        s = self.settings_
        cells, everyone = self._searched_cells()
        label = cells.arrays["label"]
        labelled, unlabelled = np.flatnonzero(label >= 0), np.flatnonzero(label < 0)
        name = label.copy()
        rng = numpy_generator()
        found = self._find_novel(cells, name, rng, options)
        n_novel, mixed = (found.n, found.mixed) if found else (s.n_novel or 0, True)
        self._name_novel(n_novel)
        self._build()
        self._set_inputs(cells.x)
        cells = Cells(cells.x, cells.arrays | {"name": name}, cells.fill)
        if s.initial_names:
            self._set_prototypes(cells)
        splitter = Splitter(
            cells,
            {"labelled": labelled, "unlabelled": unlabelled},
            np.array([], dtype=int),
            s.batch_size * options.n_processes,
        )
        plan = self.PLAN(self.module, s, cells, mixed, rng)
        fit(self, plan, splitter, n_epochs(s, splitter, options), options)
        self._order_novel(everyone)

    def _searched_cells(self) -> tuple[Cells, np.ndarray]:
        """Training cells, with their ``position``, and the positions of all unlabelled ones.

        Of many unlabelled cells some are searched for novel types and trained on.
        """
        s, cells = self.settings_, self._training_cells()
        label = cells.arrays["label"]
        unlabelled = np.flatnonzero(label < 0)
        chosen = unlabelled
        if s.initial_names or s.n_novel is None:
            chosen = unlabelled[sketch_regions(cells.x[unlabelled])]
        if len(chosen) == len(unlabelled):
            arrays = cells.arrays | {"position": np.arange(len(cells))}
            return Cells(cells.x, arrays, cells.fill), unlabelled
        self.audit_.append(
            f"query: {len(chosen)} of {len(unlabelled)} unlabelled cells were grouped, searched "
            "and learnt from; the network that these have trained names the others"
        )
        some = np.sort(np.concatenate([np.flatnonzero(label >= 0), chosen]))
        arrays = {key: values[some] for key, values in cells.arrays.items()}
        return Cells(cells.x[some], arrays | {"position": some}, cells.fill), unlabelled

    def _find_novel(
        self, cells: Cells, name: np.ndarray, rng: np.random.Generator, options: TrainOptions
    ) -> novelty.Novelty | None:
        """Search for novel types; None if none are sought, or their number is all that is needed.

        With ``initial_names``, names are written into ``name``, (n_cells,), of known types too:
        without them, a query so small that its cells are in every minibatch would reinforce its
        arbitrary initial predictions.
        """
        s = self.settings_
        labelled, unlabelled = np.flatnonzero(name >= 0), np.flatnonzero(name < 0)
        x_ref, y, x = cells.x[labelled], name[labelled], cells.x[unlabelled]
        if s.n_novel == 0 or (s.n_novel is not None and not s.initial_names):
            if s.initial_names:
                name[unlabelled] = novelty.known_types(x_ref, y, x)
            return None
        compared = sketch_types(y)
        found = novelty.find(x_ref[compared], y[compared], x, s.n_novel, rng, options.progress)
        self.audit_ += found.audit
        if s.initial_names:
            name[unlabelled] = found.names
        if found.sought and s.n_novel is None:
            self.n_novel_ = found.interval
        if s.initial_names and not found.mixed:
            known = unlabelled[found.names < len(self.classes_)]
            name[known] = self._scnym_predictions(cells, known, options)
        return found

    def _scnym_predictions(
        self, cells: Cells, indices: np.ndarray, options: TrainOptions
    ) -> np.ndarray:
        """Known types of cells predicted by scNym, whose adversary reduces batch effects."""
        n_genes, n_seen = len(self.features_.selected), len(self.classes_)
        module = SCNYMModule(n_genes, n_seen, self.n_domains_, SCNYM.PRESETS["default"])
        self.module = cast(Any, module)  # temporarily, for prediction
        train_classifier(self, cells, replace(options, max_epochs=None, trainer=options.where))
        proba = self.predict_cells(indices=cells.arrays["position"][indices]).proba
        self.is_trained_ = False
        return proba.argmax(axis=1)

    def _set_inputs(self, x: sp.csr_matrix) -> None:
        """Fit the preprocessing of the inputs: standardisation or principal components."""
        module, n = self.module, self.settings_.n_components
        if not n:
            x = x.astype(np.float64)
            mean = np.asarray(x.mean(axis=0)).ravel()
            variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
            # constant genes stay 0
            module.scale.copy_(torch.from_numpy(np.sqrt(np.where(variance > 1e-8, variance, 1))))
        else:
            pca = fit_pca(x, n, seed=0)
            mean = pca.mean_
            # The first component gets a standard deviation of 2; the others have less.
            unit = np.sqrt(pca.explained_variance_[0]) / 2
            components = torch.from_numpy(pca.components_ / max(unit, 1e-6))
            module.components[: len(components)].copy_(components)
        module.mean.copy_(torch.from_numpy(mean))

    @torch.no_grad()
    def _set_prototypes(self, cells: Cells) -> None:
        """Initialise each prototype at the mean of the cells with its name."""
        module, name = self.module, cells.arrays["name"]
        for code in np.unique(name[name >= 0]):
            some = np.flatnonzero(name == code)[:1000]
            z = module.encoder(module.inputs(cells[some]["x"]))
            module.prototypes[code] = F.normalize(module.hidden(z), dim=1).mean(dim=0)

    def _order_novel(self, unlabelled: np.ndarray) -> None:
        """Sort the novel types by number of cells, and drop those without any."""
        n_seen = len(self.classes_)
        if self.module.n_types == n_seen:
            return
        predicted = self.predict_cells(indices=unlabelled).proba.argmax(axis=1)
        size = np.bincount(predicted, minlength=self.module.n_types)[n_seen:]
        kept = np.argsort(-size, kind="stable")[: np.count_nonzero(size)]
        if len(kept) < len(size):
            self.audit_.append(f"novel: {len(size) - len(kept)} types without cells were dropped")
            if self.n_novel_ is not None:
                low = min(self.n_novel_["low"], len(kept))
                self.n_novel_ = self.n_novel_ | {"n": len(kept), "low": low}
        order = torch.from_numpy(np.concatenate([np.arange(n_seen), n_seen + kept]))
        state = self.module.state_dict()
        for key in ("prototypes", "pi"):
            state[key] = state[key][order]
        self._name_novel(len(kept))
        self._build()
        self.module.load_state_dict(state)
        self.module.eval()

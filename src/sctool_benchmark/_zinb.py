"""Rivals of CICL and scDET: auto-encoders that cluster, or name, the cells that they embed.

All share one network: an encoder, a decoder with a zero-inflated negative binomial likelihood or a
squared error, and centroids in the embedding. After pretraining by reconstruction, the centroids
start at k-means or at labelled types, and are trained together with the network. What the papers
differ in are the settings of `AutoencoderSettings`:

- scDeepCluster (Tian et al. 2019): a Student-t assignment to the centroids, made sharper;
- scziDesk (Chen et al. 2020): a weighted soft k-means, and pairwise similarities made sharper;
- scNAME (Wan et al. 2022): the k-means, an estimate of corrupted genes, and a contrast with the
  nearest neighbours of a cell in a memory of all cells;
- ItClust (Hu et al. 2020): centroids and network start at a labelled reference;
- MARS (Brbic et al. 2020): landmarks of the labelled types and of the query, pushed apart;
- scGAD (Zhai et al. 2023): prototypes of the reference and of the query, confident clusters as
  labels, and mutual neighbours as pairs.

Noise is added to the inputs alone, and clusters are learnt from the embedding without it.
"""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scvi.distributions import ZeroInflatedNegativeBinomial
from torch import Tensor, nn

from sctool import novelty
from sctool._batches import Cells, Splitter
from sctool._data import TrainingData
from sctool._neighbors import count_clusters, fit_pca, k_means
from sctool._train import Plan, TrainOptions, fit, numpy_generator
from sctool.losses import sharpen
from sctool.model import CICL
from sctool.model._base import AnnotationModel, NetworkSettings, OpenWorldModel

Batch = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class AutoencoderSettings(NetworkSettings):
    """What the methods of the family differ in.

    Parameters
    ----------
    n_clusters
        Number of clusters, of methods without a reference; None estimates it as CICL does.
    n_novel
        Number of novel types, of methods with a reference; None estimates it as scDET does.
    n_hidden
        Units of the encoder's layers, the last of which is the embedding; mirrored in the decoder.
    normalised
        Layers are normalised, the embedding too, which bounds it (MARS).
    likelihood
        Of the reconstruction: "zinb" of the counts, or "mse", a squared error of the inputs.
    ridge
        Weight of the squared probability of a dropout.
    noise
        Standard deviation of the noise on the inputs, which are standardised genes.
    reconstructed
        Weight of the reconstruction after pretraining.
    assigned
        Weight of the divergence of the Student-t assignments from sharper ones (scDeepCluster).
    paired
        Weight of the divergence of the pairwise similarities from sharper ones (scziDesk).
    compact
        Weight of the weighted soft k-means (scziDesk, scNAME).
    mask_estimated, masked
        Weight of the estimate of which genes of a view were corrupted, and the share that is:
        a corrupted gene has the value of another cell of the minibatch (scNAME, scGAD).
    neighbours, n_neighbors, temperature
        Weight of the contrast with the nearest neighbours, their number, and its temperature
        (scNAME); scGAD takes the number of mutual neighbours from it.
    apart
        Weight of the distance between landmarks (MARS).
    optimizer, cluster_lr
        Optimiser after pretraining, "adam", "adadelta" or "sgd", and its learning rate.
    pretrain_epochs, pretrain_steps
        Passes of the pretraining; None: as many as give the steps. ``max_epochs`` and
        ``min_steps`` say the same of the training.
    update_every, tolerance
        Epochs between two looks at the clusters; training ends once fewer than this share of the
        cells have changed between two.
    """

    target_sum: float | None = None
    n_clusters: int | None = None
    n_novel: int | None = None
    n_hidden: tuple[int, ...] = (256, 64, 32)
    normalised: bool = False
    likelihood: str = "zinb"
    ridge: float = 0.0
    noise: float = 0.0
    reconstructed: float = 1.0
    assigned: float = 0.0
    paired: float = 0.0
    compact: float = 0.0
    mask_estimated: float = 0.0
    masked: float = 0.3
    neighbours: float = 0.0
    n_neighbors: int = 10
    temperature: float = 0.7
    apart: float = 0.0
    optimizer: str = "adam"
    cluster_lr: float = 1e-3
    pretrain_epochs: int | None = None
    pretrain_steps: int = 300
    min_steps: int = 300
    update_every: int = 1
    tolerance: float = 0.001

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_hidden", tuple(self.n_hidden))
        choices = {"likelihood": ("zinb", "mse"), "optimizer": tuple(OPTIMIZERS)}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {known!r}")


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr, amsgrad=True),
    "adadelta": lambda parameters, lr: torch.optim.Adadelta(parameters, lr, rho=0.95),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
}

#: As published, but 2,000 genes where the papers take all or leave the number open.
PUBLISHED: dict[str, AutoencoderSettings] = {
    "scdeepcluster": AutoencoderSettings(
        noise=2.5,
        assigned=1.0,
        optimizer="adadelta",
        cluster_lr=1.0,
        pretrain_epochs=300,
        max_epochs=2000,
    ),
    "sczidesk": AutoencoderSettings(
        n_top_genes=500,
        noise=1.5,
        ridge=1.0,
        paired=0.001,
        compact=0.001,
        lr=1e-4,
        cluster_lr=1e-4,
        pretrain_epochs=1000,
        max_epochs=2000,
        update_every=10,
    ),
    "scname": AutoencoderSettings(
        n_top_genes=1000,
        noise=1.5,
        ridge=1.0,
        mask_estimated=1.0,
        neighbours=0.1,
        compact=0.1,
        batch_size=128,
        lr=1e-4,
        cluster_lr=1e-4,
        pretrain_epochs=500,
        max_epochs=1000,
        update_every=50,
    ),
    "itclust": AutoencoderSettings(
        n_hidden=(128, 32),
        likelihood="mse",
        reconstructed=0.0,
        assigned=1.0,
        optimizer="sgd",
        cluster_lr=0.01,
        pretrain_epochs=300,
        max_epochs=1000,
        update_every=5,
    ),
    "mars": AutoencoderSettings(
        n_hidden=(1000, 100),
        normalised=True,
        likelihood="mse",
        reconstructed=0.0,
        apart=0.2,
        batch_size=100_000,
        pretrain_epochs=25,
        max_epochs=30,
    ),
    "scgad": AutoencoderSettings(
        mask_estimated=1.0,
        n_neighbors=5,
        pretrain_epochs=600,
        max_epochs=900,
        update_every=10,
    ),
}


def short(published: AutoencoderSettings) -> AutoencoderSettings:
    """Settings for a short run on a core: 300 steps each, at a learning rate of at least 1e-3.

    Published are hundreds of passes over the cells, at learning rates down to a tenth.
    """
    return replace(
        published,
        n_top_genes=min(published.n_top_genes or 1000, 1000),
        pretrain_epochs=None,
        max_epochs=None,
        lr=max(published.lr, 1e-3),
        cluster_lr=max(published.cluster_lr, 1e-3),
        update_every=min(published.update_every, 5),
    )


# -- Losses ----------------------------------------------------------------------------------------


def zinb_loss(counts: Tensor, mean: Tensor, theta: Tensor, dropout: Tensor, ridge: float) -> Tensor:
    """Negative log likelihood of counts, averaged over cells and genes.

    Parameters
    ----------
    counts, mean, theta
        Counts, their mean and inverse dispersion, (n_cells, n_genes).
    dropout
        Logit of the probability of a dropout, whose square has the weight `ridge`.
    """
    # Counts of cells that only came scaled are not integers, which would warn in every step.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The value argument must be within")
        likelihood = ZeroInflatedNegativeBinomial(
            mu=mean, theta=theta, zi_logits=dropout, validate_args=False
        ).log_prob(counts)
    return (ridge * dropout.sigmoid().square() - likelihood).mean()


def student_kernel(z: Tensor, centroids: Tensor) -> Tensor:
    """Student's t kernel, (n_cells, n_centroids), not normalised."""
    return 1 / (1 + torch.cdist(z, centroids).square())


def target_distribution(q: Tensor) -> Tensor:
    """Sharper assignments in which large clusters weigh less: ``q^2 / sum_i q``, normalised."""
    p = q.square() / q.sum(dim=0)
    return p / p.sum(dim=1, keepdim=True)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of ``p`` from ``q``, averaged over cells."""
    return (p * (p.clamp_min(1e-10).log() - q.clamp_min(1e-10).log())).sum(dim=1).mean()


def soft_k_means(z: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances to the centroids, weighted by squared and normalised ``exp(-distance)``."""
    distance = torch.cdist(z, centroids).square()
    weight = (-2 * distance).softmax(dim=1)  # the square of a softmax, normalised anew
    return (weight * distance).sum(dim=1).mean()


def pairwise_divergence(z: Tensor) -> Tensor:
    """Divergence of the similarities to other cells from sharper ones, summed over cells."""
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    p = student_kernel(z, z).masked_fill(itself, 0.0)
    p = p / p.sum(dim=1, keepdim=True)
    return len(z) * divergence(sharpen(p.detach(), 0.5), p)


def corrupt(x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Replace genes of each cell by those of other cells; also which values this has changed.

    Parameters
    ----------
    x
        (n_cells, n_genes).
    share
        Probability of each value to be replaced.
    """
    drawn = torch.rand_like(x).argsort(dim=0)
    corrupted = torch.where(torch.rand_like(x) < share, x.gather(0, drawn), x)
    return corrupted, (corrupted != x).to(x.dtype)


def neighbour_contrast(
    z: Tensor, corrupted: Tensor, bank: Tensor, n_neighbors: int, temperature: float
) -> Tensor:
    """Contrast the embedding of corrupted cells with the neighbours of the cells themselves.

    Parameters
    ----------
    z, corrupted
        Embeddings of some cells and of their corrupted views, (n_cells, n_latent).
    bank
        Embeddings of all cells, of earlier steps, (n_all, n_latent).
    """
    z, corrupted, bank = (F.normalize(each, dim=1) for each in (z, corrupted, bank))
    nearest = (z @ bank.T).topk(min(n_neighbors, len(bank)), dim=1).indices
    similarity = corrupted @ bank.T / temperature
    return (similarity.logsumexp(dim=1) - similarity.gather(1, nearest).logsumexp(dim=1)).mean()


def mutual_neighbours(z: Tensor, k: int) -> Tensor:
    """Which cells are among the nearest of each other, (n_cells, n_cells)."""
    distance = torch.cdist(z, z).fill_diagonal_(torch.inf)
    near = torch.zeros_like(distance).scatter_(
        1, distance.topk(min(k, len(z) - 1), largest=False).indices, 1.0
    )
    return near * near.T


# -- Network ---------------------------------------------------------------------------------------


def _layers(sizes: tuple[int, ...], normalised: bool) -> nn.Sequential:
    steps: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        steps.append(nn.Linear(n_in, n_out))
        steps += [nn.LayerNorm(n_out), nn.ELU()] if normalised else [nn.ReLU()]
    return nn.Sequential(*steps)


class Autoencoder(nn.Module):
    """Encoder, decoder, and centroids in the embedding.

    Parameters
    ----------
    n_input, n_centroids
        Numbers of genes and of centroids.
    settings
        Hyperparameters.
    """

    mean: Tensor  # of each gene, (n_input,)
    scale: Tensor  # divisor of each gene, (n_input,)
    cluster_of: Tensor  # type of each centroid, (n_centroids,)

    def __init__(self, n_input: int, n_centroids: int, settings: AutoencoderSettings):
        super().__init__()
        self.settings = s = settings
        n = s.n_hidden[-1]
        self.register_buffer("mean", torch.zeros(n_input))
        self.register_buffer("scale", torch.ones(n_input))
        self.register_buffer("cluster_of", torch.arange(n_centroids))
        layers = _layers((n_input, *s.n_hidden), s.normalised)
        # no nonlinearity on the embedding, unless it is normalised
        self.encoder = layers if s.normalised else nn.Sequential(*list(layers)[:-1])
        self.decoder = _layers(s.n_hidden[::-1], s.normalised)
        heads = ("mean", "theta", "dropout") if s.likelihood == "zinb" else ("input",)
        if s.mask_estimated:
            heads = (*heads, "mask")
        self.heads = nn.ModuleDict({name: nn.Linear(s.n_hidden[0], n_input) for name in heads})
        self.centroids = nn.Parameter(torch.zeros(n_centroids, n))

    def inputs(self, x: Tensor) -> Tensor:
        """Standardised genes from log1p values."""
        return ((x - self.mean) / self.scale).clamp(-10, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each type, by its nearest centroid, and embedding of log1p values."""
        z = self.encoder(self.inputs(x))
        kernel = student_kernel(z, self.centroids)
        n = int(self.cluster_of.max()) + 1
        nearest = kernel.new_zeros(len(z), n)
        nearest = nearest.scatter_reduce(1, self.cluster_of.expand(len(z), -1), kernel, "amax")
        return nearest / nearest.sum(dim=1, keepdim=True), z

    def decoded(self, inputs: Tensor) -> dict[str, Tensor]:
        """Output of each head for the inputs of the network."""
        h = self.decoder(self.encoder(inputs))
        return {name: head(h) for name, head in self.heads.items()}

    def loss(self, cells: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms of the pretraining: the reconstruction, and the estimate of the mask.

        Parameters
        ----------
        cells
            ``x``, log1p values (n_cells, n_genes), and ``size``, by which their exponentials are
            multiplied to give counts, (n_cells,).
        """
        s, inputs = self.settings, self.inputs(cells["x"])
        out = self.decoded(inputs + s.noise * torch.randn_like(inputs))
        if s.likelihood == "zinb":
            size = cells["size"][:, None]
            counts = (cells["x"].expm1() * size).round()
            mean, theta = (out[name].clamp(-15, 15).exp() for name in ("mean", "theta"))
            loss = zinb_loss(counts, mean * size, theta, out["dropout"], s.ridge)
        else:
            loss = F.mse_loss(out["input"], inputs)
        terms = {"reconstruction": loss}
        if s.mask_estimated:
            corrupted, mask = corrupt(inputs, s.masked)
            estimated = self.decoded(corrupted)["mask"]
            weight = s.mask_estimated
            terms["mask"] = weight * F.binary_cross_entropy_with_logits(estimated, mask)
        return terms


@torch.no_grad()
def embed(module: Autoencoder, cells: Cells) -> Tensor:
    """Embedding of all cells, (n_cells, n_latent)."""
    device, parts = module.mean.device, []
    for start in range(0, len(cells), 2048):
        x = cells[slice(start, start + 2048)]["x"].to(device)
        parts.append(module.encoder(module.inputs(x)))
    return torch.cat(parts)


def set_inputs(module: Autoencoder, x: sp.csr_matrix) -> None:
    """Set mean and standard deviation of each gene; constant genes stay 0."""
    x = x.astype(np.float64)
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
    module.mean.copy_(torch.from_numpy(mean))
    module.scale.copy_(torch.from_numpy(np.sqrt(np.where(variance > 1e-8, variance, 1))))


def set_centroids(module: Autoencoder, centroids: Tensor | np.ndarray) -> None:
    """Replace some or all of the centroids, the first ones."""
    with torch.no_grad():
        module.centroids[: len(centroids)] = torch.as_tensor(centroids).to(module.centroids)


# -- Training --------------------------------------------------------------------------------------


class Pretraining(Plan):
    """Reconstruction alone."""

    module: Autoencoder

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on a minibatch of each population."""
        terms: dict[str, Tensor] = {}
        for cells in batch.values():
            for name, value in self.module.loss(cells).items():
                terms[name] = terms.get(name, torch.zeros(())) + value
        total = torch.stack(list(terms.values())).sum()
        self.log_losses({"loss": total, **terms}, len(next(iter(batch.values()))["x"]))
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return OPTIMIZERS["adam"](self.module.parameters(), self.module.settings.lr)


class SelfTraining(Plan):
    """Network and centroids, together, by what the settings say.

    Parameters
    ----------
    cells
        All cells that are clustered; a minibatch has their positions as ``index``.
    labels
        Codes of the cells, if they are known: these are the assignments that are learnt (ItClust's
        training on its reference).
    """

    module: Autoencoder

    def __init__(self, module: Autoencoder, cells: Cells, labels: np.ndarray | None = None):
        super().__init__(module)
        self.cells, self.labels = cells, labels
        self.found: Tensor | None = None
        self.target: Tensor | None = None

    def on_train_epoch_start(self) -> None:
        """Look at the clusters: assign anew, and stop if hardly a cell has changed."""
        s = self.module.settings
        if self.current_epoch % s.update_every:
            return
        z = embed(self.module, self.cells)
        if not self.current_epoch:
            self.bank = F.normalize(z, dim=1)
        q = student_kernel(z, self.module.centroids.detach())
        q = q / q.sum(dim=1, keepdim=True)
        found = q.argmax(dim=1)
        if self.labels is not None:
            labels = torch.from_numpy(self.labels).to(z.device)
            self.target = F.one_hot(labels, q.shape[1]).to(q.dtype)
            return
        self.target = target_distribution(q)
        if self.found is not None and (found != self.found).float().mean() < s.tolerance:
            self.trainer.should_stop = True
        self.found = found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on a minibatch."""
        module, cells = self.module, batch["cells"]
        s, index = module.settings, cells["index"]
        terms = module.loss(cells) if s.reconstructed else {}
        inputs = module.inputs(cells["x"])
        z = module.encoder(inputs)
        if s.assigned:
            q = student_kernel(z, module.centroids)
            q = q / q.sum(dim=1, keepdim=True)
            assert self.target is not None
            terms["assigned"] = s.assigned * divergence(self.target[index], q)
        if s.compact:
            terms["compact"] = s.compact * soft_k_means(z, module.centroids)
        if s.paired:
            terms["paired"] = s.paired * pairwise_divergence(z)
        if s.neighbours:
            corrupted = module.encoder(corrupt(inputs, s.masked)[0])
            loss = neighbour_contrast(z, corrupted, self.bank, s.n_neighbors, s.temperature)
            terms["neighbours"] = s.neighbours * loss
            self.bank[index] = F.normalize(z.detach(), dim=1)
        total = torch.stack(list(terms.values())).sum()
        self.log_losses({"loss": total, **terms}, len(index))
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that the settings name."""
        s = self.module.settings
        return OPTIMIZERS[s.optimizer](self.module.parameters(), s.cluster_lr)


def run(
    model: Any,
    plan: Plan,
    cells: Cells,
    populations: dict[str, np.ndarray],
    epochs: int | None,
    steps: int,
    options: TrainOptions,
) -> None:
    """Train by a plan, for a number of epochs or of steps."""
    splitter = Splitter(cells, populations, np.array([], dtype=int), model.settings_.batch_size)
    by_steps = -(-steps // splitter.steps_per_epoch)
    fit(model, plan, splitter, options.max_epochs or epochs or by_steps, options)
    model.module.eval()


def size_factors(data: TrainingData) -> np.ndarray:
    """Return what the exponentials of the inputs are multiplied by to give counts, (n_cells,).

    The total of each cell over the median total, which counts are scaled to. Values that are no
    counts stay as they are scaled.
    """
    total = np.asarray(sp.csr_matrix(data.x).sum(axis=1), dtype=np.float32).ravel()
    return total / np.median(total) if data.is_counts else np.ones_like(total)


# -- Without a reference ---------------------------------------------------------------------------


class SCDeepCluster(CICL):
    """An auto-encoder whose clusters are trained with it, in the place of CICL's network."""

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": short(PUBLISHED["scdeepcluster"]),
        "published": PUBLISHED["scdeepcluster"],
    }
    settings_: AutoencoderSettings  # type: ignore[assignment]
    module: Autoencoder  # type: ignore[assignment]

    def _arrays(self, data: TrainingData) -> dict[str, np.ndarray]:
        return super()._arrays(data) | {"size": size_factors(data)}

    def _build(self) -> None:
        n = len(self.features_.selected)
        self.module = Autoencoder(n, self._n_centroids, self.settings_)
        self._model_summary_string = f"{type(self).__name__} with {n} genes"

    def _train(self, options: TrainOptions) -> None:
        s, cells, rng = self.settings_, self._training_cells(), numpy_generator()
        self.n_clusters_ = {"n": s.n_clusters or 0}
        if s.n_clusters is None:
            z = fit_pca(cells.x, 50, seed=0).transform(cells.x.astype(np.float64))
            self.n_clusters_ = count_clusters(z.astype(np.float32), rng)
        self._n_centroids = self.n_clusters_["n"]
        self._build()
        set_inputs(self.module, cells.x)
        everyone = {"cells": np.arange(len(cells))}
        plan = Pretraining(self.module)
        run(self, plan, cells, everyone, s.pretrain_epochs, s.pretrain_steps, options)
        z = embed(self.module, cells).cpu().numpy()
        found = k_means(z, self._n_centroids, int(rng.integers(2**31)), n_init=20)
        set_centroids(self.module, found.cluster_centers_)
        clustering = SelfTraining(self.module, cells)
        run(self, clustering, cells, everyone, s.max_epochs, s.min_steps, options)
        code = np.concatenate([proba.argmax(axis=1) for proba, _ in self._forward_cells(cells)])
        size = np.bincount(code, minlength=self._n_centroids)
        set_centroids(self.module, self.module.centroids[np.argsort(-size, kind="stable").copy()])

    def _prediction_batch_size(self) -> int:
        return 2048


class SCZIDesk(SCDeepCluster):
    """scziDesk."""

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": short(PUBLISHED["sczidesk"]),
        "published": PUBLISHED["sczidesk"],
    }


class SCNAME(SCDeepCluster):
    """scNAME."""

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": short(PUBLISHED["scname"]),
        "published": PUBLISHED["scname"],
    }


# -- With a reference ------------------------------------------------------------------------------


class _WithReference(AnnotationModel):
    """What ItClust, MARS and scGAD share: inputs, pretraining, and centroids that bear names."""

    transductive = True
    settings_: AutoencoderSettings
    module: Autoencoder
    _n_centroids: int | None = None

    def _arrays(self, data: TrainingData) -> dict[str, np.ndarray]:
        index = {"index": np.arange(data.x.shape[0])}
        return super()._arrays(data) | index | {"size": size_factors(data)}

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return Autoencoder(n_input, self._n_centroids or n_classes, self.settings_)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(x)

    def _side(self, labelled: bool) -> Cells:
        """Cells of the reference, or of the query, each numbered from 0."""
        cells = self._training_cells()
        rows = np.flatnonzero((cells.arrays["label"] >= 0) == labelled)
        arrays = {name: values[rows] for name, values in cells.arrays.items()}
        return Cells(cells.x[rows], arrays | {"index": np.arange(len(rows))}, cells.fill)

    def _pretrain(self, cells: Cells, populations: dict[str, np.ndarray], options: Any) -> None:
        s = self.settings_
        set_inputs(self.module, cells.x)
        plan = Pretraining(self.module)
        run(self, plan, cells, populations, s.pretrain_epochs, s.pretrain_steps, options)


def class_means(z: Tensor, labels: np.ndarray) -> Tensor:
    """Mean embedding of each type, (n_types, n_latent)."""
    codes = torch.from_numpy(labels).to(z.device)
    return torch.stack([z[codes == code].mean(dim=0) for code in range(int(codes.max()) + 1)])


class ItClust(_WithReference):
    """ItClust: a network that has learnt the reference clusters the query, starting at its types.

    It finds no novel types. Cells of such a type are given the name of a cluster.
    """

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": short(PUBLISHED["itclust"]),
        "paper": PUBLISHED["itclust"],
    }

    def _train(self, options: TrainOptions) -> None:
        s, reference, query = self.settings_, self._side(True), self._side(False)
        labels = reference.arrays["label"]
        self._build()
        everyone = {"cells": np.arange(len(reference))}
        self._pretrain(reference, everyone, options)
        set_centroids(self.module, class_means(embed(self.module, reference), labels))
        plan = SelfTraining(self.module, reference, labels)
        run(self, plan, reference, everyone, s.max_epochs, s.min_steps, options)
        # Each side is standardised by itself.
        set_inputs(self.module, query.x)
        z, centroids = embed(self.module, query), self.module.centroids.detach().clone()
        found = student_kernel(z, centroids).argmax(dim=1)
        for code in found.unique():
            centroids[code] = z[found == code].mean(dim=0)
        set_centroids(self.module, centroids)
        everyone = {"cells": np.arange(len(query))}
        plan = SelfTraining(self.module, query)
        run(self, plan, query, everyone, s.max_epochs, s.min_steps, options)


class _OpenWorld(_WithReference, OpenWorldModel):
    """Clusters the query into known and novel types together."""

    def _number(self, options: TrainOptions) -> int:
        """Number of novel types, estimated as by scDET if it is not given."""
        if self.settings_.n_novel is not None:
            return self.settings_.n_novel
        reference, query = self._side(True), self._side(False)
        labels, rng = reference.arrays["label"], numpy_generator()
        found = novelty.find(reference.x, labels, query.x, None, rng, options.progress)
        if found.sought:
            self.n_novel_ = found.interval
        return found.n

    def _start(self, options: TrainOptions) -> int:
        """Build the network, with centroids for the reference's types and for the query's."""
        n_seen = len(self.classes_)
        n_total = n_seen + self._number(options)
        self._n_centroids = n_seen + n_total
        self._name_novel(n_total - n_seen)
        self._build()
        cells = self._training_cells()
        label = cells.arrays["label"]
        self.sides = {
            "labelled": np.flatnonzero(label >= 0),
            "unlabelled": np.flatnonzero(label < 0),
        }
        self._pretrain(cells, self.sides, options)
        return n_total

    def _name_centroids(self, of_cluster: np.ndarray) -> None:
        """Give the query's centroids the codes of known types, -1 for novel ones."""
        n_seen = len(self.classes_)
        novel = of_cluster < 0
        of_cluster[novel] = n_seen + np.arange(novel.sum())
        self._name_novel(int(novel.sum()))
        codes = np.concatenate([np.arange(n_seen), of_cluster])
        self.module.cluster_of.copy_(torch.from_numpy(codes))


class LandmarkPlan(Plan):
    """MARS: cells near their landmarks, and landmarks of the query apart from each other."""

    module: Autoencoder

    def __init__(self, module: Autoencoder, reference: Cells):
        super().__init__(module)
        self.reference = reference
        self.n_seen = int(reference.arrays["label"].max()) + 1

    def on_train_epoch_start(self) -> None:
        """Set the landmarks of the labelled types, which minimise their loss."""
        module, n, n_seen = self.module, self.module.settings.apart, self.n_seen
        means = class_means(embed(module, self.reference), self.reference.arrays["label"])
        before = module.centroids[:n_seen].detach() if self.current_epoch else means
        others = (before.sum(dim=0) - before) / max(n_seen - 1, 1)
        set_centroids(module, (means - n * others) / (1 - n))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on a minibatch of the reference and one of the query."""
        module, n_seen = self.module, self.n_seen
        z, other = (module.encoder(module.inputs(batch[side]["x"])) for side in SIDES)
        label = batch["labelled"]["label"]
        landmarks, ours = module.centroids[:n_seen].detach(), module.centroids[n_seen:]
        own = (z - landmarks[label]).square().sum(dim=1)
        distance = torch.cdist(other, ours).square()
        nearest, found = distance.min(dim=1)
        between = torch.cdist(ours, ours).square().sum() / max(len(ours) * (len(ours) - 1), 1)
        terms = {
            "labelled": _mean_of_groups(own, label),
            "unlabelled": _mean_of_groups(nearest, found),
            "apart": -module.settings.apart * between,
        }
        total = torch.stack(list(terms.values())).sum() / 2
        self.log_losses({"loss": total, **terms}, len(z))
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, of the encoder and of the query's landmarks."""
        return OPTIMIZERS["adam"](self.module.parameters(), self.module.settings.cluster_lr)


SIDES = ("labelled", "unlabelled")


def _mean_of_groups(values: Tensor, groups: Tensor) -> Tensor:
    """Mean over groups of the mean over their cells."""
    return torch.stack([values[groups == group].mean() for group in groups.unique()]).mean()


class MARS(_OpenWorld):
    """MARS: landmarks for the types of the reference and for those of the query.

    As many of the query's landmarks as there are known types get their names, by the smallest sum
    of distances; the others are novel. Landmarks and network take their steps together; in the
    paper in turn. Labelled landmarks lie beyond the means of their types, which follow them:
    without normalised layers they would move without end.
    """

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": replace(PUBLISHED["mars"], n_top_genes=1000),
        "paper": PUBLISHED["mars"],
    }

    def _train(self, options: TrainOptions) -> None:
        s, n_seen, cells = self.settings_, len(self.classes_), self._training_cells()
        n_total = self._start(options)
        reference, query = self._side(True), self._side(False)
        z = embed(self.module, query).cpu().numpy()
        seed = int(numpy_generator().integers(2**31))
        means = class_means(embed(self.module, reference), reference.arrays["label"])
        clusters = torch.from_numpy(k_means(z, n_total, seed).cluster_centers_)
        set_centroids(self.module, torch.cat([means, clusters.to(means)]))
        plan = LandmarkPlan(self.module, reference)
        run(self, plan, cells, self.sides, s.max_epochs, s.min_steps, options)
        of_cluster = np.full(n_total, -1)
        landmarks, ours = self.module.centroids.detach().cpu().split([n_seen, n_total])
        rows, columns = linear_sum_assignment(torch.cdist(landmarks, ours).square())
        of_cluster[columns] = rows
        self._name_centroids(of_cluster)
        # A cell of the query is named by the query's landmarks alone.
        set_centroids(self.module, torch.full((n_seen, z.shape[1]), 1e6))


class GeneralizedPlan(Plan):
    """scGAD: prototypes of the reference and of the query, and pairs of cells that agree."""

    module: Autoencoder

    def __init__(self, module: Autoencoder, reference: Cells, query: Cells, seed: int):
        super().__init__(module)
        self.reference, self.query, self.seed = reference, query, seed
        self.n_seen = int(reference.arrays["label"].max()) + 1

    def on_train_epoch_start(self) -> None:
        """Every few epochs prototypes are set anew: to means of types, and to k-means."""
        if self.current_epoch % self.module.settings.update_every:
            return
        module, n_seen = self.module, self.n_seen
        means = class_means(embed(module, self.reference), self.reference.arrays["label"])
        z = embed(module, self.query)
        n_total = len(module.centroids) - n_seen
        clusters = k_means(z.cpu().numpy(), n_total, self.seed)
        centres = torch.from_numpy(clusters.cluster_centers_).to(z)
        set_centroids(module, torch.cat([means, centres]))
        self.cluster = torch.from_numpy(clusters.labels_.astype(np.int64)).to(z.device)
        self.confident = confident(z, centres, self.cluster)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on a minibatch of the reference and one of the query."""
        module, n_seen = self.module, self.n_seen
        labelled, unlabelled = (batch[side] for side in SIDES)
        label, n = labelled["label"], len(labelled["x"])
        terms = module.loss(labelled)
        for name, value in module.loss(unlabelled).items():
            terms[name] = terms[name] + value
        inputs = module.inputs(torch.cat([labelled["x"], unlabelled["x"]]))
        views = inputs, corrupt(inputs, module.settings.masked)[0]
        same = (label[:, None] == label).to(inputs.dtype)
        sure = self.confident[unlabelled["place"]].to(inputs.dtype)
        cluster = self.cluster[unlabelled["place"]]
        names = ("classify", "align", "pairs", "types")
        found = dict.fromkeys(names, inputs.new_zeros(()))
        probabilities, similar = [], []
        for view in views:
            z = module.encoder(view)
            kernel = student_kernel(z, module.centroids)
            source, target = (
                k / k.sum(dim=1, keepdim=True)
                for k in kernel.split([n_seen, kernel.shape[1] - n_seen], dim=1)
            )
            log_target = target.clamp_min(1e-8).log()
            wanted = torch.cat(
                [target_distribution(part.detach()) for part in (target[:n], target[n:])]
            )
            align = -(wanted * log_target).sum(dim=1)
            found["classify"] = (
                found["classify"]
                + F.nll_loss(source[:n].clamp_min(1e-8).log(), label)
                + (sure * F.nll_loss(log_target[n:], cluster, reduction="none")).mean()
            )
            found["align"] = found["align"] + align[:n].mean() + ((1 - sure) * align[n:]).mean()
            with torch.no_grad():
                code = target.argmax(dim=1)
                agree = mutual_neighbours(z, module.settings.n_neighbors)
                agree = agree * (code[:, None] == code)
                agree[:n, :n] = same
            probabilities.append(target)
            similar.append(agree)
        for a, b in ((0, 0), (1, 1), (0, 1)):
            product = probabilities[a] @ probabilities[b].T
            pair = similar[a] * similar[b] if a != b else similar[a]
            found["pairs"] = found["pairs"] - (pair * F.logsigmoid(product)).sum(dim=1).mean()
            own = product[:n, :n].clamp(1e-6, 1 - 1e-6)
            found["types"] = found["types"] + F.binary_cross_entropy(own, same)
        total = torch.stack([*terms.values(), *found.values()]).sum()
        self.log_losses({"loss": total, **terms, **found}, len(inputs))
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return OPTIMIZERS["adam"](self.module.parameters(), self.module.settings.cluster_lr)


def confident(z: Tensor, centres: Tensor, cluster: Tensor) -> Tensor:
    """Which cells are far more near to their own centre than to others: half of each cluster."""
    distance = torch.cdist(z, centres).square()
    own = distance.gather(1, cluster[:, None])[:, 0]
    other = distance.scatter(1, cluster[:, None], torch.inf).min(dim=1).values
    score = -own / other.clamp_min(1e-8)
    sure = torch.zeros_like(score, dtype=torch.bool)
    for code in cluster.unique():
        members = cluster == code
        sure[members] = score[members] >= score[members].quantile(0.5)
    return sure


class SCGAD(_OpenWorld):
    """scGAD: a classifier of the reference's types and one of the query's clusters, tied by pairs.

    A known type also gets the cells of the query's prototype that is nearest to its own. In the
    authors' program the decoder is told the side of a cell; here it is not.
    """

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": short(PUBLISHED["scgad"]),
        "paper": PUBLISHED["scgad"],
    }

    def _train(self, options: TrainOptions) -> None:
        s, n_seen, cells = self.settings_, len(self.classes_), self._training_cells()
        n_total = self._start(options)
        place = np.zeros(len(cells), dtype=np.int64)
        for side in self.sides.values():
            place[side] = np.arange(len(side))
        cells = Cells(cells.x, cells.arrays | {"place": place}, cells.fill)
        seed = int(numpy_generator().integers(2**31))
        plan = GeneralizedPlan(self.module, self._side(True), self._side(False), seed)
        run(self, plan, cells, self.sides, s.max_epochs, s.min_steps, options)
        of_cluster = np.full(n_total, -1)
        prototypes, ours = self.module.centroids.detach().cpu().split([n_seen, n_total])
        nearest = torch.cdist(prototypes, ours).argmin(dim=1).numpy()
        of_cluster[nearest] = np.arange(n_seen)
        self._name_centroids(of_cluster)


#: Name of each method, as `methods.toml` has it, to its model.
CLUSTERING: dict[str, type[CICL]] = {
    "rival-scdeepcluster": SCDeepCluster,
    "rival-sczidesk": SCZIDesk,
    "rival-scname": SCNAME,
}
ANNOTATION: dict[str, type[AnnotationModel]] = {
    "rival-itclust": ItClust,
    "rival-mars": MARS,
    "rival-scgad": SCGAD,
}

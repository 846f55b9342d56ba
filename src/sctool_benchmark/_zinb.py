"""Rivals of CICL: auto-encoders that cluster the cells that they embed.

All share one network: an encoder, a decoder with a zero-inflated negative binomial likelihood or a
squared error, and centroids in the embedding. After pretraining by reconstruction, the centroids
start at k-means, and are trained together with the network. What the papers differ in are the
settings of `AutoencoderSettings`:

- scDeepCluster (Tian et al. 2019): a Student-t assignment to the centroids, made sharper;
- scziDesk (Chen et al. 2020): a weighted soft k-means, and pairwise similarities made sharper;
- scNAME (Wan et al. 2022): the k-means, an estimate of corrupted genes, and a contrast with the
  nearest neighbours of a cell in a memory of all cells.

Those that learn from a labelled reference are made of the same parts, in `_zinb_labelled`.

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
from scvi.distributions import ZeroInflatedNegativeBinomial
from torch import Tensor, nn

from sctool._batches import Cells, Splitter
from sctool._data import TrainingData
from sctool._neighbors import count_clusters, fit_pca, k_means
from sctool._train import Plan, TrainOptions, fit, numpy_generator
from sctool.losses import sharpen
from sctool.model import CICL
from sctool.model._base import NetworkSettings

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


#: Name of each method, as `methods.toml` has it, to its model.
CLUSTERING: dict[str, type[CICL]] = {
    "rival-scdeepcluster": SCDeepCluster,
    "rival-sczidesk": SCZIDesk,
    "rival-scname": SCNAME,
}

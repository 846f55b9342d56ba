"""Rivals of scDET that learn from a labelled reference: ItClust, MARS and scGAD.

They are built of the network, the pretraining and the settings of `_zinb`:

- ItClust (Hu et al. 2020): centroids and network start at a labelled reference;
- MARS (Brbic et al. 2020): landmarks of the labelled types and of the query, pushed apart;
- scGAD (Zhai et al. 2023): prototypes of the reference and of the query, confident clusters as
  labels, and mutual neighbours as pairs.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from sctool import novelty
from sctool._batches import Cells
from sctool._data import TrainingData
from sctool._neighbors import k_means
from sctool._train import Plan, TrainOptions, numpy_generator
from sctool.model._base import AnnotationModel, OpenWorldModel
from sctool_benchmark._zinb import (
    OPTIMIZERS,
    Autoencoder,
    AutoencoderSettings,
    Batch,
    Pretraining,
    SelfTraining,
    corrupt,
    embed,
    run,
    set_centroids,
    set_inputs,
    short,
    size_factors,
    student_kernel,
    target_distribution,
)

#: As published, but 2,000 genes where the papers take all or leave the number open.
PUBLISHED: dict[str, AutoencoderSettings] = {
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


def mutual_neighbours(z: Tensor, k: int) -> Tensor:
    """Which cells are among the nearest of each other, (n_cells, n_cells)."""
    distance = torch.cdist(z, z).fill_diagonal_(torch.inf)
    near = torch.zeros_like(distance).scatter_(
        1, distance.topk(min(k, len(z) - 1), largest=False).indices, 1.0
    )
    return near * near.T


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
ANNOTATION: dict[str, type[AnnotationModel]] = {
    "rival-itclust": ItClust,
    "rival-mars": MARS,
    "rival-scgad": SCGAD,
}

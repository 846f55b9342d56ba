"""scNym: a classifier trained with MixMatch and a domain adversary.

"scNym: Semi-supervised adversarial neural networks for single cell classification", ICML 2020
Workshop on Computational Biology. ``docs/methods/scnym.md`` has the maths and explains the default
preset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool._batches import Cells, Splitter, stratified_holdout
from sctool._checks import BatchSize, Count, NonNegative, Part, Positive, Share
from sctool._docs import docs
from sctool._train import TRAINER_ARGUMENTS, BestWeights, Plan, TrainOptions, fit, n_epochs
from sctool.losses import mixup, sharpen, sigmoid_ramp, soft_cross_entropy, squared_error
from sctool.model._base import AnnotationModel, NetworkSettings, Prediction
from sctool.nn import mlp, reverse_gradient

Batch = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class SCNYMSettings(NetworkSettings):
    """Hyperparameters of scNym; the values here are the default preset's.

    Parameters
    ----------
    n_layers, n_hidden, dropout
        Number of hidden layers of the classifier, their units and their dropout rate.
    mixmatch
        Learn from unlabelled cells with pseudo-labels and MixUp.
    adversary
        Align the domains in the embedding by adversarial training.
    confidence
        New-identity mode: unlabelled cells whose highest probability is below this are excluded
        from MixMatch and from the adversary. 0 uses all of them.
    temperature
        Temperature of the sharpening; 0.5 squares the pseudo-labels.
    alpha
        Parameter of MixUp's Beta(alpha, alpha).
    gene_dropout
        Share of the genes masked in each step, the same genes for all cells.
    ssl_weight, adversary_weight
        Weights of the squared error on pseudo-labels and of the reversed gradient, after ramp-up.
    ssl_ramp, adversary_ramp
        Share of the training steps over which these weights ramp up.
    optimizer
        "adadelta" or "adamw".
    weight_decay
        Weight decay of the optimiser.
    patience
        Epochs without a lower validation loss after which training stops early, counted after both
        ramps. None disables early stopping.
    validation
        Share of each type's labelled cells held out to select the best epoch.
    novel_below
        In new-identity mode, cells whose highest probability is below this are flagged as novel.
    """

    n_layers: Count = 2
    n_hidden: Count = 256
    dropout: Part = 0.5
    mixmatch: bool = True
    adversary: bool = True
    confidence: Share = 0.9
    temperature: Positive = 0.5
    alpha: Positive = 0.3
    gene_dropout: Part = 0.2
    ssl_weight: NonNegative = 1.0
    ssl_ramp: Share = 0.25
    adversary_weight: NonNegative = 0.1
    adversary_ramp: Share = 0.05
    optimizer: Literal["adadelta", "adamw"] = "adadelta"
    lr: Positive = 1.0
    batch_size: BatchSize = 256
    weight_decay: NonNegative = 1e-4
    min_epochs: Count = 3
    patience: Count | None = None
    validation: Part = 0.1
    novel_below: Share = 0.5


#: Section 2 of the paper; the documentation lists what it does not specify.
PAPER = SCNYMSettings(
    n_top_genes=None,
    target_sum=1e6,
    n_layers=3,
    confidence=0.0,
    gene_dropout=0.0,
    ssl_ramp=100 / 400,
    adversary_ramp=20 / 400,
    weight_decay=1e-5,
    max_epochs=400,
    patience=40,
)


class SCNYMModule(nn.Module):
    """Classifier ``f`` (encoder and head), and adversary ``g`` on the encoder's output."""

    def __init__(self, n_input: int, n_classes: int, n_domains: int, settings: SCNYMSettings):
        super().__init__()
        self.settings = settings
        self.n_classes = n_classes
        n = settings.n_hidden
        self.encoder = mlp(n_input, n, settings.n_layers, settings.dropout)
        self.head = nn.Linear(n, n_classes)
        self.adversary = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n_domains))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_cells, n_classes) and embedding (n_cells, n_hidden) of inputs."""
        z = self.encoder(x)
        return self.head(z), z

    @torch.no_grad()
    def pseudo_labels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Sharpened predictions of unlabelled cells, without dropout, and which are confident."""
        training = self.training
        self.eval()
        proba = self(u)[0].softmax(dim=1)
        self.train(training)
        confident = proba.amax(dim=1) >= self.settings.confidence
        return sharpen(proba, self.settings.temperature), confident

    def loss(
        self, batch: Batch, ssl_weight: float, adversary_weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one minibatch (section 2), and its terms.

        ``batch["labelled"]`` and, if there are any, ``batch["unlabelled"]`` have "x", "label" and
        "domain". ``adversary_weight`` scales only the reversed gradient, so the adversary itself
        learns at the full rate.
        """
        s = self.settings
        x, d = batch["labelled"]["x"], batch["labelled"]["domain"]
        y = F.one_hot(batch["labelled"]["label"], self.n_classes).to(x.dtype)
        n = len(x)
        u, z, d_u, n_u = x[:0], y[:0], d[:0], 0
        if "unlabelled" in batch and (s.mixmatch or s.adversary):
            u, d_u = batch["unlabelled"]["x"], batch["unlabelled"]["domain"]
            n_u = len(u)
            z, confident = self.pseudo_labels(u)
            u, z, d_u = u[confident], z[confident], d_u[confident]

        # The same genes are masked in all cells of a step, so that the augmentation carries no
        # information about the domain.
        shown = F.dropout(torch.ones_like(x[0]), s.gene_dropout, self.training)
        # The first layer is linear and by far the largest: mixing its outputs is equivalent to
        # mixing the cells, and the adversary can reuse the unmixed outputs.
        first, rest = self.encoder[0], self.encoder[1:]
        h = first(torch.cat([x, u]) * shown)
        terms: dict[str, Tensor] = {}
        if s.mixmatch:
            # The dominant cell of each pair keeps its row, so the first n rows remain labelled.
            mixed, target = mixup(h, torch.cat([y, z]), s.alpha)
            logits = self.head(rest(mixed))
            terms["supervised"] = soft_cross_entropy(logits[:n], target[:n])
            terms["unlabelled"] = squared_error(logits[n:], target[n:], n_u)
            total = terms["supervised"] + ssl_weight * terms["unlabelled"]
        else:
            terms["supervised"] = total = soft_cross_entropy(self.head(rest(h[:n])), y)
        if s.adversary and len(u):
            v = reverse_gradient(rest(h), adversary_weight)
            terms["adversary"] = F.cross_entropy(self.adversary(v), torch.cat([d, d_u]))
            total = total + terms["adversary"]
        return total, terms


class SCNYMPlan(Plan):
    """Training plan with the ramps of both weights."""

    shareable = True
    uneven = True  # without a confident cell the adversary learns nothing

    def __init__(self, module: SCNYMModule, settings: SCNYMSettings, total_steps: int):
        super().__init__(module, lr=settings.lr, weight_decay=settings.weight_decay)
        self.settings, self.total_steps = settings, total_steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on a labelled and an unlabelled minibatch."""
        s = self.settings
        done = self.global_step / self.total_steps
        total, terms = self.module.loss(
            batch,
            s.ssl_weight * sigmoid_ramp(done, s.ssl_ramp),
            s.adversary_weight * sigmoid_ramp(done, s.adversary_ramp),
        )
        self.log_losses({"loss": total, **terms}, len(batch["labelled"]["x"]))
        return total

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Cross entropy and accuracy on held-out labelled cells."""
        logits, _ = self.module(batch["x"])
        loss = F.cross_entropy(logits, batch["label"])
        right = (logits.argmax(dim=1) == batch["label"]).float().mean()
        found = {"loss_validation": loss, "accuracy_validation": right}
        sync = self.use_sync_dist  # so that all processes keep the same epoch
        self.log_dict(found, on_epoch=True, batch_size=len(logits), sync_dist=sync)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adadelta or AdamW."""
        s = self.settings
        optimizers = {"adadelta": torch.optim.Adadelta, "adamw": torch.optim.AdamW}
        parameters = self.module.parameters()
        return optimizers[s.optimizer](parameters, lr=s.lr, weight_decay=s.weight_decay)


def train_classifier(
    model: AnnotationModel,
    cells: Cells,
    options: TrainOptions,
    early_stopping: bool | None = None,
    *,
    split: tuple[np.ndarray, np.ndarray] | None = None,
    unlabelled: np.ndarray | None = None,
    name: str = "training",
) -> None:
    """Train ``model.module``, a :class:`SCNYMModule`, on labelled and unlabelled cells.

    See :meth:`SCNYM.train`. ``split`` gives the positions of the labelled cells for training and
    for validation, ``unlabelled`` those of the unlabelled cells to adapt to; by default, labelled
    cells are drawn, and all others are adapted to.
    """
    module = cast(SCNYMModule, model.module)
    s = module.settings
    label = cells.arrays["label"]
    if split is None:
        labelled = np.flatnonzero(label >= 0)
        train, held_out = stratified_holdout(label[labelled], s.validation)
        split = labelled[train], labelled[held_out]
    if unlabelled is None:
        unlabelled = np.flatnonzero(label < 0)
    populations = {"labelled": split[0], "unlabelled": unlabelled}
    splitter = Splitter(cells, populations, split[1], s.batch_size * options.n_processes)
    epochs = n_epochs(s, splitter, options)
    risen = int(np.ceil(max(s.ssl_ramp, s.adversary_ramp) * epochs))
    patience = None if early_stopping is False else s.patience
    if early_stopping and patience is None:
        patience = max(epochs // 5, 5)
    best = BestWeights("loss_validation", from_epoch=risen, patience=patience)
    plan = SCNYMPlan(module, s, epochs * splitter.steps_per_epoch)
    fit(model, plan, splitter, epochs, options, best=best, name=name)


@docs.dedent
class SCNYM(AnnotationModel):
    """scNym: semi-supervised adversarial annotation.

    The classifier learns from labelled cells and, by MixMatch, from its own confident predictions
    for unlabelled ones, while an adversary removes differences between domains from the embedding.
    The weights of the epoch with the lowest cross entropy on held-out labelled cells are kept, of
    the epochs after both ramps. ``train(early_stopping=True)`` stops after ``patience`` epochs
    without improvement (by default a fifth of all epochs); both ramps scale with ``max_epochs``.

    Parameters
    ----------
    %(adata)s
    preset
        "default" (two hidden layers, variable genes, new-identity mode, a few hundred steps) or
        "paper" (section 2 of the paper: three hidden layers, all genes, 400 epochs).
    %(ignore_case)s
    **settings
        Changes to the preset, fields of :class:`SCNYMSettings`. ``mixmatch=False`` and
        ``adversary=False`` are the paper's ablations.

    Examples
    --------
    >>> SCNYM.setup_anndata(joint, "cell_type", unlabeled_category="Unknown")  # doctest: +SKIP
    >>> model = SCNYM(joint)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> joint.obs["predicted"] = model.predict()  # doctest: +SKIP
    """

    PRESETS: ClassVar[dict[str, SCNYMSettings]] = {"default": SCNYMSettings(), "paper": PAPER}
    TRAINER_ARGUMENTS: ClassVar[list[str]] = [*TRAINER_ARGUMENTS, "early_stopping"]
    transductive = True
    settings_: SCNYMSettings
    module: SCNYMModule

    @classmethod
    def _settings_for_novel(cls, novel: str | int, preset: str = "default") -> dict[str, Any]:
        """Use new-identity mode for "auto", with the default threshold if the preset has none."""
        super()._settings_for_novel(novel)
        if novel == 0:
            return {"confidence": 0.0}
        settings = cls._resolve(preset, {})
        return {"confidence": settings.confidence or cls.PRESETS["default"].confidence}

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return SCNYMModule(n_input, n_classes, n_domains, self.settings_)

    def _train(self, options: TrainOptions) -> None:
        trainer = dict(options.trainer)
        early_stopping = trainer.pop("early_stopping", None)
        options = replace(options, trainer=trainer)
        train_classifier(self, self._training_cells(), options, early_stopping)

    def _is_novel(self, prediction: Prediction) -> np.ndarray | None:
        """In new-identity mode, cells whose highest probability is below ``novel_below``."""
        if self.settings_.confidence <= 0:
            return None
        return prediction.proba.max(axis=1) < self.settings_.novel_below

    def _note_reuse(self, novel: str | int) -> list[str]:
        """Also note if novel cells cannot be flagged."""
        notes = super()._note_reuse(novel)
        if novel == "auto" and self.settings_.confidence <= 0:
            notes.append("novel: the model was trained for known types only; no cell is flagged")
        return notes

"""Contrastive components (MLP-CC, MLS-CC) for logistic regression, ACTINN and scDAE.

"Contrastive Learning for Improved Single Cell Annotation", thesis and short text.
``docs/methods/contrastive.md`` has the maths and explains the default presets.

Training has stages, each on the frozen output of the previous ones: the base (encoder and a
temporary head), the component, the final head. The networks are in ``_contrastive_module.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from sctool._batches import Cells, Splitter, TypeSplitter, assign_folds, stratified_holdout
from sctool._checks import AnyWeight, Count, NonNegative, Positive
from sctool._data import Features, TrainingData
from sctool._docs import docs
from sctool._progress import progress
from sctool._regression import COMPONENT_GRID, regress, type_weights, weights
from sctool._train import BestWeights, Plan, TrainOptions, fit, n_epochs, refuse_arguments
from sctool.model._base import AnnotationModel, NetworkSettings
from sctool.model._contrastive_module import (
    BACKBONES,
    Backbone,
    BackboneName,
    Batch,
    ComponentName,
    ContrastiveModule,
    Stage,
    copy_parts,
)
from sctool.model._logistic import (
    LogisticClassifier,
    LogisticSettings,
    MarkerGenesModel,
    fit_head,
    pick_C,
    shares_in_training,
)


@dataclass(frozen=True)
class ContrastiveSettings(LogisticSettings, NetworkSettings):
    """Hyperparameters of :class:`ContrastiveClassifier` and its subclasses.

    Parameters
    ----------
    backbone
        "linear" (identity as the encoder), "actinn" or "scdae".
    component
        None, "mlp" (MLP-CC, eq. 5) or "mls" (MLS-CC, one circle per type, eq. 6).
    C
        For the regression on genes, as in :class:`LogisticSettings`; for the regression on a
        component it is always chosen on held-out cells.
    positives
        For "mls". "own": circle k contrasts type k with all other cells; "shared": the same
        positives in every circle, as eq. 6 is printed.
    init_from_linear
        For "mls": set each circle from the score of its type in a logistic regression, instead of
        a random initialisation and training by the contrastive loss. No contrastive loss is then
        minimised, whatever the backbone.
    n_latent
        Units of both layers of "mlp"; None uses the number of its inputs.
    temperature
        Temperature of the contrastive losses.
    folds
        For "linear" with "mls" and ``init_from_linear``: number of folds; the head is trained on
        the positions of cells to which the component was not fitted. 1: on those of the cells
        to which it was fitted.
    l2
        L2 penalty on the weights of ACTINN.
    noise
        Standard deviation of the noise added to scDAE's input.
    scale_by_maximum
        Divide scDAE's input by its maximum before the logarithm.
    component_lr, weight_decay
        Learning rate and weight decay of the component.
    """

    backbone: BackboneName = "linear"
    component: ComponentName = None
    positives: Literal["own", "shared"] = "own"
    init_from_linear: bool = True
    n_latent: Count | None = 128
    temperature: Positive = 0.5
    folds: Count = 5
    l2: NonNegative = 1e-4
    noise: NonNegative = 1.0
    scale_by_maximum: bool = False
    lr: Positive = 3e-3
    component_lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    min_epochs: Count = 5
    C: Positive | Literal["auto"] | None = 1.0
    min_type_weight: AnyWeight = 0.0


def presets(
    backbone: BackboneName, component: ComponentName = None
) -> dict[str, ContrastiveSettings]:
    """Presets of one backbone; the documentation lists what the paper does not specify."""
    default = ContrastiveSettings(backbone=backbone, component=component)
    if backbone == "linear":
        default = replace(default, n_top_genes=None, n_marker_genes=2000)
        default = replace(default, C=0.1, min_type_weight=0.5)
    if backbone == "actinn":
        default = replace(default, n_top_genes=None)
    paper = replace(
        default,
        n_top_genes=None,
        n_marker_genes=None,
        positives="shared",
        init_from_linear=False,
        n_latent=None,
        C=1.0,
        min_type_weight=0.0,
        folds=1,
        scale_by_maximum=True,
        validation=1 / 9,
    )
    return {"default": default, "paper": paper}


class StagePlan(Plan):
    """Training plan of one stage."""

    def __init__(self, module: nn.Module, stage: Stage):
        super().__init__(module, lr=stage.lr, weight_decay=stage.weight_decay)
        self.stage = stage

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """One step on labelled cells."""
        total = self.stage.loss(batch["labelled"])
        self.log_losses({f"{self.stage.name}_loss": total}, len(batch["labelled"]["x"]))
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on held-out cells."""
        total = self.stage.loss(batch)
        name = f"{self.stage.name}_loss_validation"
        self.log(name, total, on_epoch=True, batch_size=len(batch["x"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the parameters that the stage trains."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


@docs.dedent
class ContrastiveClassifier(MarkerGenesModel):
    """Regression on circles that a first regression places; by default no contrastive training.

    The general form is a base (logistic regression, ACTINN or scDAE) with a contrastive component
    before its head. By default the component of ``method="contrastive"``, a circle for each type,
    is initialised from the logistic regression on genes and not trained further: no contrastive
    loss is minimised. A component is trained by one only with ``component="mlp"`` or
    ``init_from_linear=False``, whatever the base.

    Trained in stages, each on the frozen output of the previous ones: the base, by its own
    procedure; the component, on the base's embedding of the labelled cells; and the head again, on
    the output of the component, which is also used in prediction. Unlabelled cells are not used.

    Networks keep the weights of each stage's best epoch on held-out cells; regressions are fitted
    to all labelled cells. ``history_`` has the losses of each stage under its name: "base" (for
    scDAE "reconstruct", "classify" and "joint"), "component" and "head".

    Parameters
    ----------
    %(adata)s
    preset
        "default" or "paper".
    %(ignore_case)s
    pretrained
        A trained model with the same backbone, or the directory of a saved one, whose genes and
        encoder are used instead of training the base.
    **settings
        Changes to the preset, fields of :class:`ContrastiveSettings`, such as ``backbone``
        ("linear", "actinn", "scdae") and ``component`` (None, "mlp", "mls").

    Raises
    ------
    ValueError
        ``pretrained`` is not trained or has another backbone, or there is no component to train.

    Examples
    --------
    >>> ContrastiveClassifier.setup_anndata(ref, "cell_type")  # doctest: +SKIP
    >>> model = ContrastiveClassifier(ref, backbone="linear", component="mls")  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> adata.obs["predicted"] = model.predict(adata)  # doctest: +SKIP
    """

    PRESETS: ClassVar[dict[str, Any]] = presets("linear", "mls")
    settings_: ContrastiveSettings
    module: Any
    #: Labelled cells for training and held-out ones, if marker genes were chosen by the first.
    _split: tuple[np.ndarray, np.ndarray] | None = None

    def __init__(
        self,
        adata: Any,
        preset: str = "default",
        ignore_case: bool = False,
        pretrained: AnnotationModel | str | Path | None = None,
        **settings: Any,
    ):
        if isinstance(pretrained, str | Path):
            from sctool.model import load  # circular import

            pretrained = load(pretrained)
        self._pretrained = pretrained
        super().__init__(adata, preset, ignore_case, **settings)

    def _release(self) -> None:
        super()._release()
        self._pretrained = None

    @property
    def _backbone(self) -> Backbone:
        return BACKBONES[self.settings_.backbone]

    @classmethod
    def _resolve(cls, preset: str, changes: dict[str, Any]) -> Any:
        settings = super()._resolve(preset, changes)
        backbone = cls.PRESETS["default"].backbone
        if cls is not ContrastiveClassifier and settings.backbone != backbone:
            raise ValueError(
                f"backbone={settings.backbone!r}: {cls.__name__} has backbone={backbone!r}; use "
                "sctool.model.ContrastiveClassifier for another."
            )
        return settings

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return ContrastiveModule(n_input, n_classes, self.settings_, self.settings_.component)

    # -- cells ---------------------------------------------------------------------------------

    def _fit_features(
        self, data: TrainingData
    ) -> tuple[Features, sp.csr_matrix, np.ndarray | None, list[str]]:
        """Select genes by the settings, or use the genes of the pretrained model."""
        s = self.settings_
        if self._pretrained is not None:
            features = self._base_features(self._pretrained)
            chunks, fill, notes = features.transform(data.expression)
            return features, sp.vstack(list(chunks), format="csr"), fill, notes
        features, x, fill, notes = super()._fit_features(data)
        if s.n_marker_genes is not None:
            if not self._fits_regressions_only():  # networks are judged by held-out cells
                y = data.labels.codes[data.labels.codes >= 0]
                self._split = stratified_holdout(y, s.validation)
            some = None if self._split is None else self._split[0]
            x = self._keep_marker_genes(features, x, data, some)
        elif s.n_top_genes is None:
            kept = self._backbone.select_genes(x[np.flatnonzero(data.labels.codes >= 0)])
            features.keep(kept)
            x = x[:, kept]
        return features, x, fill, notes

    def _base_features(self, base: AnnotationModel) -> Features:
        """Features of the pretrained model; raise ValueError if it does not fit."""
        s = self.settings_
        plain = "linear" if isinstance(base, LogisticClassifier) else None
        found = getattr(base.settings_, "backbone", plain)
        if found != s.backbone:
            raise ValueError(
                f"pretrained is a {type(base).__name__} with backbone={found!r}, not "
                f"{s.backbone!r}."
            )
        if s.component is None:
            raise ValueError("pretrained leaves nothing to train: pass component='mls' or 'mlp'.")
        if not base.is_trained_:
            raise ValueError("pretrained is not trained: call its train() first.")
        return base.features_

    def _labelled_cells(self) -> Cells:
        """The labelled training cells alone."""
        cells = self._training_cells()
        labelled = np.flatnonzero(cells.arrays["label"] >= 0)
        arrays = {name: values[labelled] for name, values in cells.arrays.items()}
        return Cells(cells.x[labelled], arrays, cells.fill)

    @staticmethod
    @torch.inference_mode()
    def _embed(module: ContrastiveModule, cells: Cells) -> sp.csr_matrix | np.ndarray:
        """Input of the head, (n_cells, n_latent); sparse if these are the genes."""
        module.eval()
        if not module.embeds and cells.fill is None:
            return cells.x
        device = next(module.parameters()).device
        parts = np.array_split(np.arange(len(cells)), -(-len(cells) // 2048))
        return torch.cat([module.embed(cells[i]["x"].to(device)).cpu() for i in parts]).numpy()

    # -- training ------------------------------------------------------------------------------

    def _train(self, options: TrainOptions) -> None:
        s, cells, backbone = self.settings_, self._labelled_cells(), self._backbone
        if self._fits_regressions_only():
            given = [name for name in options.trainer if name not in ("accelerator", "devices")]
            refuse_arguments(given, [], ": these settings train only regressions")
        y = cells.arrays["label"]
        self.class_shares_ = shares_in_training(y, len(self.classes_), s.min_type_weight)
        train, held_out = self._split or stratified_holdout(y, s.validation)
        everything = np.arange(len(y))
        history: dict[str, pd.DataFrame] = {}
        how: dict[str, Any] = {
            "max_iter": options.max_epochs or s.max_iter,
            "min_type_weight": s.min_type_weight,
        }

        def run(stage: Stage, cells: Cells, some: np.ndarray) -> None:
            """Train a stage on a subset of the labelled cells, excluding held-out ones."""
            part, rest = np.intersect1d(some, train), np.intersect1d(some, held_out)
            history.update(self._run(stage, cells, part, rest, options))

        # The base
        base = self.module = ContrastiveModule(cells.x.shape[1], len(self.classes_), s, None)
        C: float | None = 1.0 if isinstance(s.C, str) else s.C  # "auto" is replaced below
        linear: Any = None  # weights and biases of a regression on the component's inputs
        if self._pretrained is not None:
            if backbone.is_network:
                copy_parts(self._pretrained.module, base, "inputs", "encoder")
        elif backbone.is_network:
            for stage in backbone.stages(base, s, self._classification(), cells.x):
                run(stage, cells, everything)
        else:
            x = self._embed(base, cells)
            C, chosen = pick_C(s.C, x, y, (train, held_out), self._candidates, **how)
            history["base_loss_train"], notes = fit_head(self.module.head, x, y, C=C, **how)
            self.audit_ += chosen + notes
            linear = tuple(p.detach().numpy() for p in base.head.parameters())
        if s.component is None:
            self._build()
            copy_parts(base, self.module, "inputs", "encoder", "head")
            self.history_ = history
            return

        # The component

        def fit_component(cells: Cells, some: np.ndarray, name: str, linear: Any = None) -> None:
            """Make a network for the genes of the cells; fit its component to a subset of them."""
            n_genes = cells.x.shape[1]
            self.module = self._make_module(n_genes, len(self.names_), self.n_domains_)
            copy_parts(base, self.module, "inputs", "encoder")
            if s.component == "mls" and s.init_from_linear:
                z = self._embed(base, cells)
                if linear is None:
                    fitted, _ = regress(
                        z[some], y[some], C, how["max_iter"], how["min_type_weight"]
                    )
                    linear = weights(fitted)
                self.module.component.init_from_linear(*linear, z[some])
            if self._trains_component():
                run(self._component_stage(name), cells, some)

        by_folds = not backbone.is_network and s.component == "mls" and s.init_from_linear
        fold = np.full(len(y), -1)
        outside = np.zeros((len(y), 2 * len(self.classes_)))
        if by_folds and s.folds > 1:
            fold = assign_folds(y, s.folds, int(torch.randint(2**31, (1,))))
            folds = np.unique(fold[fold >= 0])
            for i in progress(folds, desc="components of folds", enabled=options.progress):
                some, apart = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
                x = cells.x if self._candidates is None else self._candidates.inputs(some)
                fit_component(Cells(x, cells.arrays, cells.fill), some, f"component_fold_{i + 1}")
                outside[apart] = self._embed(self.module, Cells(x[apart], {}, cells.fill))
        fit_component(cells, everything, "component", linear)

        # The head
        if backbone.is_network:
            run(Stage("head", ("head",), self._classification(), s.lr), cells, everything)
        else:
            z = self._embed(self.module, cells)
            z = np.where(fold[:, None] < 0, z, outside) if by_folds else z
            head_C, chosen = pick_C("auto", z, y, (train, held_out), grid=COMPONENT_GRID, **how)
            head, notes = fit_head(self.module.head, z, y, C=head_C, **how)
            history["head_loss_train"] = head
            self.audit_ += chosen + notes
        self.history_ = history

    def _trains_component(self) -> bool:
        """Whether the component is trained with the contrastive loss."""
        s = self.settings_
        return s.component is not None and not (s.component == "mls" and s.init_from_linear)

    def _fits_regressions_only(self) -> bool:
        """Whether no part is a network that is trained in minibatches."""
        return not (self._backbone.is_network or self._trains_component())

    def _component_stage(self, name: str) -> Stage:
        s, module = self.settings_, self.module

        def contrast(batch: Batch) -> Tensor:
            with torch.no_grad():
                z = module.encoder(module.inputs(self._component_input(batch)))
            return module.component.loss(z, batch["label"])

        return Stage(name, ("component",), contrast, s.component_lr, s.weight_decay, True)

    def _component_input(self, batch: Batch) -> Tensor:
        """Inputs of a minibatch for training the component, (n_cells, n_genes)."""
        return batch["x"]

    def _classification(self) -> Callable[[Batch], Tensor]:
        """Loss of the head: type-weighted cross entropy plus the penalty of the backbone."""
        s, module, weight = self.settings_, self.module, None
        if s.min_type_weight:
            label = self._training_cells().arrays["label"]
            n = np.bincount(label[label >= 0], minlength=len(self.classes_))
            weight = torch.from_numpy(type_weights(np.maximum(n, 1), s.min_type_weight)).float()

        def classify(batch: Batch) -> Tensor:
            by_type = None if weight is None else weight.to(batch["x"].device)
            return module.loss(batch, by_type) + self._backbone.penalty(module, s)

        return classify

    def _run(
        self,
        stage: Stage,
        cells: Cells,
        train: np.ndarray,
        held_out: np.ndarray,
        options: TrainOptions,
    ) -> dict[str, pd.DataFrame]:
        """Train one stage and return its history."""
        s = self.settings_
        splitter = (TypeSplitter if stage.by_type else Splitter)(
            cells, {"labelled": train}, held_out, s.batch_size
        )
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in stage.parts)
        self.is_trained_ = False  # else the runner appends to the previous stage's history
        best = BestWeights(f"{stage.name}_loss_validation")
        epochs, plan = n_epochs(s, splitter, options), StagePlan(self.module, stage)
        fit(self, plan, splitter, epochs, options, best=best, name=stage.name)
        self.module.requires_grad_(True)
        return self.history_


@docs.dedent
class ACTINN(ContrastiveClassifier):
    """ACTINN: a multilayer perceptron (100, 50, 25 units), optionally with a component.

    The first two layers are the encoder, the last two the head.

    Parameters
    ----------
    %(adata)s
    preset
        "default" or "paper".
    %(ignore_case)s
    pretrained
        As in :class:`ContrastiveClassifier`.
    **settings
        Changes to the preset, fields of :class:`ContrastiveSettings`, such as
        ``component="mls"``.
    """

    PRESETS: ClassVar[dict[str, Any]] = presets("actinn")


@docs.dedent
class SCDAE(ContrastiveClassifier):
    """scDAE: a perceptron on a denoising auto-encoder, optionally with a component.

    The base is trained in three stages: the auto-encoder, the head on its frozen code, both.

    Parameters
    ----------
    %(adata)s
    preset
        "default" or "paper".
    %(ignore_case)s
    pretrained
        As in :class:`ContrastiveClassifier`.
    **settings
        Changes to the preset, fields of :class:`ContrastiveSettings`, such as
        ``component="mls"``.
    """

    PRESETS: ClassVar[dict[str, Any]] = presets("scdae")

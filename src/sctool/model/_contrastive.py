"""Contrastive components over logistic regression, ACTINN and scDAE: MLP-CC and MLS-CC.

"Contrastive Learning for Improved Single Cell Annotation", thesis and short text.
``docs/methods/contrastive.md`` has the maths, what the default presets change, and why.

A model is an encoder, a component or none, and a head. The stages train one part each, on the
frozen output of the parts before it: the base (encoder and a head of its own), the component, the
head that stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from sklearn.feature_selection import f_classif
from torch import Tensor, nn
from tqdm import tqdm

from sctool._train import (
    BestWeights,
    Cells,
    NamedBar,
    Plan,
    Splitter,
    TypeSplitter,
    fit,
    stratified_holdout,
)
from sctool.losses import circles_info_nce, info_nce, own_circle_info_nce, thin
from sctool.model._base import AnnotationModel, change_settings
from sctool.model._regression import (
    COMPONENT_GRID,
    GENES_GRID,
    LogisticSettings,
    choose_C,
    cross_entropy,
    regress,
    type_weights,
    weights,
)

Batch = dict[str, Tensor]

BACKBONES = ("linear", "actinn", "scdae")
COMPONENTS = (None, "mlp", "mls")
#: Units of scDAE's hidden layers and of its code; the code's number is the paper's.
DAE_HIDDEN, DAE_CODE = 250, 125


@dataclass(frozen=True)
class ContrastiveSettings(LogisticSettings):
    """Hyperparameters of the backbones and of the components.

    Parameters
    ----------
    backbone
        "linear" (the encoder is the identity), "actinn" or "scdae".
    component
        None, "mlp" (MLP-CC, eq. 5) or "mls" (MLS-CC, a circle for each type, eq. 6).
    n_marker_genes
        Of the ``n_top_genes``, keep so many: those that the types of the labelled cells differ in
        most, by the F statistic. None keeps all.
    C
        Inverse strength of the L2 penalty of the regression on genes. "auto": of a grid, the one
        with the lowest cross entropy on held-out cells, as always for that on a component.
    min_type_weight
        In regressions and heads a type weighs at least so much, relative to the type of median
        size: with 0 every cell weighs the same, with infinity every type.
    positives
        Of "mls". "own": in circle k the cells of type k against all others; "shared": the same in
        every circle, as eq. 6 is printed.
    guided
        Let each circle of "mls" follow the regression's score of its type, instead of starting it
        at random.
    refined
        Train guided circles further, by the contrastive loss; all other components always are.
    n_latent
        Units of both layers of "mlp"; None for as many as its input has.
    temperature
        Of the contrastive losses.
    folds
        Of "linear" with guided "mls": the head learns from where a component places cells that it
        was not trained with, by so many folds; 1: from where it places those that it was.
    thinning
        Smallest share of its counts that a cell keeps while the component trains: each time it is
        seen, it is thinned to a share drawn between this and 1. 1 leaves cells as they are.
    l2
        ACTINN's penalty on the weights.
    noise
        Standard deviation of the noise that scDAE's input is corrupted with.
    scale_by_maximum
        Divide scDAE's input by its largest value before the logarithm.
    lr, component_lr, weight_decay, batch_size
        Of Adam, for networks and for the component; decay of the component's weights; cells per
        step.
    max_epochs
        Passes over the labelled cells in each stage. None: as many as make ``min_steps`` steps,
        and ``min_epochs`` at least.
    min_steps, min_epochs
        See ``max_epochs``.
    validation
        Share of each type's labelled cells held out to choose each stage's best epoch, and ``C``.
    """

    backbone: str = "linear"  # type: ignore[misc]
    component: str | None = None  # type: ignore[misc]
    n_marker_genes: int | None = None  # type: ignore[misc]
    C: float | str = 1.0  # type: ignore[assignment]
    min_type_weight: float = 0.0  # type: ignore[misc]
    positives: str = "own"
    guided: bool = True
    refined: bool = False
    n_latent: int | None = 128
    temperature: float = 0.5
    folds: int = 5
    thinning: float = 1.0
    l2: float = 1e-4
    noise: float = 1.0
    scale_by_maximum: bool = False
    lr: float = 3e-3
    component_lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 256
    max_epochs: int | None = None
    min_steps: int = 400
    min_epochs: int = 5
    validation: float = 0.1

    def __post_init__(self) -> None:
        known = {
            "backbone": BACKBONES,
            "component": COMPONENTS,
            "positives": ("own", "shared"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; known: {values!r}.")
        n = self.n_marker_genes
        if n is not None and (not isinstance(n, int) or n < 1):
            raise ValueError(f"n_marker_genes={n!r} must be a whole number above 0, or None.")
        least = self.min_type_weight
        if not isinstance(least, Real) or not least >= 0:
            raise ValueError(f"min_type_weight={least!r} must be a number, 0 or more.")
        if not 0 < self.thinning <= 1:
            raise ValueError(f"thinning={self.thinning!r} must lie above 0 and not above 1.")


def presets(backbone: str, component: str | None = None) -> dict[str, ContrastiveSettings]:
    """The presets of one backbone; what the paper leaves open is noted in the documentation."""
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
        guided=False,
        n_latent=None,
        C=1.0,
        min_type_weight=0.0,
        folds=1,
        scale_by_maximum=True,
        validation=1 / 9,
    )
    return {"default": default, "paper": paper}


def deal(y: np.ndarray, n_folds: int) -> np.ndarray:
    """Fold of each cell, (n_cells,), every type dealt out evenly; -1 for a type's only cell.

    So whatever fold is left out, every type keeps a cell.
    """
    fold = np.full(len(y), -1)
    for code in np.unique(y):
        members = np.flatnonzero(y == code)
        if len(members) > 1:
            members = members[torch.randperm(len(members)).numpy()]
            fold[members] = (np.arange(len(members)) + code) % n_folds
    return fold


def marker_genes(x: sp.csr_matrix, y: np.ndarray, n: int) -> np.ndarray:
    """Positions of the ``n`` genes that types differ in most, by the F statistic.

    Parameters
    ----------
    x, y
        Log1p values, CSR (n_cells, n_genes), and codes of the types, (n_cells,).
    """
    x = x.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of genes that are the same in all cells
        score = np.nan_to_num(f_classif(x, y)[0], posinf=np.inf)
    # Where the types have a single cell each, nothing varies within them.
    variance = np.asarray(x.multiply(x).mean(axis=0) - np.square(x.mean(axis=0))).ravel()
    return np.sort(np.lexsort((-variance, -score))[:n])


def middling_genes(x: sp.csr_matrix) -> np.ndarray:
    """Positions of the genes that ACTINN sees.

    Of the expressed ones, those between the 1st and the 99th percentile, first of total
    expression, then of the coefficient of variation.
    """
    x = x.astype(np.float64)
    total = np.asarray(x.sum(axis=0)).ravel()
    square = np.asarray(x.multiply(x).sum(axis=0)).ravel()
    mean = total / x.shape[0]
    deviation = np.sqrt(np.clip(square / x.shape[0] - mean**2, 0, None))
    keep = np.flatnonzero(total > 0)
    for value in (total, deviation / np.where(mean > 0, mean, 1)):
        low, high = np.percentile(value[keep], [1, 99])
        keep = keep[(value[keep] >= low) & (value[keep] <= high)]
    return keep


# -- networks ------------------------------------------------------------------------------------


class Centred(nn.Module):
    """Inputs less the mean of the training cells."""

    mean: Tensor

    def __init__(self, n_input: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_input))

    def forward(self, x: Tensor) -> Tensor:
        """Of log1p values, (n_cells, n_genes)."""
        return x - self.mean


class ByMaximum(nn.Module):
    """Log1p of linear values divided by the largest one of the training cells."""

    maximum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("maximum", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Of log1p values, (n_cells, n_genes)."""
        return (x.expm1() / self.maximum).log1p()


def make_encoder(n_input: int, s: LogisticSettings) -> tuple[nn.Module, int]:
    """The backbone's encoder, and the number of its outputs."""
    if s.backbone == "actinn":
        layers = [nn.Linear(n_input, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU()]
        return nn.Sequential(*layers), 50
    if s.backbone == "scdae":
        code = [nn.Linear(n_input, DAE_HIDDEN), nn.ReLU(), nn.Linear(DAE_HIDDEN, DAE_CODE)]
        return nn.Sequential(*code, nn.ReLU()), DAE_CODE
    return nn.Identity(), n_input


def make_head(n_input: int, n_classes: int, s: LogisticSettings) -> nn.Module:
    """The backbone's classification head."""
    if s.backbone == "linear":
        return nn.Linear(n_input, n_classes)
    n_hidden = 25 if s.backbone == "actinn" else 64
    return nn.Sequential(nn.Linear(n_input, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_classes))


class Sphere(nn.Module):
    """MLP-CC: two layers, and a point on the unit sphere."""

    def __init__(self, n_input: int, s: ContrastiveSettings):
        super().__init__()
        self.settings = s
        self.n_output = n_input if s.n_latent is None else s.n_latent
        self.layers = nn.Sequential(
            nn.Linear(n_input, self.n_output), nn.ReLU(), nn.Linear(self.n_output, self.n_output)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Embedding of unit length, (n_cells, n_latent)."""
        return F.normalize(self.layers(z), dim=1)

    def loss(self, z: Tensor, label: Tensor) -> Tensor:
        """Eq. 5 on what the encoder returns."""
        return info_nce(self(z), label, self.settings.temperature)


class Circles(nn.Module):
    """MLS-CC: for each type a linear map to the plane, and the point above it on the circle."""

    def __init__(self, n_input: int, n_classes: int, s: ContrastiveSettings):
        super().__init__()
        self.settings, self.n_classes = s, n_classes
        self.n_output = 2 * n_classes
        self.maps = nn.Linear(n_input, self.n_output)

    def points(self, z: Tensor) -> Tensor:
        """A point on each type's circle, (n_cells, n_types, 2)."""
        return F.normalize(self.maps(z).view(-1, self.n_classes, 2), dim=2)

    def forward(self, z: Tensor) -> Tensor:
        """All circles beside each other, (n_cells, 2 n_types)."""
        return self.points(z).flatten(1)

    def loss(self, z: Tensor, label: Tensor) -> Tensor:
        """Eq. 6, as printed or in our reading, on what the encoder returns."""
        s = self.settings
        loss = own_circle_info_nce if s.positives == "own" else circles_info_nce
        return loss(self.points(z), label, s.temperature)

    @torch.no_grad()
    def start_at(self, weight: np.ndarray, bias: np.ndarray, z: Any) -> None:
        """Let the angle of type k follow its score: weight (n_types, n_input), bias (n_types,).

        The second coordinate is the same for all cells, and so large beside the scores of the
        cells ``z`` that the circle bends few of them.
        """
        spread = 2 * float(np.std(z @ weight.T + bias)) + 1e-6
        maps = self.maps.weight.view(self.n_classes, 2, -1), self.maps.bias.view(-1, 2)
        for values, start, other in zip(maps, (weight, bias), (0.0, 1.0), strict=True):
            values[:, 0] = torch.from_numpy(start / spread).to(values.dtype)
            values[:, 1] = other


def copy_parts(source: nn.Module, target: nn.Module, *names: str) -> None:
    """Give parts of a module the weights that they have in another."""
    for name in names:
        target.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())


class ContrastiveModule(nn.Module):
    """Encoder, component or none, head; and while an scDAE's base is trained, its decoder."""

    def __init__(self, n_input: int, n_classes: int, s: Any, component: str | None):
        super().__init__()
        self.inputs: nn.Module = nn.Identity()
        if s.backbone != "linear":
            by_maximum = s.backbone == "scdae" and s.scale_by_maximum
            self.inputs = ByMaximum() if by_maximum else Centred(n_input)
        self.encoder, n = make_encoder(n_input, s)
        self.component: Sphere | Circles | None = None
        if component == "mlp":
            self.component = Sphere(n, s)
        elif component == "mls":
            self.component = Circles(n, n_classes, s)
        n = n if self.component is None else self.component.n_output
        self.head = make_head(n, n_classes, s)
        self.embeds = s.backbone != "linear" or component is not None

    def embed(self, x: Tensor) -> Tensor:
        """What the head sees, (n_cells, n_latent)."""
        z = self.encoder(self.inputs(x))
        return z if self.component is None else self.component(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_cells, n_classes) and embedding; the logits again where nothing embeds."""
        z = self.embed(x)
        logits = self.head(z)
        return logits, (z if self.embeds else logits)

    def loss(self, batch: Batch, weight: Tensor | None = None) -> Tensor:
        """Cross entropy on a minibatch, weighted by type if asked for."""
        return F.cross_entropy(self(batch["x"])[0], batch["label"], weight)


# -- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What one stage of training trains, by which loss.

    Parameters
    ----------
    name
        Stands before the names of its losses in the history.
    parts
        Names of the module's parts that it trains; all others are frozen.
    loss
        Of a minibatch.
    lr, weight_decay
        Of Adam; the decay is decoupled from the gradient.
    by_type
        Minibatches by :class:`TypeBatches`.
    """

    name: str
    parts: tuple[str, ...]
    loss: Callable[[Batch], Tensor]
    lr: float
    weight_decay: float = 0.0
    by_type: bool = False


class StagePlan(Plan):
    """One stage: its loss, on labelled minibatches and on held-out ones."""

    def __init__(self, module: nn.Module, stage: Stage):
        super().__init__(module, lr=stage.lr, weight_decay=stage.weight_decay)
        self.stage = stage

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """One step on labelled cells."""
        total = self.stage.loss(batch["labelled"])
        self.log_losses({f"{self.stage.name}_loss": total}, "train", len(batch["labelled"]["x"]))
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on held-out cells."""
        total = self.stage.loss(batch)
        self.log_losses({f"{self.stage.name}_loss": total}, "validation", len(batch["x"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on what the stage trains."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


class ContrastiveClassifier(AnnotationModel):
    """Logistic regression, ACTINN or scDAE, with a contrastive component before the head.

    Trained in stages, of which each sees the frozen output of those before: the base, by its own
    procedure; the component, on the base's embedding of the labelled cells; the head once more, on
    the component's. Prediction goes through the component. Unlabelled cells are not looked at.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    preset
        "default" or "paper".
    ignore_case
        Compare gene names without regard to case.
    **settings
        Changes to the preset, such as ``backbone`` ("linear", "actinn", "scdae") and ``component``
        (None, "mlp", "mls"): see ``sctool.model._contrastive.ContrastiveSettings``.

    Examples
    --------
    >>> ContrastiveClassifier.setup_anndata(ref, "cell_type")  # doctest: +SKIP
    >>> model = ContrastiveClassifier(ref, backbone="linear", component="mls")  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> adata.obs["predicted"] = model.predict(adata)  # doctest: +SKIP
    """

    PRESETS: ClassVar[dict[str, Any]] = presets("linear", "mls")
    settings_: Any  # a GATE's are not all of these
    module: Any

    def __init__(
        self,
        adata: Any,
        preset: str = "default",
        ignore_case: bool = False,
        **settings: Any,
    ):
        super().__init__(adata, preset, ignore_case, **settings)
        s, cells = self.settings_, self._training_cells()
        labelled = np.flatnonzero(cells.arrays["label"] >= 0)
        if s.n_marker_genes is not None:
            y = cells.arrays["label"][labelled]
            self._keep_genes(marker_genes(cells.x[labelled], y, s.n_marker_genes))
        elif s.backbone == "actinn" and s.n_top_genes is None:
            self._keep_genes(middling_genes(cells.x[labelled]))

    @classmethod
    def _resolve(cls, preset: str, changes: dict[str, Any]) -> Any:
        return cls._of_its_backbone(super()._resolve(preset, changes))

    @classmethod
    def _of_its_backbone(cls, settings: Any) -> Any:
        """The settings, unless they are of another backbone than a subclass is."""
        backbone = cls.PRESETS["default"].backbone
        if cls is not ContrastiveClassifier and settings.backbone != backbone:
            raise ValueError(
                f"backbone={settings.backbone!r}: {cls.__name__} is of backbone={backbone!r}; use "
                "sctool.model.ContrastiveClassifier for another."
            )
        return settings

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return ContrastiveModule(n_input, n_classes, self.settings_, self.settings_.component)

    def _keep_genes(self, keep: np.ndarray) -> None:
        """See no genes but those at some positions."""
        cells = self._training_cells()
        self.features_.selected = self.features_.selected[keep]
        self.features_.mean = self.features_.mean[keep]
        self._cells = Cells(cells.x[:, keep], cells.arrays, cells.fill)
        self._build()

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int | None = None,
        pretrained: AnnotationModel | str | Path | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        enable_progress_bar: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        """Train all stages on the labelled cells.

        Networks keep the weights of each stage's best epoch on held-out cells; regressions are
        the optimum on all labelled cells. ``history_`` has each stage's losses under its name:
        "base" (of an scDAE "reconstruct", "classify" and "joint"), "component" and "head".

        Parameters
        ----------
        max_epochs
            Passes over the labelled cells in each stage, and iterations of L-BFGS at most.
            Default: the preset's.
        accelerator, devices
            As in Lightning; "auto" takes a GPU if there is one. Regressions run on the CPU.
        batch_size
            Cells per step; default: the preset's.
        pretrained
            A trained model of the same backbone, or the directory of a saved one, whose genes and
            encoder are taken instead of training the base.
        plan_kwargs
            Changes to the settings that concern training, such as ``lr``.
        enable_progress_bar
            Show progress bars.
        **trainer_kwargs
            Passed on to scvi-tools' ``Trainer``.

        Raises
        ------
        TypeError
            ``plan_kwargs`` names an unknown setting, or nothing takes ``trainer_kwargs``.
        ValueError
            ``pretrained`` is of another backbone, or there is no component to train on it;
            ``thinning`` is asked for but the values are no counts.
        """
        s = change_settings(self.settings_, plan_kwargs or {}, type(self).__name__)
        plain = s.backbone == "linear" and s.component is None
        by_steps = s.backbone != "linear" or (
            s.component is not None and (s.component == "mlp" or s.refined or not s.guided)
        )
        if trainer_kwargs and not by_steps:
            raise TypeError(
                f"train has no arguments {sorted(trainer_kwargs)!r}: these settings train only "
                "regressions, which take no steps."
            )
        if batch_size is not None and not plain:
            s = replace(s, batch_size=batch_size)
        self.settings_ = s
        if isinstance(pretrained, str | Path):
            from sctool.model import load  # which knows all classes, this one among them

            pretrained = load(pretrained)
        if pretrained is not None:
            self._adopt(pretrained)
        max_iter = s.max_iter if max_epochs is None else max_epochs
        if plain:
            x, y = self._examples(enable_progress_bar)
            self.history_ = {"supervised_train": self._fit_head(x, y, max_iter)}
        else:
            options = {"accelerator": accelerator, "devices": devices, **trainer_kwargs}
            bar = options | {"enable_progress_bar": enable_progress_bar}
            self.history_ = self._train_stages(pretrained, max_epochs, max_iter, bar)
        self.module.eval()
        self.is_trained_ = True

    def _train_stages(
        self,
        pretrained: AnnotationModel | None,
        max_epochs: int | None,
        max_iter: int,
        options: dict[str, Any],
    ) -> dict[str, pd.DataFrame]:
        """Train the stages in turn; their histories."""
        s, cells = self.settings_, self._sized(self._training_cells())
        labelled = np.flatnonzero(cells.arrays["label"] >= 0)
        y = cells.arrays["label"][labelled]
        train, held_out = self._split(y)
        history: dict[str, pd.DataFrame] = {}

        def run(stage: Stage, some: np.ndarray) -> None:
            part = np.intersect1d(labelled[some], labelled[train])
            rest = np.intersect1d(labelled[some], labelled[held_out])
            history.update(self._run(stage, cells, part, rest, max_epochs, options))

        self._C = 1.0 if s.C == "auto" else s.C  # of guides, until the base chooses
        everything = np.arange(len(y))
        guide: Any = None  # by all labelled cells
        base = ContrastiveModule(cells.x.shape[1], len(self.classes_), s, None)
        self.module = base
        if pretrained is not None:
            copy_parts(pretrained.module, base, "inputs", "encoder")
        elif s.backbone == "linear":
            z = self._embed(cells, labelled)
            history["base_loss_train"] = self._fit_head(z, y, max_iter, (train, held_out))
            guide = tuple(p.detach().numpy() for p in base.head.parameters())
        else:
            for stage in self._base_stages(cells, labelled):
                run(stage, everything)
        if s.component is None:
            self._build()
            copy_parts(base, self.module, "inputs", "encoder", "head")
            return history

        z = self._embed(cells, labelled)

        def place(some: np.ndarray, name: str, guide: Any = None) -> None:
            """Make a module whose component was trained on some of the labelled cells."""
            self._build()
            copy_parts(base, self.module, "inputs", "encoder")
            if s.component == "mls" and s.guided:
                if guide is None:
                    fitted, _ = regress(z[some], y[some], self._C, max_iter, s.min_type_weight)
                    guide = weights(fitted)
                self.module.component.start_at(*guide, z[some])
                if not s.refined:
                    return
            run(self._component_stage(name), some)

        outside = np.zeros((len(y), 0))
        if s.backbone == "linear" and s.component == "mls" and s.guided and s.folds > 1:
            fold = deal(y, s.folds)
            quiet = not options["enable_progress_bar"]
            for i in tqdm(np.unique(fold[fold >= 0]), "components of folds", disable=quiet):
                place(np.flatnonzero(fold != i), f"component_fold_{i + 1}")
                placed = self._embed(cells, labelled[fold == i])
                outside = outside if outside.size else np.zeros((len(y), placed.shape[1]))
                outside[fold == i] = placed
        place(everything, "component", guide)
        if s.backbone != "linear":
            run(Stage("head", ("head",), self._classification(), s.lr), everything)
            return history
        z = self._embed(cells, labelled)
        if outside.size:
            z = np.where(fold[:, None] < 0, z, outside)
        history["head_loss_train"] = self._fit_head(z, y, max_iter, (train, held_out))
        return history

    # -- stages --------------------------------------------------------------------------------

    def _base_stages(self, cells: Cells, labelled: np.ndarray) -> list[Stage]:
        """ACTINN's one stage, or scDAE's three."""
        s, module = self.settings_, self.module
        if isinstance(module.inputs, Centred):
            module.inputs.mean.copy_(torch.from_numpy(self.features_.mean))
        else:
            module.inputs.maximum.fill_(float(np.expm1(cells.x[labelled].max())) or 1.0)
        classify = self._classification()
        if s.backbone == "actinn":
            return [Stage("base", ("encoder", "head"), classify, s.lr)]
        decoder = [nn.Linear(DAE_CODE, DAE_HIDDEN), nn.ReLU()]
        module.decoder = nn.Sequential(*decoder, nn.Linear(DAE_HIDDEN, cells.x.shape[1]))

        def reconstruct(batch: Batch) -> Tensor:
            x = module.inputs(batch["x"])
            corrupted = x + s.noise * torch.randn_like(x)
            # eq. 3
            return (x - module.decoder(module.encoder(corrupted))).pow(2).sum(dim=1).mean() / 2

        def both(batch: Batch) -> Tensor:
            return reconstruct(batch) + classify(batch)

        return [
            Stage("reconstruct", ("encoder", "decoder"), reconstruct, s.lr),
            Stage("classify", ("head",), classify, s.lr),
            Stage("joint", ("encoder", "decoder", "head"), both, s.lr),
        ]

    def _component_stage(self, name: str) -> Stage:
        s, module = self.settings_, self.module

        def contrast(batch: Batch) -> Tensor:
            x = batch["x"]
            if s.thinning < 1 and module.training:
                depth = s.thinning + (1 - s.thinning) * torch.rand(len(x), device=x.device)
                x = thin(x, batch["size"], depth, s.target_sum)
            with torch.no_grad():
                z = module.encoder(module.inputs(x))
            return module.component.loss(z, batch["label"])

        return Stage(name, ("component",), contrast, s.component_lr, s.weight_decay, True)

    def _classification(self) -> Callable[[Batch], Tensor]:
        """Cross entropy of the head by the types' weights, and ACTINN's penalty on what trains."""
        s, module, weight = self.settings_, self.module, None
        if s.min_type_weight:
            label = self._training_cells().arrays["label"]
            n = np.bincount(label[label >= 0], minlength=len(self.classes_))
            weight = torch.from_numpy(type_weights(np.maximum(n, 1), s.min_type_weight)).float()

        def classify(batch: Batch) -> Tensor:
            x = batch["x"]
            loss = module.loss(batch, None if weight is None else weight.to(x.device))
            if s.backbone == "actinn":
                trained = [p for p in module.parameters() if p.requires_grad]
                loss = loss + s.l2 * torch.stack([p.pow(2).sum() for p in trained]).sum()
            return loss

        return classify

    def _run(
        self,
        stage: Stage,
        cells: Cells,
        train: np.ndarray,
        held_out: np.ndarray,
        max_epochs: int | None,
        options: dict[str, Any],
    ) -> dict[str, pd.DataFrame]:
        """Train one stage; what it logged."""
        s = self.settings_
        splitter = (TypeSplitter if stage.by_type else Splitter)(
            cells, {"labelled": train}, held_out, s.batch_size
        )
        steps = splitter.steps_per_epoch
        epochs = max_epochs or s.max_epochs or max(-(-s.min_steps // steps), s.min_epochs)
        if options["enable_progress_bar"]:
            callbacks = [*options.get("callbacks", []), NamedBar(stage.name)]
            options = options | {"callbacks": callbacks, "simple_progress_bar": False}
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in stage.parts)
        self.is_trained_ = False  # or the runner would append to an earlier stage's history
        best = BestWeights(f"{stage.name}_loss_validation")
        fit(self, StagePlan(self.module, stage), splitter, epochs, best=best, **options)
        self.module.requires_grad_(True)
        return self.history_

    def _fit_head(
        self,
        z: sp.csr_matrix | np.ndarray,
        y: np.ndarray,
        max_iter: int,
        split: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> pd.DataFrame:
        """Set the linear head to the regression of ``y`` on ``z``; its loss."""
        s, C = self.settings_, self.settings_.C
        grid: tuple[float, ...] = GENES_GRID
        if self.module.component is not None:
            C, grid = "auto", COMPONENT_GRID
        if C == "auto":
            train, held_out = split or self._split(y)
            C = choose_C(z, y, train, held_out, max_iter, s.min_type_weight, grid)
            self.audit_.append(f"training: C={C:g} chosen on {len(held_out)} held-out cells")
        self._C = C
        fitted, notes = regress(z, y, C, max_iter, s.min_type_weight)
        self.audit_ += notes
        head = self.module.head
        with torch.no_grad():
            for parameter, value in zip((head.weight, head.bias), weights(fitted), strict=True):
                parameter.copy_(torch.from_numpy(value))
        n_iter = pd.Index([int(np.max(fitted.n_iter_))], name="epoch")
        return pd.DataFrame({"loss": [cross_entropy(fitted, z, y)]}, index=n_iter)

    # -- cells ---------------------------------------------------------------------------------

    def _examples(self, progress: bool) -> tuple[sp.csr_matrix, np.ndarray]:
        """Cells of a plain regression, CSR (n_cells, n_genes), and the code of each one's name."""
        cells = self._training_cells()
        labelled = np.flatnonzero(cells.arrays["label"] >= 0)
        return cells.x[labelled], cells.arrays["label"][labelled]

    def _split(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions to train on and to hold out."""
        return stratified_holdout(y, self.settings_.validation)

    @torch.inference_mode()
    def _embed(self, cells: Cells, indices: np.ndarray) -> sp.csr_matrix | np.ndarray:
        """What the head sees of some cells, (n_cells, n_latent), sparse where it sees genes."""
        module = self.module.eval()
        if self.settings_.backbone == "linear" and module.component is None and cells.fill is None:
            return cells.x[indices]
        device = next(module.parameters()).device
        parts = np.array_split(indices, -(-len(indices) // 2048))
        return torch.cat([module.embed(cells[i]["x"].to(device)).cpu() for i in parts]).numpy()

    def _sized(self, cells: Cells) -> Cells:
        """The cells with their total counts, where thinning needs them."""
        if self.settings_.thinning == 1 or self.settings_.component is None:
            return cells
        layer = self.registry["setup_args"]["layer"]
        try:
            size = self.features_.total_counts(self.adata, layer)
        except ValueError as error:
            raise ValueError(
                f"thinning={self.settings_.thinning!r} draws from counts: {error} Give counts (of "
                "reference and query), or thinning=1."
            ) from error
        return Cells(cells.x, cells.arrays | {"size": size}, cells.fill)

    def _adopt(self, base: AnnotationModel) -> None:
        """See cells as a trained model does."""
        s = self.settings_
        found = getattr(base.settings_, "backbone", None)
        if found != s.backbone:
            raise ValueError(
                f"pretrained is a {type(base).__name__} of backbone={found!r}, not {s.backbone!r}."
            )
        if s.component is None:
            raise ValueError("pretrained leaves nothing to train: pass component='mls' or 'mlp'.")
        self.features_ = base.features_
        self.settings_ = replace(s, target_sum=base.settings_.target_sum)
        layer = self.registry["setup_args"]["layer"]
        chunks, fill, notes = self.features_.transform(self.adata, layer)
        self.audit_ += notes
        arrays = self._training_cells().arrays
        self._cells = Cells(sp.vstack(list(chunks), format="csr"), arrays, fill)


class ACTINN(ContrastiveClassifier):
    """ACTINN: a multilayer perceptron of 100, 50 and 25 units; with a component if asked for.

    The encoder is the first two layers, the head the last two.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    preset
        "default" or "paper".
    ignore_case
        Compare gene names without regard to case.
    **settings
        Changes to the preset, such as ``component="mls"``: see
        ``sctool.model._contrastive.ContrastiveSettings``.
    """

    PRESETS: ClassVar[dict[str, Any]] = presets("actinn")


class SCDAE(ContrastiveClassifier):
    """scDAE: a perceptron on the code of a denoising auto-encoder; with a component if asked for.

    The base is trained in three stages: the auto-encoder alone, the head on its frozen code, both.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    preset
        "default" or "paper".
    ignore_case
        Compare gene names without regard to case.
    **settings
        Changes to the preset, such as ``component="mls"``: see
        ``sctool.model._contrastive.ContrastiveSettings``.
    """

    PRESETS: ClassVar[dict[str, Any]] = presets("scdae")

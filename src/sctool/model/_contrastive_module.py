"""Networks of the contrastive classifiers: base models and components.

A network is an encoder, optionally a component, and a head. ``docs/methods/contrastive.md`` has the
maths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool._data._features import filter_genes_by_percentile
from sctool.losses import circles_info_nce, info_nce, own_circle_info_nce

Batch = dict[str, Tensor]

#: Units of scDAE's hidden layers, and of its code (as in the paper).
DAE_HIDDEN, DAE_CODE = 250, 125


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Parameters
    ----------
    name
        Prefix of the names of its losses in the history.
    parts
        Names of the submodules to train; all others are frozen.
    loss
        Loss of a minibatch.
    lr, weight_decay
        Learning rate and weight decay of AdamW.
    by_type
        Draw minibatches with :class:`~sctool._batches.TypeBatches`.
    """

    name: str
    parts: tuple[str, ...]
    loss: Callable[[Batch], Tensor]
    lr: float
    weight_decay: float = 0.0
    by_type: bool = False


# -- Base models ---------------------------------------------------------------------------------


class Centered(nn.Module):
    """Subtract the mean of the training cells."""

    mean: Tensor

    def __init__(self, n_input: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_input))

    def forward(self, x: Tensor) -> Tensor:
        """Of log1p values, (n_cells, n_genes)."""
        return x - self.mean


class ScaledByMaximum(nn.Module):
    """Log1p of linear values divided by the maximum over the training cells."""

    maximum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("maximum", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Of log1p values, (n_cells, n_genes)."""
        return (x.expm1() / self.maximum).log1p()


class Backbone:
    """Base model: logistic regression, with the identity as the encoder.

    Subclasses are networks, trained in stages. ``s`` are the settings of the model.
    """

    #: Whether the heads are networks; otherwise they are regressions, fitted to all cells.
    is_network = False

    def select_genes(self, x: sp.csr_matrix) -> np.ndarray:
        """Positions of the input genes, selected on the labelled cells ``x``."""
        return np.arange(x.shape[1])

    def inputs(self, n_input: int, s: Any) -> nn.Module:
        """Preprocessing of log1p values before the encoder."""
        return nn.Identity()

    def encoder(self, n_input: int) -> tuple[nn.Module, int]:
        """The encoder and its number of outputs."""
        return nn.Identity(), n_input

    def head(self, n_input: int, n_classes: int) -> nn.Module:
        """The classification head."""
        return nn.Linear(n_input, n_classes)

    def penalty(self, module: nn.Module, s: Any) -> Tensor | float:
        """Penalty on the trained weights."""
        return 0.0

    def stages(
        self, module: Any, s: Any, classify: Callable[[Batch], Tensor], x: sp.csr_matrix
    ) -> list[Stage]:
        """Stages of training; fits the preprocessing to the labelled cells ``x``."""
        return []


class ACTINNBackbone(Backbone):
    """Multilayer perceptron: two encoder layers (100, 50 units), two head layers (25 units)."""

    is_network = True

    def select_genes(self, x: sp.csr_matrix) -> np.ndarray:
        """Exclude the least and most expressed, then the least and most variable genes."""
        return filter_genes_by_percentile(x)

    def inputs(self, n_input: int, s: Any) -> nn.Module:
        """Centring."""
        return Centered(n_input)

    def encoder(self, n_input: int) -> tuple[nn.Module, int]:
        """The first two layers."""
        layers = [nn.Linear(n_input, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU()]
        return nn.Sequential(*layers), 50

    def head(self, n_input: int, n_classes: int) -> nn.Module:
        """The last two layers."""
        return nn.Sequential(nn.Linear(n_input, 25), nn.ReLU(), nn.Linear(25, n_classes))

    def penalty(self, module: nn.Module, s: Any) -> Tensor | float:
        """The L2 penalty."""
        trained = [p for p in module.parameters() if p.requires_grad]
        return s.l2 * torch.stack([p.pow(2).sum() for p in trained]).sum()

    def stages(
        self, module: Any, s: Any, classify: Callable[[Batch], Tensor], x: sp.csr_matrix
    ) -> list[Stage]:
        """A single stage."""
        module.inputs.mean.copy_(torch.from_numpy(np.asarray(x.mean(axis=0)).ravel()))
        return [Stage("base", ("encoder", "head"), classify, s.lr)]


class SCDAEBackbone(Backbone):
    """Denoising auto-encoder with a code of 125 units, and a perceptron on the code."""

    is_network = True

    def inputs(self, n_input: int, s: Any) -> nn.Module:
        """Centring or, as published, scaling by the maximum."""
        return ScaledByMaximum() if s.scale_by_maximum else Centered(n_input)

    def encoder(self, n_input: int) -> tuple[nn.Module, int]:
        """From genes to the code."""
        layers = [nn.Linear(n_input, DAE_HIDDEN), nn.ReLU(), nn.Linear(DAE_HIDDEN, DAE_CODE)]
        return nn.Sequential(*layers, nn.ReLU()), DAE_CODE

    def head(self, n_input: int, n_classes: int) -> nn.Module:
        """The perceptron."""
        return nn.Sequential(nn.Linear(n_input, 64), nn.ReLU(), nn.Linear(64, n_classes))

    def stages(
        self, module: Any, s: Any, classify: Callable[[Batch], Tensor], x: sp.csr_matrix
    ) -> list[Stage]:
        """The auto-encoder, then the head on its frozen code, then both."""
        if s.scale_by_maximum:
            module.inputs.maximum.fill_(float(np.expm1(x.max())) or 1.0)
        else:
            module.inputs.mean.copy_(torch.from_numpy(np.asarray(x.mean(axis=0)).ravel()))
        decoder = [nn.Linear(DAE_CODE, DAE_HIDDEN), nn.ReLU(), nn.Linear(DAE_HIDDEN, x.shape[1])]
        module.decoder = nn.Sequential(*decoder)

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


BackboneName = Literal["linear", "actinn", "scdae"]
BACKBONES: dict[BackboneName, Backbone]
BACKBONES = {"linear": Backbone(), "actinn": ACTINNBackbone(), "scdae": SCDAEBackbone()}


# -- Components ----------------------------------------------------------------------------------


class Sphere(nn.Module):
    """MLP-CC: two layers that map to the unit sphere."""

    def __init__(self, n_input: int, n_classes: int, s: Any):
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
        """Eq. 5, from the output ``z`` of the encoder."""
        return info_nce(self(z), label, self.settings.temperature)


class Circles(nn.Module):
    """MLS-CC (multi-latent-space): for each type a linear map to a plane, then to a circle."""

    def __init__(self, n_input: int, n_classes: int, s: Any):
        super().__init__()
        self.settings, self.n_classes = s, n_classes
        self.n_output = 2 * n_classes
        self.maps = nn.Linear(n_input, self.n_output)

    def points(self, z: Tensor) -> Tensor:
        """Position on the circle of each type, (n_cells, n_types, 2)."""
        return F.normalize(self.maps(z).view(-1, self.n_classes, 2), dim=2)

    def forward(self, z: Tensor) -> Tensor:
        """Positions on all circles, concatenated, (n_cells, 2 n_types)."""
        return self.points(z).flatten(1)

    def loss(self, z: Tensor, label: Tensor) -> Tensor:
        """Eq. 6, as printed or in our reading, from the output ``z`` of the encoder."""
        s = self.settings
        loss = own_circle_info_nce if s.positives == "own" else circles_info_nce
        return loss(self.points(z), label, s.temperature)

    @torch.no_grad()
    def init_from_linear(self, weight: np.ndarray, bias: np.ndarray, z: Any) -> None:
        """Set the angle of type k from its score: weight (n_types, n_input), bias (n_types,).

        The second coordinate is the same for all cells, and large relative to the scores of the
        cells ``z``, so that the circle distorts few of them.
        """
        spread = 2 * float(np.std(z @ weight.T + bias)) + 1e-6
        maps = self.maps.weight.view(self.n_classes, 2, -1), self.maps.bias.view(-1, 2)
        for values, start, other in zip(maps, (weight, bias), (0.0, 1.0), strict=True):
            values[:, 0] = torch.from_numpy(start / spread).to(values.dtype)
            values[:, 1] = other


ComponentName = Literal["mlp", "mls"] | None
COMPONENTS: dict[ComponentName, Any] = {None: None, "mlp": Sphere, "mls": Circles}


# -- Whole network -------------------------------------------------------------------------------


class ContrastiveModule(nn.Module):
    """Encoder, optional component, head; and the decoder while the base of scDAE is trained."""

    def __init__(self, n_input: int, n_classes: int, s: Any, component: ComponentName):
        super().__init__()
        backbone = BACKBONES[s.backbone]
        self.inputs = backbone.inputs(n_input, s)
        self.encoder, n = backbone.encoder(n_input)
        self.component: Sphere | Circles | None = None
        if component is not None:
            self.component = COMPONENTS[component](n, n_classes, s)
            n = self.component.n_output
        self.head = backbone.head(n, n_classes)
        self.embeds = backbone.is_network or component is not None

    def embed(self, x: Tensor) -> Tensor:
        """Input of the head, (n_cells, n_latent)."""
        z = self.encoder(self.inputs(x))
        return z if self.component is None else self.component(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_cells, n_classes) and embedding; logits twice if there is no embedding."""
        z = self.embed(x)
        logits = self.head(z)
        return logits, (z if self.embeds else logits)

    def loss(self, batch: Batch, weight: Tensor | None = None) -> Tensor:
        """Cross entropy on a minibatch, optionally weighted by type."""
        return F.cross_entropy(self(batch["x"])[0], batch["label"], weight)


def copy_parts(source: nn.Module, target: nn.Module, *names: str) -> None:
    """Copy the weights of the named submodules to another module."""
    for name in names:
        target.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())

"""The networks of the contrastive components: base models, the two components, and both joined.

A network is an encoder, a component or none, and a head. ``docs/methods/contrastive.md`` has the
maths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool._data._features import filter_genes_by_percentile
from sctool.losses import circles_info_nce, info_nce, own_circle_info_nce

Batch = dict[str, Tensor]

#: Units of scDAE's hidden layers and of its code; the code's number is the paper's.
DAE_HIDDEN, DAE_CODE = 250, 125


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
        Minibatches by :class:`~sctool._batches.TypeBatches`.
    """

    name: str
    parts: tuple[str, ...]
    loss: Callable[[Batch], Tensor]
    lr: float
    weight_decay: float = 0.0
    by_type: bool = False


# -- Base models ---------------------------------------------------------------------------------


class Centered(nn.Module):
    """Inputs less the mean of the training cells."""

    mean: Tensor

    def __init__(self, n_input: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_input))

    def forward(self, x: Tensor) -> Tensor:
        """Of log1p values, (n_cells, n_genes)."""
        return x - self.mean


class ScaledByMaximum(nn.Module):
    """Log1p of linear values divided by the largest one of the training cells."""

    maximum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("maximum", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Of log1p values, (n_cells, n_genes)."""
        return (x.expm1() / self.maximum).log1p()


class Backbone:
    """A base model: logistic regression, whose encoder is the identity.

    Subclasses are networks, trained by stages. All take the model's settings as ``s``.
    """

    #: Whether its heads are networks too; otherwise they are regressions, solved on all cells.
    is_network = False

    def select_genes(self, x: sp.csr_matrix) -> np.ndarray:
        """Positions of the genes that it sees, of all genes of the labelled cells."""
        return np.arange(x.shape[1])

    def inputs(self, n_input: int, s: Any) -> nn.Module:
        """What stands between log1p values and the encoder."""
        return nn.Identity()

    def encoder(self, n_input: int) -> tuple[nn.Module, int]:
        """The encoder, and the number of its outputs."""
        return nn.Identity(), n_input

    def head(self, n_input: int, n_classes: int) -> nn.Module:
        """The classification head."""
        return nn.Linear(n_input, n_classes)

    def penalty(self, module: nn.Module, s: Any) -> Tensor | float:
        """On the weights that are trained."""
        return 0.0

    def stages(
        self, module: Any, s: Any, classify: Callable[[Batch], Tensor], x: sp.csr_matrix
    ) -> list[Stage]:
        """Stages of its training, once what depends on the labelled cells ``x`` is set."""
        return []


class ACTINNBackbone(Backbone):
    """A multilayer perceptron of 100, 50 and 25 units: two layers encode, two classify."""

    is_network = True

    def select_genes(self, x: sp.csr_matrix) -> np.ndarray:
        """Neither the least nor the most expressed, nor the least or most variable."""
        return filter_genes_by_percentile(x)

    def inputs(self, n_input: int, s: Any) -> nn.Module:
        """Centred."""
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
        """One."""
        module.inputs.mean.copy_(torch.from_numpy(np.asarray(x.mean(axis=0)).ravel()))
        return [Stage("base", ("encoder", "head"), classify, s.lr)]


class SCDAEBackbone(Backbone):
    """A denoising auto-encoder with a code of 125 units, and a perceptron on the code."""

    is_network = True

    def inputs(self, n_input: int, s: Any) -> nn.Module:
        """Centred or, as published, scaled by the maximum."""
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
        """The auto-encoder, the head on its frozen code, both."""
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


BACKBONES = {"linear": Backbone(), "actinn": ACTINNBackbone(), "scdae": SCDAEBackbone()}


# -- Components ----------------------------------------------------------------------------------


class Sphere(nn.Module):
    """MLP-CC: two layers, and a point on the unit sphere."""

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
        """Eq. 5 on what the encoder returns."""
        return info_nce(self(z), label, self.settings.temperature)


class Circles(nn.Module):
    """MLS-CC (multi-latent-space): for each type a linear map to the plane, and to the circle."""

    def __init__(self, n_input: int, n_classes: int, s: Any):
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
    def init_from_linear(self, weight: np.ndarray, bias: np.ndarray, z: Any) -> None:
        """Let the angle of type k follow its score: weight (n_types, n_input), bias (n_types,).

        The second coordinate is the same for all cells, and so large beside the scores of the
        cells ``z`` that the circle bends few of them.
        """
        spread = 2 * float(np.std(z @ weight.T + bias)) + 1e-6
        maps = self.maps.weight.view(self.n_classes, 2, -1), self.maps.bias.view(-1, 2)
        for values, start, other in zip(maps, (weight, bias), (0.0, 1.0), strict=True):
            values[:, 0] = torch.from_numpy(start / spread).to(values.dtype)
            values[:, 1] = other


COMPONENTS: dict[str | None, Any] = {None: None, "mlp": Sphere, "mls": Circles}


# -- The whole -----------------------------------------------------------------------------------


class ContrastiveModule(nn.Module):
    """Encoder, component or none, head; and while an scDAE's base is trained, its decoder."""

    def __init__(self, n_input: int, n_classes: int, s: Any, component: str | None):
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


def copy_parts(source: nn.Module, target: nn.Module, *names: str) -> None:
    """Give parts of a module the weights that they have in another."""
    for name in names:
        target.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())

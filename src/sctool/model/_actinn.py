"""A hierarchy of ACTINN networks (Ma & Pellegrini 2020), as the package actinn-jax ships one.

A coarse network finds the group of types that a cell belongs to, then the network of that group its
type. Only the package's files are read; neither it nor JAX is imported.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sctool._checks import Count, Positive
from sctool._tables import read_table
from sctool.model._base import Settings
from sctool.model._pretrained import PretrainedModel

#: Distribution, and the folder of its model.
PACKAGE, FOLDER = "actinn-jax", "actinn_jax/references/panhuman_distill_v1"


@dataclass(frozen=True)
class HierarchicalACTINNSettings(Settings):
    """Hyperparameters of :class:`HierarchicalACTINN`.

    Parameters
    ----------
    temperature
        Divides the logits of all networks. It changes the scores, never the types. 0.9 was chosen
        on two data sets of blood, by the log-likelihood of right and wrong names.
    """

    n_top_genes: Count | None = None
    temperature: Positive = 0.9


class Network(nn.Module):
    """An ACTINN network on some of the inputs."""

    inputs: Tensor

    def __init__(self, n_input: int, n_output: int):
        super().__init__()
        self.register_buffer("inputs", torch.zeros(n_input, dtype=torch.int64))
        hidden = (100, 50, 25)
        layers: list[nn.Module] = []
        for n_in, n_out in zip((n_input, *hidden), hidden, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], n_output)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and last hidden layer, (n_cells, 25), of all inputs (n_cells, n_genes)."""
        z = self.encoder(x[:, self.inputs])
        return self.head(z), z


class HierarchicalModule(nn.Module):
    """A coarse network and one for each group of several types.

    Parameters
    ----------
    n_inputs
        Number of inputs of the coarse network, then of each group's; 0 for groups of one type.
    types
        Positions of the types of each group, in the order of its network's outputs.
    """

    group: Tensor

    def __init__(self, n_inputs: list[int], types: list[list[int]], temperature: float):
        super().__init__()
        self.types, self.temperature = types, temperature
        self.coarse = Network(n_inputs[0], len(types))
        self.fine = nn.ModuleDict(
            {str(i): Network(n, len(types[i])) for i, n in enumerate(n_inputs[1:]) if n}
        )
        group = torch.zeros(sum(map(len, types)), dtype=torch.int64)
        for i, members in enumerate(types):
            group[members] = i
        self.register_buffer("group", group, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each type, (n_cells, n_types), and the coarse network's embedding.

        It is that of the group and of the type within it. The type of a cell is the best one of its
        best group, as in the package; where a type of another group is more probable (about one
        cell in 40), the two exchange their probabilities.
        """
        logits, z = self.coarse(x)
        of_group = (logits / self.temperature).log_softmax(dim=1)
        out = of_group[:, self.group]
        for i, network in self.fine.items():
            members = self.types[int(i)]
            out[:, members] += (network(x)[0] / self.temperature).log_softmax(dim=1)
        routed = self.group == logits.argmax(dim=1, keepdim=True)
        chosen = out.masked_fill(~routed, -torch.inf).argmax(dim=1, keepdim=True)
        best = out.argmax(dim=1, keepdim=True)
        pair = torch.cat([chosen, best], dim=1)
        return out.scatter(1, pair, out.gather(1, pair.flip(1))), z


class HierarchicalACTINN(PretrainedModel):
    """Two levels of ACTINN networks, of the package actinn-jax.

    Made by ``sctool.model.load("human")``. Values are log-normalised over the genes of the model;
    genes that the query lacks count as not expressed.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": HierarchicalACTINNSettings()}
    MIN_GENES, ALL_GENES = 500, False
    settings_: HierarchicalACTINNSettings
    module: HierarchicalModule

    def _outputs(self) -> dict[str, Any]:
        return super()._outputs() | {"n_inputs": self.n_inputs_, "types": self.types_}

    def _set_outputs(self, state: dict[str, Any]) -> None:
        super()._set_outputs(state)
        self.n_inputs_, self.types_ = state["n_inputs"], state["types"]

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return HierarchicalModule(self.n_inputs_, self.types_, self.settings_.temperature)


def human_folder() -> Path:
    """The folder of the model "human", of the installed package.

    Raises
    ------
    ImportError
        The package is not installed.
    """
    try:
        return Path(str(distribution(PACKAGE).locate_file(FOLDER)))
    except PackageNotFoundError:
        raise ImportError(
            "The model 'human' is in the package actinn-jax, which is not installed. Run "
            "pip install 'sctool-annotate[human]', or pip install --no-deps actinn-jax to leave "
            "out JAX, which sctool does not need."
        ) from None


def read_human() -> HierarchicalACTINN:
    """Read the model "human" of the installed package.

    Raises
    ------
    ImportError
        The package is not installed.
    ValueError
        It does not have the files of the model, or they are damaged.
    """
    folder = human_folder()
    try:
        return read_actinn(folder)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The model 'human' in {str(folder)!r} cannot be read ({type(error).__name__}: "
            f"{error}). Install actinn-jax 0.3.1 again."
        ) from error


def read_actinn(folder: Path) -> HierarchicalACTINN:
    """Read a hierarchy of networks that actinn-jax wrote."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    about = json.loads((folder / "build_info.json").read_text(encoding="utf-8"))
    ids, groups, coarse = _read_network(folder, "coarse")
    classes, single = manifest["classes"], manifest["fine"]
    position = {name: i for i, name in enumerate(classes)}
    tensors, n_inputs, types = {"coarse": coarse}, [len(coarse["inputs"])], []
    for i, group in enumerate(groups):
        if single[group]["single_label"] is not None:
            names, n_input = [single[group]["single_label"]], 0
        else:
            same_ids, names, network = _read_network(folder, f"fine_{group}")
            if same_ids != ids:
                raise ValueError(f"the networks 'coarse' and {group!r} have different genes")
            tensors[f"fine.{i}"], n_input = network, len(network["inputs"])
        types.append([position[name] for name in names])
        n_inputs.append(n_input)
    symbols = dict(read_table("human_genes.tsv.gz")[1])
    names = [symbols.get(gene, gene) for gene in ids]
    teacher = about["teacher"]
    return HierarchicalACTINN._make(
        pd.DataFrame({"ensembl_id": ids}, index=pd.Index(names, dtype=object)),
        names,
        np.zeros(len(ids)),
        {
            "classes": classes,
            "n_inputs": n_inputs,
            "types": types,
            "terms": {n: t for n, t in manifest["class_to_cl"].items() if t.startswith("CL:")},
            "source": {
                "name": "human",
                "species": "human",
                "licence": f"weights {teacher['weights_license']}, files MIT",
                "from": f"{PACKAGE} {distribution(PACKAGE).version}, {folder.name}",
                "attribution": (
                    f"{teacher['citation']} doi:{teacher['doi']}. Weights of {teacher['model']} "
                    f"({teacher['weights']}), distilled by {PACKAGE}"
                ),
            },
        },
        {f"{net}.{name}": value for net, found in tensors.items() for name, value in found.items()},
    )


def _read_network(folder: Path, name: str) -> tuple[list[str], list[str], dict[str, Tensor]]:
    """Genes, outputs and tensors of one network, for inputs log1p instead of log2(1 + x)."""
    about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    # opened here, for numpy leaves a damaged file open
    with open(folder / f"{name}.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
        found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    found["W1"] = found["W1"] / math.log(2)
    layers = ["encoder.0", "encoder.2", "encoder.4", "head"]
    tensors = {"inputs": found["select_idx"]}
    for i, layer in enumerate(layers, 1):
        tensors[f"{layer}.weight"] = found[f"W{i}"].T.contiguous()
        tensors[f"{layer}.bias"] = found[f"b{i}"]
    return about["norm_genes"], about["classes"], tensors

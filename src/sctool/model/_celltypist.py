"""Model files of CellTypist (Domínguez Conde et al. 2022), read without running what they name.

They are pickles of a logistic regression and a scaler of scikit-learn. A pickle can name any
function for its reader to call. This reader knows the few names that such files have, and puts
inert objects in the place of scikit-learn's; any other name is refused.
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool.model._base import Prediction, Settings
from sctool.model._pretrained import PretrainedModel

logger = logging.getLogger("sctool")

ATTRIBUTION = "Domínguez Conde et al. 2022, doi:10.1126/science.abl5197 (CellTypist)"


class Stored:
    """In the place of an object of scikit-learn: its attributes, and nothing that runs."""

    def __init__(self, *args: Any):
        pass


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """A number, as numpy writes it."""
    if dtype.hasobject:
        raise pickle.UnpicklingError("a number that is an object")
    return np.frombuffer(data, dtype)[0]


def _reconstruct(subtype: type, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    """An empty array, to which the pickle then gives its values."""
    return np.empty(0)


#: What files of CellTypist name, by module and name, and what is taken for it.
ADMITTED: dict[tuple[str, str], Any] = {
    ("sklearn.linear_model._logistic", "LogisticRegression"): Stored,
    ("sklearn.linear_model._stochastic_gradient", "SGDClassifier"): Stored,
    # the classifier's loss, by versions of scikit-learn
    ("sklearn.linear_model._sgd_fast", "Log"): Stored,
    ("sklearn._loss._loss", "CyHalfBinomialLoss"): Stored,
    ("_loss", "CyHalfBinomialLoss"): Stored,
    ("sklearn.preprocessing._data", "StandardScaler"): Stored,
    ("collections", "OrderedDict"): dict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads pickles that name nothing but :data:`ADMITTED`."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        # of this file alone, for a pickle can set the attributes of a class
        self.stored = type("Stored", (Stored,), {})

    def find_class(self, module: str, name: str) -> Any:
        """What is taken for a name; raise UnpicklingError for one that is not admitted."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        found = ADMITTED[module, name]
        return self.stored if found is Stored else found

    def persistent_load(self, pid: Any) -> Any:
        """Raise UnpicklingError: such files refer to nothing outside."""
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside of the file")


@dataclass(frozen=True)
class CellTypistSettings(Settings):
    """Hyperparameters of :class:`CellTypistModel`, all of them fixed by CellTypist."""

    n_top_genes: int | None = None


class ScaledLinearModule(nn.Module):
    """Scaled inputs, clipped from above as by CellTypist, and one linear layer."""

    #: Standard deviations above the mean that inputs are clipped at.
    CLIP = 10
    mean: Tensor
    scale: Tensor

    def __init__(self, n_input: int, n_classes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_input, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(n_input, dtype=torch.float64))
        self.head = nn.Linear(n_input, n_classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each type by itself, and decision scores, (n_cells, n_classes)."""
        scores = self.head(((x - self.mean) / self.scale).clamp(max=self.CLIP)).float()
        # Several probabilities may round to 1: the highest score decides, as for CellTypist.
        best = F.one_hot(scores.argmax(dim=1), scores.shape[1])
        return F.logsigmoid(scores) + 1e-6 * best, scores


class CellTypistModel(PretrainedModel):
    """A model of CellTypist, imported from its file.

    Made by ``sctool.model.load("Immune_All_Low.pkl")``. CellTypist gives each type a probability of
    its own, the logistic function of its score; the scores are the embedding. The probabilities of
    a cell here are these, divided by their sum, and its novelty is 1 - the highest of CellTypist's.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": CellTypistSettings()}
    MIN_GENES, ALL_GENES = None, True
    module: ScaledLinearModule

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return ScaledLinearModule(n_input, n_classes)

    def _novel_score(self, prediction: Prediction) -> np.ndarray:
        highest = torch.from_numpy(prediction.latent.max(axis=1))
        return 1 - highest.sigmoid().numpy()


def read_celltypist(path: Path) -> CellTypistModel:
    """Read a model file of CellTypist.

    Raises
    ------
    ValueError
        The file is damaged, is no model of CellTypist, or names what no such model needs.
    """
    found = _unpickle(path)
    try:
        classifier, scaler = vars(found["Model"]), vars(found["Scaler_"])
        about = {k: str(v) for k, v in found["description"].items() if v}
        coefficients, bias = np.asarray(classifier["coef_"]), np.asarray(classifier["intercept_"])
        classes = [str(name) for name in classifier["classes_"]]
        genes = [str(name) for name in classifier["features"]]
        centred = scaler["with_mean"]
        mean = np.asarray(scaler["mean_"]) if centred else np.zeros(len(genes))
        scale = np.asarray(scaler["scale_"], dtype=np.float64)
        written_with = classifier.get("_sklearn_version", "an unknown version")
        if len(classes) == 2:  # of which scikit-learn keeps the second alone
            coefficients, bias = np.vstack([-coefficients, coefficients]), np.hstack([-bias, bias])
        if coefficients.shape != (len(classes), len(genes)) or mean.shape != scale.shape:
            raise ValueError(f"{coefficients.shape} coefficients")
        tensors = {
            "mean": mean.astype(np.float64),
            "scale": scale,
            "head.weight": coefficients.astype(np.float64),
            "head.bias": bias.astype(np.float64),
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is a pickle, but no model of CellTypist ({type(error).__name__}: "
            f"{error})."
        ) from error
    upper = np.mean([gene == gene.upper() for gene in genes])
    model = CellTypistModel._make(
        pd.DataFrame(index=pd.Index(genes, dtype=object)),
        genes,
        mean,
        {
            "classes": classes,
            "terms": {},
            "source": {
                "name": path.stem,
                "species": "human" if upper > 0.5 else "mouse",
                "licence": "that of the model's authors",
                "from": "; ".join(
                    [path.name, *(about[k] for k in ("details", "url") if k in about)]
                ),
                "attribution": "; ".join(filter(None, [ATTRIBUTION, about.get("source", "")])),
            },
        },
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()},
    )
    ours = version("scikit-learn")
    note = f"model: {path.name} was written with scikit-learn {written_with}"
    if written_with.split(".")[:2] != ours.split(".")[:2]:
        note += (
            f", and {ours} is installed. Its arrays were read without scikit-learn; compare some "
            "labels with CellTypist's if you can"
        )
        logger.warning("%s.", note)
    model.audit_.append(note)
    return model


def _unpickle(path: Path) -> Any:
    with open(path, "rb") as file:
        try:
            return RestrictedUnpickler(file).load()
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{str(path)!r} was not loaded: {error}. Files of CellTypist name only "
                "scikit-learn's logistic regression and scaler, and arrays: do not trust its "
                "source."
            ) from error
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(
                f"{str(path)!r} is damaged or no pickle ({type(error).__name__}: {error}): "
                "download it again."
            ) from error

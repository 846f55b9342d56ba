"""Model files of CellTypist (Domínguez Conde et al. 2022), read without running what they name.

They are pickles of a logistic regression and a scaler of scikit-learn. A pickle can name any
function for its reader to call. This reader knows the few names that such files have, and puts
inert objects in the place of scikit-learn's; any other name is refused.
"""

from __future__ import annotations

import logging
import pickle
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sctool._checks import Count
from sctool.model._base import Prediction, Settings
from sctool.model._pretrained import PretrainedModel

logger = logging.getLogger("sctool")

ATTRIBUTION = "Domínguez Conde et al. 2022, doi:10.1126/science.abl5197 (CellTypist)"


class Stored:
    """In the place of any object: its attributes, and nothing that runs."""

    def __init__(self, *args: Any):
        pass


class StoredType(Stored):
    """In the place of a ``numpy.dtype``: of plain numbers or text, or of objects."""

    def __init__(self, name: Any, *args: Any):
        self.name, self.order = name, "|"

    def __setstate__(self, state: Any) -> None:
        _, order, *parts = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("it has arrays of records")
        self.order = order

    def numpy(self) -> np.dtype | None:
        """The type of plain values; None of objects."""
        if self.name == "O8":
            return None
        if not isinstance(self.name, str) or not re.fullmatch(
            r"b1|[iuf][1248]|[SU]\d{1,4}", self.name
        ):
            raise pickle.UnpicklingError(f"it has values of type {self.name!r}")
        return np.dtype(self.order.replace("|", "=") + self.name)

    def scalar(self, data: bytes) -> Any:
        """One value."""
        if (plain := self.numpy()) is None:
            raise pickle.UnpicklingError("it has a number that is an object")
        return np.frombuffer(data, plain)[0]


class StoredArray(Stored):
    """In the place of a ``numpy.ndarray``. Its memory is made here, never by the file."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.by_column, self.data = state

    def numpy(self) -> np.ndarray:
        """The array, of plain values or of text."""
        plain = self.dtype.numpy()
        if plain is None:
            values = np.array([str(value) for value in self.data], dtype=object)
        else:
            values = np.frombuffer(self.data, plain)
        return values.reshape(self.shape, order="F" if self.by_column else "C")


#: What files of CellTypist name, by module and name, and the class that is taken for it.
STORED: dict[tuple[str, str], type[Stored] | type[dict]] = {
    ("sklearn.linear_model._logistic", "LogisticRegression"): Stored,
    ("sklearn.linear_model._stochastic_gradient", "SGDClassifier"): Stored,
    # the classifier's loss, by versions of scikit-learn
    ("sklearn.linear_model._sgd_fast", "Log"): Stored,
    ("sklearn._loss._loss", "CyHalfBinomialLoss"): Stored,
    ("_loss", "CyHalfBinomialLoss"): Stored,
    ("sklearn.preprocessing._data", "StandardScaler"): Stored,
    ("collections", "OrderedDict"): dict,
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): StoredType,
}
#: Modules of numpy with the two functions that such files call.
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")


class RestrictedUnpickler(pickle.Unpickler):
    """Reads pickles that name nothing but :data:`STORED` and two functions of numpy.

    Neither scikit-learn's nor numpy's own objects are made: a pickle can give a ``numpy.dtype`` a
    state in which bytes of the file are taken for pointers.
    """

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        # All of this file alone, for a pickle can set the attributes of classes and functions.
        own: dict[type, type] = {
            cls: type(cls.__name__, (cls,), {}) for cls in (Stored, StoredType, StoredArray)
        }
        self.admitted: dict[tuple[str, str], Any] = {
            name: own.get(cls, cls) for name, cls in STORED.items()
        }
        for module in MULTIARRAY:
            self.admitted[module, "_reconstruct"] = lambda *_: own[StoredArray]()
            self.admitted[module, "scalar"] = lambda dtype, data: StoredType.scalar(dtype, data)

    def find_class(self, module: str, name: str) -> Any:
        """What is taken for a name; raise UnpicklingError for one that is not admitted."""
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self.admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Raise UnpicklingError: such files refer to nothing outside."""
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside of the file")


def _array(value: Any) -> np.ndarray:
    """An array of a file."""
    return value.numpy() if isinstance(value, StoredArray) else np.asarray(value)


def _numbers(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An array of a file with finite numbers and a given shape; ValueError for others."""
    array = _array(value)
    if array.dtype.kind not in "iuf" or array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name} is not {shape} finite numbers")
    return array.astype(np.float64)


@dataclass(frozen=True)
class CellTypistSettings(Settings):
    """Hyperparameters of :class:`CellTypistModel`, all of them fixed by CellTypist."""

    n_top_genes: Count | None = None


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
        classes = [str(name) for name in _array(classifier["classes_"])]
        genes = [str(name) for name in _array(classifier["features"])]
        for names in (classes, genes):
            if len(names) < 2 or len(set(names)) < len(names):
                raise ValueError("types or genes of one name, or fewer than two")
        n_rows = 1 if len(classes) == 2 else len(classes)  # of two, the second alone is kept
        coefficients = _numbers(classifier["coef_"], (n_rows, len(genes)), "coef_")
        bias = _numbers(classifier["intercept_"], (n_rows,), "intercept_")
        if n_rows == 1:
            coefficients, bias = np.vstack([-coefficients, coefficients]), np.hstack([-bias, bias])
        mean = np.zeros(len(genes))
        if scaler["with_mean"]:
            mean = _numbers(scaler["mean_"], (len(genes),), "mean_")
        scale = _numbers(scaler["scale_"], (len(genes),), "scale_")
        if not (scale > 0).all():
            raise ValueError("scale_ is not above 0")
        written_with = str(classifier.get("_sklearn_version", "an unknown version"))
        tensors = {"mean": mean, "scale": scale, "head.weight": coefficients, "head.bias": bias}
    except (AttributeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
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

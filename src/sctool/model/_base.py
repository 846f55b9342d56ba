"""Base classes of all models: data registration, gene matching, training and prediction.

Only this file and ``_train.py`` use internals of scvi-tools.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LabelsWithUnlabeledObsField, LayerField
from scvi.model.base import BaseModelClass
from torch import Tensor, nn

from sctool import _data
from sctool._batches import Cells
from sctool._checks import Count, Positive, Whole, check, check_dict, check_fields
from sctool._data import Features, TrainingData
from sctool._docs import docs
from sctool._progress import progress
from sctool._sets import Calibration, Hierarchy
from sctool._train import TRAINER_ARGUMENTS, TrainOptions, refuse_arguments
from sctool._umap import ReferenceMap
from sctool.model import _saving

logger = logging.getLogger("sctool")

LABELS_COLUMN, BATCH_COLUMN = "_sctool_labels", "_sctool_batch"
#: Cells per forward pass.
BATCH_SIZE = 2048
#: Number of cells above which there is a progress bar.
MANY = 20_000


@dataclass(frozen=True)
class Prediction:
    """Predictions of a model.

    Attributes
    ----------
    proba
        Probability of each type, (n_cells, n_names) float32; rows sum to 1.
    latent
        (n_cells, n_latent) float32: the encoder's embedding, or logits if there is no encoder.
    unseen
        Cells that express no gene of the model, (n_cells,) bool: nothing can be said about them.
    audit
        Notes on what was found and repaired in the input.
    novelty
        Probability that a cell is novel, (n_cells,) float32, of models that predict it apart from
        the types.
    """

    proba: np.ndarray
    latent: np.ndarray
    unseen: np.ndarray
    audit: list[str]
    novelty: np.ndarray | None = None

    def expand(self, kept: np.ndarray) -> Prediction:
        """The prediction for all cells, given a mask (n_cells,) of those it was made for."""
        return replace(
            self,
            proba=expand(self.proba, kept),
            latent=expand(self.latent, kept),
            unseen=expand(self.unseen, kept, True),
            novelty=None if self.novelty is None else expand(self.novelty, kept),
        )


def expand(values: np.ndarray, kept: np.ndarray, missing: float = 0) -> np.ndarray:
    """Place the values of some cells, given by a mask, among all cells, (n_cells, ...)."""
    if kept.all():
        return values
    out = np.full((len(kept), *values.shape[1:]), missing, dtype=values.dtype)
    out[kept] = values
    return out


#: What a model gives for some cells, as arrays, and which of them express no gene of it.
Part = tuple[tuple[np.ndarray, ...], np.ndarray]


def _counted(parts: Iterable[Part], bar: Any) -> Iterator[Part]:
    """Yield what is predicted for some cells, and advance a bar once it was used."""
    for part in parts:
        yield part
        bar.update(len(part[1]))


def _predict_rows(given: tuple[CellModel, _data.Reader], start: int, rows: Any) -> Part:
    """Predict for some rows of a matrix, in a process that has no more of it."""
    model, reader = given
    chunks = reader.of(rows, start)
    parts = [part for x in chunks for part in model._parts(Cells(x, {}, reader.fill))]
    outputs, unseen = zip(*parts, strict=True)
    return tuple(map(np.concatenate, zip(*outputs, strict=True))), np.concatenate(unseen)


@dataclass(frozen=True)
class Settings:
    """Hyperparameters common to all models.

    The types of the fields say what they may be; anything else is refused (ValueError).

    Parameters
    ----------
    n_top_genes
        Number of highly variable genes used as input, selected on the training cells; None uses
        all genes expressed in any training cell.
    target_sum
        Total to which each cell is normalised before log1p: 1e4 for CP10k, 1e6 for CPM. None uses
        the median total of the training cells if they are counts, else 1e4.
    """

    n_top_genes: Count | None = 2000
    target_sum: Positive | None = 1e4

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """Hyperparameters common to all models trained in minibatches.

    Parameters
    ----------
    lr
        Learning rate of the optimiser.
    batch_size
        Minibatch size, separately for labelled and for unlabelled cells.
    max_epochs
        Passes over the cells (over the larger of the labelled and unlabelled sets if the model
        uses both). None: as many as give ``min_steps`` steps, but at least ``min_epochs``.
    min_steps, min_epochs
        See ``max_epochs``.
    """

    lr: Positive = 1e-3
    batch_size: Count = 256
    max_epochs: Count | None = None
    min_steps: Whole = 400
    min_epochs: Count = 1


def change_settings(settings: Any, changes: dict[str, Any], owner: str) -> Any:
    """Copy a settings dataclass with some fields changed; raise TypeError for unknown names."""
    unknown = sorted(set(changes) - {f.name for f in fields(settings)})
    if unknown:
        known = sorted(f.name for f in fields(settings))
        raise TypeError(f"{owner} has no settings {unknown!r}; it has {known!r}.")
    return replace(settings, **changes)


class CellModel(BaseModelClass):
    """Base class of all models: presets, gene matching, training, prediction and saving.

    Subclasses set :attr:`PRESETS` and implement ``setup_anndata``, :meth:`_registered_data`,
    :meth:`_build`, :meth:`_train`, :attr:`names_`, :meth:`_outputs` and :meth:`_set_outputs`.
    """

    #: Settings of each preset; "default" is the one that we recommend.
    PRESETS: ClassVar[dict[str, Any]]
    #: Arguments of scvi-tools' ``Trainer`` that ``train`` accepts; empty for models that are not
    #: trained in minibatches.
    TRAINER_ARGUMENTS: ClassVar[list[str]] = TRAINER_ARGUMENTS

    features_: Features
    settings_: Any
    module: Any
    audit_: list[str]
    #: The reference on a map, if :func:`sctool.tl.project_umap` has made one.
    map_: ReferenceMap | None = None
    _adata: AnnData | None
    _adata_manager: Any
    _cells: Cells | None

    def __init__(
        self,
        adata: AnnData | TrainingData,
        preset: str,
        ignore_case: bool,
        settings: dict[str, Any],
    ):
        if isinstance(adata, TrainingData):
            # assembled by sctool itself, without registering an AnnData
            super().__init__(registry={"setup_args": None, "field_registries": {}})
        else:
            super().__init__(adata)
        self.preset_ = preset
        self.settings_ = self._resolve(preset, settings)
        data = adata
        if not isinstance(data, TrainingData):
            data = self._registered_data(ignore_case)
            if n := int((np.asarray(data.x.sum(axis=1)).ravel() == 0).sum()):
                raise ValueError(
                    f"{n} cells of adata express no gene. Remove them first, for example with "
                    "sc.pp.filter_cells(adata, min_genes=1)."
                )
        self.features_, x, fill, notes = self._fit_features(data)
        self.audit_ = data.audit + notes
        self._cells = Cells(x, self._arrays(data), fill)
        self._take_outputs(data)
        self._build()

    @classmethod
    def _resolve(cls, preset: str, changes: dict[str, Any]) -> Any:
        if not isinstance(preset, str) or preset not in cls.PRESETS:
            raise ValueError(
                f"preset={preset!r} is unknown; {cls.__name__} has {sorted(cls.PRESETS)!r}."
            )
        return change_settings(cls.PRESETS[preset], changes, cls.__name__)

    def _registered_data(self, ignore_case: bool) -> TrainingData:
        """Read the cells of the registered AnnData."""
        raise NotImplementedError

    def _fit_features(
        self, data: TrainingData
    ) -> tuple[Features, sp.csr_matrix, np.ndarray | None, list[str]]:
        """Features, inputs of the training cells, the fill added to each, and audit notes."""
        features, x = Features.fit(data, self.settings_.n_top_genes, self.settings_.target_sum)
        return features, x, None, []

    def _arrays(self, data: TrainingData) -> dict[str, np.ndarray]:
        """Arrays of the training cells that minibatches contain, each (n_cells,)."""
        raise NotImplementedError

    def _take_outputs(self, data: TrainingData) -> None:
        """Set the names of the outputs, before the network is built."""
        raise NotImplementedError

    def _build(self) -> None:
        """Build the network ``module``."""
        raise NotImplementedError

    # -- cells ---------------------------------------------------------------------------------

    def _training_cells(self) -> Cells:
        if self._cells is None:
            raise RuntimeError(
                "This model has no training cells (it was loaded, or returned by a tool): pass "
                "adata."
            )
        return self._cells

    def _layer(self) -> str | None:
        return (self.registry["setup_args"] or {}).get("layer")

    def _read(
        self, adata: AnnData | None, layer: str | None, indices: np.ndarray | None = None
    ) -> tuple[Iterator[Cells], list[str]]:
        """Read inputs in chunks, of ``adata`` or of (some of) the training cells.

        Returns
        -------
        The chunks, and the audit, which is complete once all chunks are read.
        """
        if adata is None:
            cells = self._training_cells()
            x = cells.x if indices is None else cells.x[indices]
            return iter([Cells(x, {}, cells.fill)]), list(self.audit_)
        features = self.features_
        expression, audit = _data.find_query(adata, layer, features.genes, features.ignore_case)
        chunks, fill, notes = self.features_.transform(expression)
        notes[:0] = audit  # in place: reading the chunks appends to it
        return (Cells(x, {}, fill) for x in chunks), notes

    def _release(self) -> None:
        """Drop the training cells, which scvi-tools' class-level stores would keep in memory."""
        if self._adata_manager is not None:
            self._setup_adata_manager_store.pop(self._adata_manager.adata_uuid, None)
        self._per_instance_manager_store.pop(self.id, None)
        self._drop_cells()

    def _drop_cells(self) -> None:
        """Drop all references of this object to the training cells."""
        self._adata = self._adata_manager = self._cells = None
        self.trainer = None

    def _to_send(self) -> Self:
        """A copy that predicts in another process, on its CPU."""
        other = copy.copy(self)
        other._drop_cells()
        other.module = copy.deepcopy(self.module).cpu()
        return other

    # -- training ------------------------------------------------------------------------------

    @docs.dedent
    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        enable_progress_bar: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model on its registered cells.

        Parameters
        ----------
        %(train)s

        Raises
        ------
        %(train_raises)s
        """
        if self._cells is None or not self._cells.arrays:
            raise RuntimeError("A loaded model has no labelled cells: set up and train a new one.")
        self.settings_ = self._for_training(self.settings_, max_epochs, batch_size, plan_kwargs)
        enable_progress_bar = check("enable_progress_bar", enable_progress_bar, bool)
        if hasattr(self.module, "settings"):
            self.module.settings = self.settings_
        why = "" if self.TRAINER_ARGUMENTS else ": this model is not trained in minibatches"
        refuse_arguments(list(trainer_kwargs), self.TRAINER_ARGUMENTS, why)
        trainer = {"accelerator": accelerator, "devices": devices, **trainer_kwargs}
        self.map_ = None  # it would be of another embedding
        self._train(TrainOptions(max_epochs, enable_progress_bar, trainer))
        self.module.eval()
        self.is_trained_ = True

    @classmethod
    def _for_training(
        cls,
        settings: Any,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> Any:
        """Settings with the changes that :meth:`train` is asked for, all of which are checked."""
        check("max_epochs", max_epochs, Count | None)
        check("batch_size", batch_size, Count | None)
        changes = check_dict("plan_kwargs", plan_kwargs)
        if batch_size is not None and hasattr(settings, "batch_size"):
            changes["batch_size"] = batch_size
        return change_settings(settings, changes, cls.__name__)

    def _train(self, options: TrainOptions) -> None:
        raise NotImplementedError

    # -- prediction ----------------------------------------------------------------------------

    @property
    def names_(self) -> list[str]:
        """Names of the outputs, in order."""
        raise NotImplementedError

    def _forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Probabilities (n_cells, n_names) and embedding for inputs (n_cells, n_genes).

        Third, the novelty (n_cells,), of models that predict it apart from the types.
        """
        logits, z = self.module(x)
        return logits.softmax(dim=1), z

    def _forward_batch(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """As :meth:`_forward`, of a minibatch."""
        return self._forward(batch["x"])

    def _forward_cells(self, cells: Cells) -> Iterator[tuple[np.ndarray, ...]]:
        """The output of :meth:`_forward`, in batches of equal size and fixed order."""
        self.module.eval()
        device = next(self.module.parameters()).device
        size = self._prediction_batch_size()
        for batch in np.array_split(np.arange(len(cells)), -(-len(cells) // size)):
            with torch.inference_mode():
                part = cells[batch[0] : batch[-1] + 1]
                outputs = self._forward_batch({k: v.to(device) for k, v in part.items()})
            yield tuple(output.cpu().numpy() for output in outputs)

    def _prediction_batch_size(self) -> int:
        return BATCH_SIZE

    def _parts(self, cells: Cells) -> Iterator[Part]:
        """Outputs for the cells, in batches, and which express none of the inputs."""
        done = 0
        for outputs in self._forward_cells(cells):
            begin, done = done, done + len(outputs[0])
            yield outputs, cells.unseen[begin:done]

    @docs.dedent
    def predict_cells(
        self,
        adata: AnnData | None = None,
        layer: str | None = None,
        indices: np.ndarray | None = None,
        enable_progress_bar: bool = True,
    ) -> Prediction:
        """Predict probabilities and embedding in a single pass over the cells.

        Parameters
        ----------
        %(any_adata)s
        indices
            Positions of the training cells to use if ``adata`` is None; default all.
        enable_progress_bar
            Show a bar over the cells of ``adata``, with the time left, if they are many.

        Raises
        ------
        RuntimeError
            The model is not trained, or ``adata`` is None and the model has no training cells.
        ValueError
            Fewer than half of the model's genes are found, or no values are usable.
        """
        self._check_if_trained(warn=False, message="The model is not trained: call train() first.")
        if adata is None:
            [[cells], notes] = self._read(None, None, indices)
            return self._predict(cells, notes)
        features = self.features_
        expression, audit = _data.find_query(adata, layer, features.genes, features.ignore_case)
        reader, notes = features.reader(expression)
        client = _data.client_of(expression.matrix)
        parts: Iterable[Part]
        if client is None:
            chunks = (Cells(x, {}, reader.fill) for x in reader.ahead())
            parts = itertools.chain.from_iterable(map(self._parts, chunks))
        else:
            given = self._to_send(), reader.of(None)
            parts = _data.map_rows(client, expression.matrix, _predict_rows, given)
        n_cells = expression.n_cells
        shown = enable_progress_bar and n_cells > MANY
        with progress(desc="annotating", total=n_cells, unit="cell", enabled=shown) as bar:
            return self._collect(_counted(parts, bar), audit + notes, n_cells)

    def _predict(self, cells: Cells, audit: list[str]) -> Prediction:
        """Predict for cells that are in memory."""
        return self._collect(self._parts(cells), audit, len(cells))

    def _collect(self, parts: Iterable[Part], audit: list[str], n_cells: int) -> Prediction:
        """Put together what was predicted for parts of the cells, in order."""
        outputs: list[np.ndarray] = []
        empty = np.empty(n_cells, dtype=bool)
        done = 0
        for batch, unseen in parts:
            if not outputs:  # not a list of parts, whose concatenation would double them
                outputs = [np.empty((n_cells, *part.shape[1:]), part.dtype) for part in batch]
            place = slice(done, done + len(unseen))
            for whole, part in zip((*outputs, empty), (*batch, unseen), strict=True):
                whole[place] = part
            done = place.stop
        if n := int(empty.sum()):
            note = f"cells: {n} express none of the model's genes and were not annotated"
            logger.warning("%s.", note)
            audit.append(note)
        proba, latent, *novelty = outputs
        return Prediction(proba, latent, empty, audit, *novelty)

    @docs.dedent
    def predict(
        self, adata: AnnData | None = None, soft: bool = False, layer: str | None = None
    ) -> np.ndarray | pd.DataFrame:
        """Predict the most probable type of each cell, or with ``soft=True`` all probabilities.

        Parameters
        ----------
        %(any_adata)s
        soft
            Return probabilities.

        Returns
        -------
        Names, (n_cells,) of str; or a DataFrame (n_cells, n_names) whose rows sum to 1.
        """
        proba = self.predict_cells(adata, layer).proba
        if soft:
            index = (self.adata if adata is None else adata).obs_names
            return pd.DataFrame(proba, index=index, columns=pd.Index(self.names_))
        return np.array(self.names_, dtype=object)[proba.argmax(axis=1)]

    @docs.dedent
    def get_latent_representation(
        self, adata: AnnData | None = None, layer: str | None = None
    ) -> np.ndarray:
        """Return the embedding, (n_cells, n_latent) float32; logits if there is no encoder.

        Parameters
        ----------
        %(any_adata)s
        """
        return self.predict_cells(adata, layer).latent

    # -- saving --------------------------------------------------------------------------------

    def save(self, dir_path: str | Path, overwrite: bool = False) -> None:  # type: ignore[override]
        """Write ``model.json`` and ``weights.pt`` (tensors only) to a directory.

        The training cells are not saved, but with a map (:func:`sctool.tl.project_umap`) the
        embedding of those that are on it. The files can be loaded with other versions of Python
        and of the dependencies.

        Raises
        ------
        FileExistsError
            The directory exists and ``overwrite`` is False.
        RuntimeError
            The model is not trained.
        """
        self._check_if_trained(warn=False, message="The model is not trained: call train() first.")
        _saving.save(self, dir_path, overwrite)

    def _outputs(self) -> dict[str, Any]:
        """JSON values that describe the outputs; :meth:`_set_outputs` restores them."""
        raise NotImplementedError

    def _set_outputs(self, state: dict[str, Any]) -> None:
        """Restore the values of :meth:`_outputs`, before the network is built."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        """Tensors to save besides the module's; :meth:`_set_tensors` restores them."""
        return {}

    def _set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors of :meth:`_tensors`; an earlier version may have saved none."""

    @classmethod
    def _restore(cls, state: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A model without cells, of what :func:`sctool.model._saving.read` returns."""
        model = cls.__new__(cls)
        BaseModelClass.__init__(model, registry=state["registry"])
        model._cells = None
        _saving.restore(model, state, tensors)
        return model

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | None = None) -> Self:  # type: ignore[override]
        """Load a saved model.

        Parameters
        ----------
        dir_path
            Directory written by :meth:`save`.
        adata
            Default cells for :meth:`predict`; read once and not modified.

        Raises
        ------
        FileNotFoundError
            The directory contains no saved model.
        ValueError
            The model is of another class or was written by a newer version, or the files contain
            more than plain tensors (such as a pickle).
        """
        state, tensors = _saving.read(dir_path)
        if state["model"] != cls.__name__:
            raise ValueError(
                f"{str(dir_path)!r} contains a {state['model']}, not a {cls.__name__}: load it "
                f"with sctool.model.load or sctool.model.{state['model']}.load."
            )
        model = cls._restore(state, tensors)
        if adata is not None:
            chunks, notes = model._read(adata, model._layer())
            parts = list(chunks)
            model._cells = Cells(sp.vstack([p.x for p in parts], format="csr"), {}, parts[0].fill)
            model._adata, model.audit_ = adata, model.audit_ + notes
        return model


@docs.dedent
class AnnotationModel(CellModel):
    """Base class of models that assign cell types, from log1p CP10k of selected genes.

    Subclasses set :attr:`PRESETS` and implement :meth:`_make_module` and :meth:`_train`. Their
    module maps inputs (n_cells, n_genes) to ``(logits, latent)``.

    Parameters
    ----------
    %(adata)s
    preset
        Name of the preset.
    %(ignore_case)s
    **settings
        Changes to the preset.
    """

    #: Whether the unlabelled cells to be annotated are used in training.
    transductive: ClassVar[bool] = False

    #: Novel types found in training, by size: "novel_1", ...
    novel_classes_: list[str]
    #: Their number "n" if it was estimated, and the interval from "low" to "high".
    n_novel_: dict[str, int] | None = None
    #: Held-out labelled cells, for prediction sets, and a tree of the known types, for safe names,
    #: of models that have them.
    calibration_: Calibration | None = None
    hierarchy_: Hierarchy | None = None
    #: For known types of the query, the share of their cells found novel if they are hidden.
    sensitivity_: Mapping[str, float] = MappingProxyType({})
    #: Type codes by group of the unlabelled cells, in order, of models that group them.
    names_by_group_: np.ndarray | None = None
    #: Cell Ontology id of each type, where one is known.
    terms_: Mapping[str, str] = MappingProxyType({})
    #: Share of each known type among the labelled cells, as they are weighted, if it is known.
    class_shares_: list[float] | None = None

    def __init__(
        self,
        adata: AnnData,
        preset: str = "default",
        ignore_case: bool = False,
        **settings: Any,
    ):
        super().__init__(adata, preset, ignore_case, settings)

    def _registered_data(self, ignore_case: bool) -> TrainingData:
        adata, setup = self.adata, self.registry["setup_args"]
        data = _data.read_cells(adata, setup["layer"], "training data", ignore_case)
        column = adata.obs[LABELS_COLUMN]
        labels = _data.clean_labels(column.where(column != setup["unlabeled_category"]))
        if len(labels.categories) < 2:
            raise ValueError(
                f"At least 2 types must be labelled; found {list(labels.categories)!r}."
            )
        data.labels = labels
        if setup["batch_key"] is None:
            data.domain = (labels.codes < 0).astype(np.int64)
        else:
            data.domain = np.unique(adata.obs[BATCH_COLUMN], return_inverse=True)[1]
        data.colors = _data.palette(adata, setup["labels_key"])
        return data

    def _arrays(self, data: TrainingData) -> dict[str, np.ndarray]:
        label, domain = data.labels.codes, data.domain
        return {"label": label.astype(np.int64), "domain": domain.astype(np.int64)}

    def _take_outputs(self, data: TrainingData) -> None:
        self.classes_ = [str(name) for name in data.labels.categories]
        codes = data.labels.codes
        n = np.bincount(codes[codes >= 0], minlength=len(self.classes_))
        self.class_shares_ = (n / n.sum()).tolist()
        self.novel_classes_ = []
        self.class_colors_ = data.colors
        self.n_domains_ = int(data.domain.max()) + 1

    @classmethod
    def _settings_for_novel(cls, novel: str | int, preset: str = "default") -> dict[str, Any]:
        """Changes to a preset that implement ``novel`` ("auto", or a number of types)."""
        if novel not in ("auto", 0):
            raise ValueError(
                f"novel={novel!r}: {cls.__name__} cannot group novel types; pass 'auto' or 0."
            )
        return {}

    # -- network -------------------------------------------------------------------------------

    @property
    def names_(self) -> list[str]:
        """Names of the outputs, in order: known types, then novel types."""
        return [*self.classes_, *self.novel_classes_]

    def _name_novel(self, n: int) -> None:
        """Name ``n`` novel types, avoiding the names of known types."""
        free = (name for i in itertools.count(1) if (name := f"novel_{i}") not in self.classes_)
        self.novel_classes_ = list(itertools.islice(free, n))

    def _build(self) -> None:
        self.module = self._make_module(
            len(self.features_.selected), len(self.names_), self.n_domains_
        )
        self._model_summary_string = (
            f"{type(self).__name__} with {len(self.classes_)} types, "
            f"{len(self.features_.selected)} genes, preset {self.preset_!r}"
        )

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        raise NotImplementedError

    def _outputs(self) -> dict[str, Any]:
        return {
            "classes": self.classes_,
            "class_colors": self.class_colors_,
            "class_shares": self.class_shares_,
            "novel_classes": self.novel_classes_,
            "n_domains": self.n_domains_,
            "terms": dict(self.terms_),
        }

    def _set_outputs(self, state: dict[str, Any]) -> None:
        self.classes_, self.class_colors_ = state["classes"], state["class_colors"]
        self.class_shares_ = state.get("class_shares")
        self.novel_classes_ = state.get("novel_classes", [])
        self.n_domains_ = state["n_domains"]
        self.terms_ = state.get("terms", {})

    # -- prediction ----------------------------------------------------------------------------

    @docs.dedent
    def novel_score(self, adata: AnnData | None = None, layer: str | None = None) -> np.ndarray:
        """Return the novelty score of each cell, (n_cells,) in [0, 1].

        The joint probability of the novel types; 1 - highest probability if there are none. Of
        "auto", the probability that the search for novel types gives.

        Parameters
        ----------
        %(any_adata)s
        """
        return self._novel_score(self.predict_cells(adata, layer))

    @docs.dedent
    def is_novel(self, adata: AnnData | None = None, layer: str | None = None) -> np.ndarray | None:
        """Flag novel cells, (n_cells,) bool; None if the model does not detect them.

        Parameters
        ----------
        %(any_adata)s
        """
        return self._is_novel(self.predict_cells(adata, layer))

    def _novel_score(self, prediction: Prediction) -> np.ndarray:
        if self.novel_classes_:
            return prediction.proba[:, len(self.classes_) :].sum(axis=1)
        return 1 - prediction.proba.max(axis=1)

    def _is_novel(self, prediction: Prediction) -> np.ndarray | None:
        return None

    def _inputs(self, adata: AnnData, layer: str | None = None) -> tuple[Cells, np.ndarray]:
        """Inputs of the network for ``adata``, for attribution.

        Returns
        -------
        The cells, (n_cells, n_genes) log1p CP10k; and the position of each of ``adata``'s genes
        among the inputs, -1 for genes that the model does not use.
        """
        parts = list(self._read(adata, layer)[0])
        x = sp.vstack([part.x for part in parts], format="csr")
        return Cells(x, {}, parts[0].fill), self.features_.positions(adata.var)

    def _note_reuse(self, novel: str | int) -> list[str]:
        """Audit notes for a trained model that annotates new cells."""
        self._settings_for_novel(novel)
        notes = [f"model: a previously trained {type(self).__name__}; nothing was trained"]
        if self.transductive:
            notes[0] += ", so it has not adapted to these cells"
        if self.novel_classes_:
            notes.append(
                "novel: cells may be assigned to the novel types found in training "
                f"({self.novel_classes_!r}); no new type can be found without training"
            )
        return notes

    # -- registration --------------------------------------------------------------------------

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        labels_key: str,
        unlabeled_category: str = "Unknown",
        batch_key: str | None = None,
        layer: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register an AnnData with labelled and unlabelled cells.

        Parameters
        ----------
        adata
            Counts, linear or log1p values in ``X`` or ``layer``. Not a view. As with every
            scvi-tools model, columns (here ``_sctool_*`` and ``_scvi_*``) are added to ``obs``
            and keys to ``uns``; existing columns are not changed.
        labels_key
            Column of ``obs`` with the types, of any dtype; missing values are unlabelled.
        unlabeled_category
            Value of unlabelled cells in that column.
        batch_key
            Column of ``obs`` with the domains for adversarial training. Default: labelled and
            unlabelled cells.
        layer
            Layer with the values.

        Raises
        ------
        KeyError
            A column or the layer does not exist.
        ValueError
            ``adata`` is a view.
        """
        for name, key in (("labels_key", labels_key), ("batch_key", batch_key)):
            if key is not None and key not in adata.obs:
                raise KeyError(
                    f"{name}={key!r} is not in adata.obs; found {list(adata.obs.columns)!r}."
                )
        check_registrable(adata, layer)
        setup_method_args = cls._get_setup_method_args(
            cls=cls,
            adata=adata,
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
            batch_key=batch_key,
            layer=layer,
        )
        labels = _data.clean_labels(adata.obs[labels_key])
        if unlabeled_category not in labels.categories:
            labels = labels.add_categories([unlabeled_category])
        column = pd.Series(labels, index=adata.obs_names).fillna(unlabeled_category)
        adata.obs[LABELS_COLUMN] = column
        batch = "0" if batch_key is None else _data.batch_names(adata.obs[batch_key])
        adata.obs[BATCH_COLUMN] = pd.Categorical(np.broadcast_to(batch, adata.n_obs))
        manager = AnnDataManager(
            fields=[
                LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
                LabelsWithUnlabeledObsField(
                    REGISTRY_KEYS.LABELS_KEY, LABELS_COLUMN, unlabeled_category
                ),
                CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, BATCH_COLUMN),
            ],
            setup_method_args=setup_method_args,
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)


class OpenWorldModel(AnnotationModel):
    """Base class of models that find novel types among the unlabelled cells.

    The setting ``n_novel`` is their number; None estimates it, 0 disables the search.
    """

    transductive = True

    @classmethod
    def _settings_for_novel(cls, novel: str | int, preset: str = "default") -> dict[str, Any]:
        """Estimate the number for "auto", else use the given one."""
        return {} if novel == "auto" else {"n_novel": int(novel)}

    def _is_novel(self, prediction: Prediction) -> np.ndarray | None:
        """Cells assigned to a novel type."""
        if self.settings_.n_novel == 0:
            return None
        return prediction.proba.argmax(axis=1) >= len(self.classes_)


def check_registrable(adata: AnnData, layer: str | None) -> None:
    """Raise an error for missing layers and for views."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"layer={layer!r} is not in adata.layers; found {[*filter(None, adata.layers)]!r}."
        )
    if adata.is_view:
        raise ValueError("adata is a view, which cannot be registered: pass adata.copy().")

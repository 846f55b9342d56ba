"""What all models share: registration, inputs by gene name, prediction, safe saving.

With ``_train.py`` the only code that touches scvi-tools' internals.
"""

from __future__ import annotations

import itertools
import json
import logging
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
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
from sctool._train import Cells

logger = logging.getLogger("sctool")

FORMAT = 1
LABELS_COLUMN, BATCH_COLUMN = "_sctool_labels", "_sctool_batch"


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("sctool", "scvi-tools", "torch", "anndata", "scanpy", "scikit-learn", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@dataclass(frozen=True)
class Prediction:
    """What a model says of some cells.

    Attributes
    ----------
    proba
        (n_cells, n_names) float32, rows sum to 1: the known types, then the novel groups if the
        model found any.
    latent
        (n_cells, n_latent) float32: the encoder's embedding, or the logits where there is none.
    audit
        What was found and repaired in the input.
    """

    proba: np.ndarray
    latent: np.ndarray
    audit: list[str]


@dataclass(frozen=True)
class Settings:
    """Hyperparameters that every model has; subclasses add theirs.

    Parameters
    ----------
    n_top_genes
        Number of informative genes that the model sees, chosen on the training cells; None for
        every gene that any of them expresses.
    target_sum
        Total that each cell is scaled to before log1p: 1e4 for CP10k, 1e6 for CPM, None for the
        median total of the training cells if they are counts, else 1e4.
    """

    n_top_genes: int | None = 2000
    target_sum: float | None = 1e4


class CellModel(BaseModelClass):
    """What every model has: presets, inputs by gene name, safe saving, release of its cells.

    Subclasses set :attr:`PRESETS`, and implement ``setup_anndata``, ``train``, :meth:`_build`,
    :meth:`_outputs` and :meth:`_set_outputs`.
    """

    #: Name of the preset to its settings; "default" is the best honest one we know.
    PRESETS: ClassVar[dict[str, Any]]

    features_: _data.Features
    audit_: list[str]
    _adata: AnnData | None
    _adata_manager: Any
    _cells: Cells | None

    def __init__(self, adata: AnnData, preset: str, settings: dict[str, Any]):
        super().__init__(adata)
        self.preset_ = preset
        self.settings_ = self._resolve(preset, settings)

    @classmethod
    def _resolve(cls, preset: str, changes: dict[str, Any]) -> Any:
        if preset not in cls.PRESETS:
            raise ValueError(
                f"preset={preset!r} is unknown; {cls.__name__} has {sorted(cls.PRESETS)!r}."
            )
        return change_settings(cls.PRESETS[preset], changes, cls.__name__)

    def _build(self) -> None:
        """Make ``module``, the network."""
        raise NotImplementedError

    # -- cells ---------------------------------------------------------------------------------

    def _training_cells(self) -> Cells:
        if self._cells is None:
            raise RuntimeError("This model holds no cells of its own (it was loaded): pass adata.")
        return self._cells

    def _read(
        self, adata: AnnData | None, layer: str | None, indices: np.ndarray | None = None
    ) -> tuple[Iterator[Cells], list[str]]:
        """Inputs of any cells, or of (some of) the model's own, in chunks.

        Returns
        -------
        The chunks, and an audit, which is complete once they are read.
        """
        if adata is None:
            cells = self._training_cells()
            x = cells.x if indices is None else cells.x[indices]
            return iter([Cells(x, {}, cells.fill)]), list(self.audit_)
        chunks, fill, audit = self.features_.transform(adata, layer)
        return (Cells(x, {}, fill) for x in chunks), audit

    def inputs(self, adata: AnnData, layer: str | None = None) -> tuple[Cells, np.ndarray]:
        """What the network sees of ``adata``, for attribution.

        Returns
        -------
        The cells, (n_cells, n_genes) log1p CP10k; and for each of ``adata``'s genes its position
        among them, -1 for those that the model does not see.
        """
        chunks, fill, _ = self.features_.transform(adata, layer)
        x = sp.vstack(list(chunks), format="csr")
        return Cells(x, {}, fill), self.features_.positions(adata.var)

    def release(self) -> None:
        """Drop the training cells, which scvi-tools' class-level stores otherwise keep alive."""
        if self._adata is not None:
            self._setup_adata_manager_store.pop(self._adata_manager.adata_uuid, None)
        self._per_instance_manager_store.pop(self.id, None)
        self._adata = self._adata_manager = self._cells = None
        self.trainer = None  # it holds the cells that it trained on

    @classmethod
    def forget(cls, adata: AnnData) -> None:
        """Drop what scvi-tools' class-level stores hold of an AnnData, and of models on it."""
        manager = cls._get_most_recent_anndata_manager(adata)
        if manager is None:
            return
        cls._setup_adata_manager_store.pop(manager.adata_uuid, None)
        for name, managers in list(cls._per_instance_manager_store.items()):
            if manager.adata_uuid in managers:
                del cls._per_instance_manager_store[name]

    # -- saving --------------------------------------------------------------------------------

    def save(self, dir_path: str | Path, overwrite: bool = False) -> None:  # type: ignore[override]
        """Write ``model.json`` and ``weights.pt`` (tensors only) into a directory.

        The training cells are not saved. What is saved loads under other versions of Python and
        of the dependencies.

        Raises
        ------
        FileExistsError
            The directory exists and ``overwrite`` is False.
        RuntimeError
            The model is not trained.
        """
        self._check_if_trained(warn=False, message="The model is not trained: call train() first.")
        path = Path(dir_path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{str(path)!r} exists: pass overwrite=True to replace it.")
        path.mkdir(parents=True, exist_ok=True)
        features = self.features_
        state = {
            "format": FORMAT,
            "model": type(self).__name__,
            "versions": versions(),
            "preset": self.preset_,
            "settings": asdict(self.settings_),
            "genes": list(features.genes.index),
            "gene_identifiers": {c: list(features.genes[c]) for c in features.genes},
            "selected": list(features.selected),
            "ignore_case": features.ignore_case,
            "target_sum": features.target_sum,
            "registry": self.registry,
            "audit": self.audit_,
            "attributes": self._attributes(),
            **self._outputs(),
        }
        tensors = {f"module.{k}": v.cpu() for k, v in self.module.state_dict().items()}
        tensors["features.mean"] = torch.from_numpy(features.mean)
        torch.save(tensors, path / "weights.pt")
        with open(path / "model.json", "w", encoding="utf-8") as file:
            json.dump(state, file, default=_plain, ensure_ascii=False, indent=1)

    def _outputs(self) -> dict[str, Any]:
        """JSON values that say what the network puts out; :meth:`_set_outputs` restores them."""
        raise NotImplementedError

    def _set_outputs(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`_outputs` said, before the network is built."""
        raise NotImplementedError

    def _attributes(self) -> dict[str, Any]:
        """Further JSON values to save; restored by :meth:`_set_attributes`."""
        return {}

    def _set_attributes(self, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | None = None) -> Self:  # type: ignore[override]
        """Read a saved model.

        Parameters
        ----------
        dir_path
            What :meth:`save` wrote.
        adata
            Cells for :meth:`predict` to use by default. They are registered in the way the training
            cells were (see :meth:`setup_anndata`) and need the same columns.

        Raises
        ------
        FileNotFoundError
            No model there.
        ValueError
            A model of another class, written by a newer version, or files that hold more than
            plain tensors (such as a pickle).
        """
        state, tensors = read_saved(dir_path)
        if state["model"] != cls.__name__:
            raise ValueError(
                f"{str(dir_path)!r} holds a {state['model']}, not a {cls.__name__}: load it with "
                f"sctool.model.load or sctool.model.{state['model']}.load."
            )
        model = cls.__new__(cls)
        BaseModelClass.__init__(model, registry=state["registry"])
        model.preset_ = state["preset"]
        known = {f.name for f in fields(cls.PRESETS["default"])}
        settings = {k: v for k, v in state["settings"].items() if k in known}
        model.settings_ = replace(cls.PRESETS["default"], **settings)
        model.audit_ = state["audit"]
        model._set_outputs(state)
        model.features_ = _data.Features(
            pd.DataFrame(state["gene_identifiers"], index=pd.Index(state["genes"], dtype=object)),
            pd.Index(state["selected"], dtype=object),
            tensors.pop("features.mean").numpy(),
            state.get("target_sum", model.settings_.target_sum),
            state["ignore_case"],
        )
        model._cells = None
        model._build()
        model.module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items()})
        model.module.eval()
        model._set_attributes(state["attributes"])
        model.is_trained_ = True
        if adata is not None:
            cls.setup_anndata(adata, **state["registry"]["setup_args"])
            model._adata = adata
            model._adata_manager = cls._get_most_recent_anndata_manager(adata, required=True)
            model._register_manager_for_instance(model._adata_manager)
            chunks, fill, notes = model.features_.transform(
                adata, state["registry"]["setup_args"]["layer"]
            )
            model._cells = Cells(sp.vstack(list(chunks), format="csr"), {}, fill)
            model.audit_ = model.audit_ + notes
        return model


class AnnotationModel(CellModel):
    """A model that names cells: a network over log1p CP10k of selected genes.

    Subclasses set :attr:`PRESETS` and implement :meth:`_make_module` and :meth:`train`. Their
    module maps inputs (n_cells, n_genes) to ``(logits, latent)``.
    """

    #: Whether training looks at the unlabelled cells that are to be annotated.
    transductive: ClassVar[bool] = False

    #: Groups of cells of no known type that training found, by size: "novel_1", ...
    novel_classes_: list[str]
    #: If their number was estimated: "n", and the interval from "low" to "high".
    n_novel_: dict[str, int] | None = None

    def __init__(
        self,
        adata: AnnData,
        preset: str = "default",
        ignore_case: bool = False,
        **settings: Any,
    ):
        super().__init__(adata, preset, settings)
        manager = self.adata_manager
        layer = self.registry["setup_args"]["layer"]
        expression, audit = _data.find_expression(adata, layer, "training data")
        mapping = list(manager.get_state_registry(REGISTRY_KEYS.LABELS_KEY)["categorical_mapping"])
        unlabelled = manager.get_state_registry(REGISTRY_KEYS.LABELS_KEY)["unlabeled_category"]
        codes = np.asarray(self.get_from_registry(adata, REGISTRY_KEYS.LABELS_KEY)).ravel()
        names = pd.Index(
            [name for name in adata.obs[LABELS_COLUMN].cat.categories if name != unlabelled]
        )
        lookup = np.append(names.get_indexer(mapping), -1)  # the unlabelled category becomes -1
        labels = lookup[codes]
        self.classes_ = [str(name) for name in names]
        if len(self.classes_) < 2:
            raise ValueError(f"At least 2 types must be labelled; found {self.classes_!r}.")
        self.novel_classes_ = []
        labels_key = self.registry["setup_args"]["labels_key"]
        self.class_colors_ = _data.colors(adata, labels_key)
        if self.registry["setup_args"]["batch_key"] is None:
            domain = (labels < 0).astype(np.int64)
        else:
            domain = np.asarray(self.get_from_registry(adata, REGISTRY_KEYS.BATCH_KEY)).ravel()
        domain = np.unique(domain, return_inverse=True)[1].ravel()
        self.features_, x, notes = _data.Features.fit(
            expression,
            labels >= 0,
            domain,
            self.settings_.n_top_genes,
            self.settings_.target_sum,
            ignore_case,
        )
        self.audit_ = audit + notes
        self.n_domains_ = int(domain.max()) + 1
        self._cells = Cells(
            x, {"label": labels.astype(np.int64), "domain": domain.astype(np.int64)}
        )
        self._build()

    @classmethod
    def settings_for_novel(cls, novel: str | int, preset: str = "default") -> dict[str, Any]:
        """Changes to a preset that answer to ``novel`` ("auto", or a number of types)."""
        if novel not in ("auto", 0):
            raise ValueError(
                f"novel={novel!r}: {cls.__name__} cannot group novel types; pass 'auto' or 0."
            )
        return {}

    # -- network -------------------------------------------------------------------------------

    @property
    def names_(self) -> list[str]:
        """What a cell may be called, in output order: the known types, then the novel groups."""
        return [*self.classes_, *self.novel_classes_]

    def _name_novel(self, n: int) -> None:
        """Name ``n`` novel groups, none like a known type."""
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
            "novel_classes": self.novel_classes_,
            "n_domains": self.n_domains_,
        }

    def _set_outputs(self, state: dict[str, Any]) -> None:
        self.classes_, self.class_colors_ = state["classes"], state["class_colors"]
        self.novel_classes_ = state.get("novel_classes", [])
        self.n_domains_ = state["n_domains"]

    # -- prediction ----------------------------------------------------------------------------

    @torch.inference_mode()
    def annotate_cells(
        self,
        adata: AnnData | None = None,
        layer: str | None = None,
        indices: np.ndarray | None = None,
        batch_size: int = 2048,
    ) -> Prediction:
        """Probabilities and embedding of cells in one pass.

        Parameters
        ----------
        adata
            Any AnnData: counts, linear or log1p values; genes in any order, matched by name; it
            may be backed, and is not changed. Default: the cells the model was set up with.
        layer
            Where the values are, if not in ``X``.
        indices
            Positions of some of the cells that the model was set up with; default all.
        batch_size
            Cells per forward pass.

        Raises
        ------
        RuntimeError
            The model is not trained, or has no data of its own and was given none.
        ValueError
            Less than half of the model's genes are there, or no usable values.
        """
        self._check_if_trained(warn=False, message="The model is not trained: call train() first.")
        chunks, audit = self._read(adata, layer, indices)
        self.module.eval()
        device = next(self.module.parameters()).device
        proba, latent = [], []
        for cells in chunks:
            for start in range(0, len(cells), batch_size):
                logits, z = self.module(cells[start : start + batch_size]["x"].to(device))
                proba.append(logits.softmax(dim=1).cpu().numpy())
                latent.append(z.cpu().numpy())
        return Prediction(np.concatenate(proba), np.concatenate(latent), audit)

    def predict(
        self, adata: AnnData | None = None, soft: bool = False, layer: str | None = None
    ) -> np.ndarray | pd.DataFrame:
        """Names of the cells' types, or with ``soft=True`` the probability of each.

        Parameters
        ----------
        adata, layer
            As in :meth:`annotate_cells`.
        soft
            Return probabilities.

        Returns
        -------
        Names, (n_cells,) of str; or a DataFrame (n_cells, n_names), rows summing to 1.
        """
        proba = self.annotate_cells(adata, layer).proba
        if soft:
            index = (self.adata if adata is None else adata).obs_names
            return pd.DataFrame(proba, index=index, columns=pd.Index(self.names_))
        return np.array(self.names_, dtype=object)[proba.argmax(axis=1)]

    def get_latent_representation(
        self, adata: AnnData | None = None, layer: str | None = None
    ) -> np.ndarray:
        """Embedding of the cells, (n_cells, n_latent) float32; logits if there is no encoder."""
        return self.annotate_cells(adata, layer).latent

    def novel_score(self, prediction: Prediction) -> np.ndarray:
        """How unlike every known type each cell is, (n_cells,) in [0, 1].

        1 - its highest probability; of a model that found novel groups, their joint probability.
        """
        if self.novel_classes_:
            return prediction.proba[:, len(self.classes_) :].sum(axis=1)
        return 1 - prediction.proba.max(axis=1)

    def is_novel(self, prediction: Prediction) -> np.ndarray | None:
        """Which cells are of no known type, (n_cells,) bool; None if the model cannot say."""
        return None

    def audit_when_reused(self, novel: str | int) -> list[str]:
        """What to say when a trained model annotates cells that it was not trained with."""
        self.settings_for_novel(novel)
        notes = [f"model: a {type(self).__name__} trained before; nothing was trained"]
        if self.transductive:
            notes[0] += ", so it has not adapted to these cells"
        if self.novel_classes_:
            notes.append(
                "novel: cells may fall into the groups that training found "
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
        """Register an AnnData that holds labelled and unlabelled cells.

        Parameters
        ----------
        adata
            Counts, linear or log1p values in ``X`` or ``layer``. Not a view. As with every
            scvi-tools model, columns (here ``_sctool_*`` and ``_scvi_*``) are added to ``obs``
            and keys to ``uns``; the columns that you name are left as they are.
        labels_key
            Column of ``obs`` with the types, of any dtype; missing values mean unlabelled.
        unlabeled_category
            Name that unlabelled cells bear in that column.
        batch_key
            Column of ``obs`` with the domains that an adversary may not tell apart. Default:
            labelled cells against unlabelled ones.
        layer
            Layer with the values.

        Raises
        ------
        KeyError
            A column or the layer is not there.
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
    """A model that looks for novel types among the unlabelled cells, and groups them.

    Its settings hold ``n_novel``: their number; None estimates it, 0 seeks none.
    """

    transductive = True

    @classmethod
    def settings_for_novel(cls, novel: str | int, preset: str = "default") -> dict[str, Any]:
        """Estimated for "auto", else the number given."""
        return {} if novel == "auto" else {"n_novel": int(novel)}

    def is_novel(self, prediction: Prediction) -> np.ndarray | None:
        """Cells that fall into a novel group."""
        if self.settings_.n_novel == 0:
            return None
        return prediction.proba.argmax(axis=1) >= len(self.classes_)


def check_registrable(adata: AnnData, layer: str | None) -> None:
    """Refuse a layer that is not there, and views."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"layer={layer!r} is not in adata.layers; found {[*filter(None, adata.layers)]!r}."
        )
    if adata.is_view:
        raise ValueError("adata is a view, which cannot be registered: pass adata.copy().")


def change_settings(settings: Any, changes: dict[str, Any], owner: str) -> Any:
    """A copy of a settings dataclass with some fields changed; unknown names are refused."""
    unknown = sorted(set(changes) - {f.name for f in fields(settings)})
    if unknown:
        known = sorted(f.name for f in fields(settings))
        raise TypeError(f"{owner} has no settings {unknown!r}; it has {known!r}.")
    return replace(settings, **changes)


def read_saved(dir_path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The two files of a saved model, nothing in them executed."""
    path = Path(dir_path)
    for name in ("model.json", "weights.pt"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"No saved sctool model in {str(path)!r}: {name} is not there.")
    try:
        state = json.loads((path / "model.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path / 'model.json')!r} is not JSON: {error}.") from error
    if not isinstance(state, dict) or not {"format", "model"} <= set(state):
        raise ValueError(f"{str(path / 'model.json')!r} does not describe an sctool model.")
    if state["format"] > FORMAT:
        raise ValueError(
            f"The model in {str(path)!r} has format {state['format']}, this sctool reads up to "
            f"{FORMAT}: update sctool."
        )
    try:
        tensors = torch.load(path / "weights.pt", weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(
            f"{str(path / 'weights.pt')!r} is not a file of plain tensors and was not loaded; do "
            f"not trust where it came from ({type(error).__name__})."
        ) from error
    return state, tensors


def _plain(value: Any) -> Any:
    """Numpy values inside scvi-tools' registry as JSON."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot save {type(value).__name__} as JSON")

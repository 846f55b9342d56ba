"""Adding a method is a file and a line: what follows from its class and its name alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

import anndata as ad
import numpy as np
import pytest
import torch
from synthetic import TYPES, simulate_joint, simulate_sides
from torch import Tensor, nn

import sctool
from sctool._neighbors import group_means
from sctool._train import TrainOptions
from sctool.cli import main
from sctool.model import METHODS, AnnotationModel, Settings, load

# -- the file ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearestMeanSettings(Settings):
    """Hyperparameters of the nearest mean.

    Parameters
    ----------
    sharpness
        What distances are multiplied by.
    """

    sharpness: float = 1.0


class NearestMeanModule(nn.Module):
    """Distances to the mean of each type."""

    def __init__(self, n_input: int, n_classes: int, sharpness: float):
        super().__init__()
        self.sharpness = sharpness
        self.means = nn.Parameter(torch.zeros(n_classes, n_input), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embedding (n_cells, n_classes) of log1p values (n_cells, n_genes)."""
        distances = torch.cdist(x, self.means)
        return -self.sharpness * distances, distances


class NearestMean(AnnotationModel):
    """Cells are of the type whose mean is nearest."""

    PRESETS: ClassVar[dict[str, Any]] = {
        "default": NearestMeanSettings(),
        "sharp": NearestMeanSettings(sharpness=10.0),
    }
    TRAINER_ARGUMENTS: ClassVar[list[str]] = []

    def _make_module(self, n_input: int, n_classes: int, n_domains: int) -> nn.Module:
        return NearestMeanModule(n_input, n_classes, self.settings_.sharpness)

    def _train(self, options: TrainOptions) -> None:
        cells = self._training_cells()
        label = cells.arrays["label"]
        means = group_means(cells.x[np.flatnonzero(label >= 0)], label[label >= 0])
        self.module.means.copy_(torch.from_numpy(means))


# -- the line ------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch) -> str:
    """Register the method; return its name."""
    monkeypatch.setitem(METHODS, "nearest_mean", NearestMean)
    return "nearest_mean"


# -- what follows --------------------------------------------------------------------------------


def right(adata: ad.AnnData) -> float:
    """Share of cells under their true type."""
    return (adata.obs["sctool"].astype(str) == adata.obs["truth"].astype(str)).mean()


def test_annotate_takes_it_by_name(registered, adata, ref):
    sctool.tl.annotate(adata, ref, method=registered)
    assert right(adata) > 0.8
    assert list(adata.uns["sctool"]["classes"]) == TYPES
    assert adata.obsm["X_sctool"].shape == (80, 4)
    params = adata.uns["sctool"]["params"]
    assert (params["method"], params["preset"]) == (registered, "default")
    assert "sctool_novel" not in adata.obs


@pytest.mark.parametrize(
    ("kwargs", "sharpness"),
    [({"preset": "sharp"}, 10.0), ({"sharpness": 3.0}, 3.0)],
    ids=["preset", "setting"],
)
def test_annotate_passes_on_its_presets_and_settings(kwargs, sharpness, registered, adata, ref):
    model = sctool.tl.annotate(
        adata, ref, method=registered, model_kwargs=kwargs, return_model=True
    )
    assert model.settings_ == NearestMeanSettings(sharpness=sharpness)
    assert model.module.sharpness == sharpness


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"model_kwargs": {"no": 1}},
            TypeError,
            r"NearestMean has no settings \['no'\].*sharpness",
        ),
        ({"model_kwargs": {"preset": "no"}}, ValueError, r"NearestMean has \['default', 'sharp'\]"),
        ({"train_kwargs": {"no": 1}}, TypeError, r"no arguments \['no'\]: this model is not"),
        ({"novel": 2}, ValueError, r"NearestMean cannot group novel types"),
    ],
    ids=["setting", "preset", "argument", "novel"],
)
def test_what_it_does_not_take_is_refused(kwargs, error, message, registered, adata, ref):
    with pytest.raises(error, match=message):
        sctool.tl.annotate(adata, ref, method=registered, **kwargs)


@pytest.mark.parametrize("given", ["path", "load", "class"])
def test_it_is_saved_and_loaded(given, registered, adata, ref, tmp_path):
    folder = tmp_path / "model"
    sctool.tl.annotate(adata, ref, method=registered, return_model=True).save(folder)
    again, _ = simulate_sides()
    model = {"path": lambda: folder, "load": lambda: load(folder), "class": lambda: None}[given]()
    sctool.tl.annotate(again, model or NearestMean.load(folder))
    np.testing.assert_array_equal(again.obsm["sctool_proba"], adata.obsm["sctool_proba"])
    assert again.uns["sctool"]["params"]["method"] == registered


def test_the_command_line_lists_and_runs_it(registered, adata, ref, tmp_path, capsys):
    for command in ("annotate", "demo"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert registered in capsys.readouterr().out
    for name, side in (("query", adata), ("ref", ref)):
        side.write_h5ad(tmp_path / f"{name}.h5ad")
    out, folder = tmp_path / "out.h5ad", tmp_path / "model"
    words = ["annotate", tmp_path / "query.h5ad", "--ref", tmp_path / "ref.h5ad", "-o", out]
    words += ["--method", registered, "--save-model", folder]
    assert main([str(word) for word in words]) == 0
    assert right(ad.read_h5ad(out)) > 0.8
    assert type(load(folder)) is NearestMean


def test_an_unknown_method_is_told_of_it(registered, adata, ref):
    with pytest.raises(ValueError, match=rf"known methods: \[.*'{registered}'"):
        sctool.tl.annotate(adata, ref, method="nearest")


def test_a_users_own_anndata_trains_it(adata):
    joint = simulate_joint()
    NearestMean.setup_anndata(joint, "cell_type", "Unknown")
    model = NearestMean(joint)
    model.train()
    assert (model.predict(adata) == adata.obs["truth"].astype(str)).mean() > 0.8


# -- without the line ----------------------------------------------------------------------------


def test_a_model_that_is_not_registered_may_be_the_reference(adata, tmp_path):
    joint = simulate_joint()
    NearestMean.setup_anndata(joint, "cell_type", "Unknown")
    model = NearestMean(joint)
    model.train()
    assert sctool.tl.annotate(adata, model, return_model=True) is model
    assert right(adata) > 0.8
    params = adata.uns["sctool"]["params"]
    assert (params["method"], params["preset"]) == ("NearestMean", "default")
    assert "a previously trained NearestMean; nothing was" in adata.uns["sctool"]["audit"][-1]

    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"contains a 'NearestMean' model.*known models: \["):
        sctool.tl.annotate(adata, tmp_path / "model")
    again, _ = simulate_sides()
    sctool.tl.annotate(again, NearestMean.load(tmp_path / "model"))
    np.testing.assert_array_equal(again.obsm["sctool_proba"], adata.obsm["sctool_proba"])
    with pytest.raises(ValueError, match=r"method='logistic', but ref is a trained NearestMean"):
        sctool.tl.annotate(again, model, method="logistic")

"""Open Problems' protocol, and our component on a triple of its form."""

import tomllib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic import simulate

from sctool_benchmark import openproblems
from sctool_benchmark.openproblems import __main__ as command

FOLDER = Path(openproblems.__file__).parent


@pytest.fixture(scope="module")
def data() -> ad.AnnData:
    """A data set of two batches, in the form of Open Problems."""
    cells = simulate(240)
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 3 == 0, "d2", "d1")
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs.iloc[0, cells.obs.columns.get_loc("cell_type")] = None
    return command.dataset(cells, "made", "cell_type", "donor")


def test_a_data_set_has_what_their_schema_asks_for(data: ad.AnnData) -> None:
    assert data.n_obs == 239  # without the cell that has no label
    assert set(data.layers) == {"counts", "normalized"}
    np.testing.assert_allclose(np.expm1(data.layers["normalized"].toarray()).sum(axis=1), 1e4, 1e-3)
    assert list(data.obs) == ["label", "batch"]
    assert {"feature_id", "feature_name", "hvg", "hvg_score"} <= set(data.var)
    assert data.obsm["X_pca"].shape == (239, command.N_COMPONENTS)
    assert data.uns == {"dataset_id": "made", "normalization_id": "log_cp10k"}


def test_each_batch_is_held_out_in_turn_without_its_labels(data: ad.AnnData) -> None:
    found = list(command.triples(data))
    assert [batch for batch, *_ in found] == ["d1", "d2"]
    for batch, train, test, solution in found:
        assert set(train.obs["batch"]) == {"d1", "d2"} - {batch}
        assert set(test.obs["batch"]) == {batch}
        assert list(test.obs) == ["batch"]
        assert (test.obs_names == solution.obs_names).all()
        assert train.n_obs + test.n_obs == data.n_obs


def test_scores_are_those_of_names_in_truth_and_prediction() -> None:
    found = command.scores(["A", "A", "A", "B"], ["A", "A", "C", "B"])
    assert found["accuracy"] == found["f1_micro"] == 0.75
    assert found["f1_macro"] == pytest.approx((0.8 + 1 + 0) / 3)  # "C" is nobody's name
    assert found["f1_weighted"] == pytest.approx((3 * 0.8 + 1) / 4)


def test_baselines_are_better_than_the_most_common_type(data: ad.AnnData) -> None:
    _, train, test, solution = next(command.triples(data))
    truth = solution.obs["label"].astype(str).tolist()
    common = command.scores(truth, command.METHODS["majority vote"](train, test))
    assert common["accuracy"] == (solution.obs["label"] == train.obs["label"].mode()[0]).mean()
    for name in ("kNN", "logistic regression", "MLP"):
        found = command.scores(truth, command.METHODS[name](train, test))
        assert found["f1_macro"] > common["f1_macro"] + 0.3


def test_our_component_reads_and_writes_their_files(data: ad.AnnData, tmp_path: Path) -> None:
    _, train, test, solution = next(command.triples(data))
    par = {"method": "logistic"}
    for name, part in (("input_train", train), ("input_test", test)):
        par[name] = str(tmp_path / f"{name}.h5ad")
        part.write_h5ad(par[name])
    par["output"] = str(tmp_path / "output.h5ad")
    command.run_component(par, {"name": "sctool_logistic"})
    output = ad.read_h5ad(par["output"])
    assert (output.obs_names == solution.obs_names).all()
    assert set(output.obs["label_pred"]) <= set(train.obs["label"])
    assert (output.obs["label_pred"].astype(str) == solution.obs["label"].astype(str)).mean() > 0.8
    assert output.uns == {
        "dataset_id": "made",
        "normalization_id": "log_cp10k",
        "method_id": "sctool_logistic",
    }


def test_the_configuration_says_what_the_script_takes() -> None:
    config = yaml.safe_load((FOLDER / "config.vsh.yaml").read_text())
    assert config["__merge__"] == "/src/api/comp_method.yaml"
    assert {argument["name"] for argument in config["arguments"]} == {"--method"}
    assert config["resources"] == [{"type": "python_script", "path": "script.py"}]
    project = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text())["project"]
    docker = config["engines"][0]["setup"][0]
    assert docker == {"type": "python", "pypi": project["name"]}


def test_the_command_writes_its_table(
    data: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = simulate(120)
    cells.obs["batch"] = np.where(np.arange(cells.n_obs) % 2, "a", "b")
    monkeypatch.setattr(command, "locate", lambda task: None)
    monkeypatch.setattr(command, "read", lambda task, path: cells)
    words = ["--data", "cellbench", "--methods", "majority vote,kNN", "-o", str(tmp_path)]
    assert command.main(words) == 0
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert runs.groupby("method").size().tolist() == [2, 2]
    table = (tmp_path / "table.md").read_text()
    row = next(line for line in table.splitlines() if "| kNN |" in line)
    mean = runs[runs["method"] == "kNN"]["f1_macro"].mean()
    assert f"{mean:.3f}" in row
    assert "python -m sctool_benchmark.openproblems --data cellbench" in table
    with pytest.raises(SystemExit):
        command.main(["--methods", "nobody", "-o", str(tmp_path)])

"""Models that others trained, compared with labels by the Cell Ontology."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sctool
from sctool._ontology import cell_ontology
from sctool_benchmark._tasks import known_data, published_terms
from sctool_benchmark.pretrained.__main__ import as_markdown, judge, main

FIXTURES = Path(__file__).parents[1] / "fixtures" / "celltypist"
TRUTHS = published_terms()


@pytest.fixture
def cells() -> tuple[ad.AnnData, np.ndarray]:
    """Cells, and the types that the model of the fixture gives to them."""
    with np.load(FIXTURES / "expected.npz") as file:
        adata = ad.AnnData(file["counts"].astype(np.float32), var=pd.DataFrame(index=file["genes"]))
        return adata, file["lr_labels"]


def test_every_label_has_a_term():
    terms = {term for truth in TRUTHS.values() for term in truth.terms.values()}
    assert terms <= set(cell_ontology().labels)
    assert set(TRUTHS) <= set(known_data())
    assert {truth.side for truth in TRUTHS.values()} == {None, "reference"}


def test_cells_are_judged_by_the_ontology(cells):
    adata, found = cells
    # of a T cell, "CD4" is a kind, and "lymphocyte" is more general; of an NK cell nothing fits
    labels = {"x": "CL:0000624", "y": "CL:0000542", "z": "CL:0000233"}
    of_type = {"T cells": "x", "B cells": "y", "NK cells": "z"}
    adata.obs["cell_type"] = [of_type[name] for name in found]
    row, table = judge(adata, "cell_type", labels, str(FIXTURES / "lr.pkl"), {})
    assert (row["right"], row["less specific"], row["wrong"]) == (1 / 3, 1 / 3, 1 / 3)
    assert table.set_index("label")["is"].to_dict() == {
        "x": "less specific",
        "y": "right",
        "z": "wrong",
    }
    assert table["n_cells"].tolist() == [20, 20, 20]
    line = as_markdown(pd.DataFrame([{"data": "mine", "tuned": False, **row}])).splitlines()[2]
    assert line.startswith("| mine | False | lr | 60 | 0.333 | 0.333 | 0.333 |")


def test_what_the_model_refuses_is_said_and_measured(cells):
    adata, _ = cells
    adata.obs["cell_type"] = "x"
    labels = {"x": "CL:0000542"}  # "lymphocyte": which B, NK and T cells are
    row, table = judge(adata[:, :50].copy(), "cell_type", labels, str(FIXTURES / "lr.pkl"), {})
    assert row["refused"] == "Only 50 genes"
    assert (row["right"], table["n_cells"].sum()) == (1, 60)


def test_a_temperature_is_of_the_model_human_alone(tmp_path, capsys):
    path = FIXTURES / "lr.pkl"
    with pytest.raises(SystemExit):
        main(["--model", str(path), "--temperature", "2", "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert f"--temperature 2 is of the model 'human' alone, but {str(path)!r} is a" in said
    assert not (tmp_path / "out").exists()


def test_a_temperature_changes_scores_and_no_type():
    if not sctool.models().loc["human", "available"]:
        pytest.skip("actinn-jax is not installed")
    with np.load(FIXTURES.parent / "human" / "random.npz") as file:
        genes = pd.DataFrame(index=file["genes"])
        adata = ad.AnnData(file["counts"].astype(np.float32), var=genes)
    adata.obs["cell_type"] = "x"

    def judged(term: str) -> tuple[dict, dict]:
        """Rows at two temperatures, of which all else is the same."""
        (one, types), (half, same) = (
            judge(adata, "cell_type", {"x": term}, "human", {}, t) for t in (1.0, 0.5)
        )
        pd.testing.assert_frame_equal(types, same)
        assert one["right"] == half["right"]
        assert half["score"] > one["score"]
        assert half["model"] == "human, temperature 0.5"
        return one, half

    one, half = judged("CL:0000786")  # plasma cells: the model is surer of what is mostly wrong
    assert 0.1 < one["right"] < 0.5
    assert half["log likelihood"] < one["log likelihood"]
    one, half = judged("CL:0000000")  # cells: any name is right
    assert one["right"] == 1
    assert half["log likelihood"] > one["log likelihood"]


def test_the_command_skips_data_that_are_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCTOOL_DATA_DIR", str(tmp_path))
    assert main(["-o", str(tmp_path / "out")]) == 2
    assert "pbmc3k_seurat.h5ad" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

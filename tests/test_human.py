"""The model "human" of the package actinn-jax, read without it, and networks in its format."""

import itertools
import json
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import sctool
from sctool.model import HierarchicalACTINN, load
from sctool.model._actinn import FOLDER, HierarchicalModule, human_folder, read_human

FIXTURES = Path(__file__).parent / "fixtures" / "human"
GENES = [f"ENSG0009{i:07d}" for i in range(800)]  # of no symbol
GROUPS = {"Lymphoid": ["B", "CD4 T", "NK"], "Platelet": ["Platelet"], "Myeloid": ["DC", "Mono"]}
TERMS = {"B": "CL:0000236", "NK": "CL:0000623", "DC": "unmapped"}


def networks() -> dict[str, tuple[list[str], dict[str, np.ndarray]]]:
    """Random networks: names of the outputs, and weights for inputs log2(1 + CP10k)."""
    rng, made = np.random.default_rng(0), {}
    outputs = {"coarse": list(GROUPS)} | {f"fine_{g}": t for g, t in GROUPS.items() if len(t) > 1}
    for i, (name, classes) in enumerate(outputs.items()):
        sizes = [700 + 10 * i, 100, 50, 25, len(classes)]
        weights = {"select_idx": np.sort(rng.choice(len(GENES), sizes[0], replace=False))}
        for j, (n_in, n_out) in enumerate(itertools.pairwise(sizes), 1):
            w = rng.normal(0, 2 / np.sqrt(n_in), (n_in, n_out))
            weights[f"W{j}"] = (w - w.mean(axis=0)).astype(np.float32)
            weights[f"b{j}"] = rng.normal(0, 0.1, n_out).astype(np.float32)
        made[name] = classes, weights
    return made


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package with the files of a small model; return its folder."""
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    for name, (classes, weights) in networks().items():
        np.savez(folder / f"{name}.npz", **weights)
        (folder / f"{name}.json").write_text(json.dumps({"norm_genes": GENES, "classes": classes}))
    single = {g: {"single_label": t[0] if len(t) == 1 else None} for g, t in GROUPS.items()}
    classes = sorted(itertools.chain(*GROUPS.values()))
    manifest = {"classes": classes, "class_to_cl": TERMS, "fine": single}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    teacher = {"citation": "Them 2026", "doi": "10.1/x", "weights": "https://w", "model": "Teacher"}
    about = {"teacher": teacher | {"weights_license": "CC BY 4.0"}}
    (folder / "build_info.json").write_text(json.dumps(about))
    (tmp_path / "actinn_jax-0.3.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: actinn-jax\nVersion: 0.3.1\n"
    (tmp_path / "actinn_jax-0.3.1.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    assert human_folder() == folder
    return folder


def cells(n_genes: int = 700, n: int = 300) -> ad.AnnData:
    """Counts of some of the genes, in another order, and of others."""
    rng = np.random.default_rng(1)
    names = [*rng.permutation(GENES)[:n_genes], *(f"ENSG9{i:010d}" for i in range(20))]
    counts = rng.poisson(rng.lognormal(-1, 2, (n, len(names)))).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=names))


def expected(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Type of each cell and the probability of its group, by the package's own rules."""
    counts = adata.to_df().reindex(columns=GENES, fill_value=0).to_numpy()
    x = np.log2(counts / counts.sum(axis=1, keepdims=True) * 1e4 + 1)

    def proba(name: str) -> np.ndarray:
        _, w = networks()[name]
        h = x[:, w["select_idx"]]
        for i in (1, 2, 3):
            h = np.maximum(h @ w[f"W{i}"] + w[f"b{i}"], 0)
        odds = np.exp(h @ w["W4"] + w["b4"])
        return odds / odds.sum(axis=1, keepdims=True)

    coarse = proba("coarse")
    labels = np.full(len(x), "", dtype=object)
    for i, (group, types) in enumerate(GROUPS.items()):
        here = coarse.argmax(axis=1) == i
        fine = proba(f"fine_{group}").argmax(axis=1) if len(types) > 1 else np.zeros(len(x), int)
        labels[here] = np.array(types, dtype=object)[fine[here]]
    return labels, coarse.max(axis=1)


def test_types_are_those_of_the_best_group_as_in_the_package(package):
    adata = cells()
    labels, _ = expected(adata)
    assert len(set(labels)) == 6, sorted(set(labels))
    sctool.tl.annotate(adata, "human")
    assert (adata.obs["sctool"] == labels).all()
    proba = adata.obsm["sctool_proba"]
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert adata.obsm["X_sctool"].shape == (300, 25)
    terms = adata.obs["sctool_ontology_term_id"]
    assert set(terms[adata.obs["sctool"] == "NK"]) == {"CL:0000623"}
    assert set(terms[adata.obs["sctool"].isin(["DC", "Mono"])]) == {"unknown"}
    assert "sctool_novel" not in adata.obs
    audit = " ".join(adata.uns["sctool"]["audit"])
    assert "Them 2026" in audit
    assert "CC BY 4.0" in audit
    assert "novel: not judged" in audit


def test_another_group_may_have_the_more_probable_type():
    module = HierarchicalModule([1, 1, 0, 1], [[0, 1], [2], [3, 4]], temperature=1.0)
    for network, bias in [
        (module.coarse, [0.5, 0.4, 0.1]),
        (module.fine["0"], [0.6, 0.4]),
        (module.fine["2"], [0.5, 0.5]),
    ]:
        torch.nn.init.zeros_(network.head.weight)
        network.head.bias.data = torch.tensor(bias).log()
    proba = module(torch.zeros(1, 1))[0].exp()[0].detach().numpy()
    # the best type of the best group had 0.3, and the lone type of another 0.4
    np.testing.assert_allclose(proba, [0.4, 0.2, 0.3, 0.05, 0.05], rtol=1e-5)


def test_the_temperature_changes_scores_and_no_type(package):
    adata = cells()
    model = read_human()
    before = model.predict_cells(adata).proba
    model.module.temperature = 0.5
    after = model.predict_cells(adata).proba
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert after.max(axis=1).mean() > before.max(axis=1).mean() + 0.05


def test_it_is_saved_and_explained_as_any_other(package, tmp_path):
    adata, model = cells(), load("human")
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert isinstance(again, HierarchicalACTINN)
    assert (again.predict_cells(adata).proba == model.predict_cells(adata).proba).all()
    assert again.terms_ == {"B": "CL:0000236", "NK": "CL:0000623"}
    assert again.source_["licence"] == "weights CC BY 4.0, files MIT"
    with pytest.raises(ValueError, match=r"Only 4\d\d of the model's 800 genes .* 500 are needed"):
        again.predict(cells(n_genes=450))
    with pytest.raises(RuntimeError, match="trained by others"):
        again.train()
    with pytest.raises(TypeError, match=r"sctool\.model\.load"):
        HierarchicalACTINN(adata)
    with pytest.raises(ValueError, match="nothing is trained"):
        sctool.tl.annotate(adata, model, train_kwargs={"max_epochs": 3})
    with pytest.raises(ValueError, match="cannot group novel types"):
        sctool.tl.annotate(adata, model, novel=3)


def test_another_species_is_refused(package):
    adata = cells()
    adata.var_names = [name.replace("ENSG", "ENSMUSG") for name in adata.var_names]
    with pytest.raises(ValueError, match="'human' is for human cells, .* 'ENSMUSG"):
        sctool.tl.annotate(adata, "human")


def test_a_damaged_package_is_named(package):
    content = (package / "coarse.npz").read_bytes()
    (package / "coarse.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"'human' in .* cannot be read"):
        load("human")
    (package / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"'human' in .* cannot be read .*manifest"):
        load("human")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("sctool.model._actinn.PACKAGE", "no-such-package")
    with pytest.raises(ImportError, match=r"pip install 'sctool-annotate\[human\]'"):
        load("human")
    assert not sctool.models().loc["human", "available"]


# -- the model itself ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def human() -> HierarchicalACTINN:
    try:
        return read_human()
    except ImportError as error:
        pytest.skip(f"the extra 'human' is not installed: {error}")


def test_it_is_what_the_registry_says(human):
    row = sctool.models().loc["human"]
    assert row["n_types"] == len(human.classes_) == len(set(human.classes_))
    assert row["n_genes"] == len(human.features_.selected)
    assert row["available"]
    size = sum(file.stat().st_size for file in human_folder().iterdir()) / 1e6
    assert row["size_mb"] == pytest.approx(size, abs=0.1)
    assert human.terms_["CD14 monocyte"] == "CL:0001054"
    assert len(human.terms_) == 323  # all but "Unassigned"


def test_labels_of_simulated_cells_are_the_packages_own(human):
    with np.load(FIXTURES / "random.npz") as file:
        own = dict(file)
    adata = ad.AnnData(sp.csr_matrix(own["counts"].astype(np.float32)))
    adata.var_names = own["genes"]
    proba = human.predict_cells(adata).proba
    assert len(set(own["labels"])) > 30
    assert (np.array(human.classes_)[proba.argmax(axis=1)] == own["labels"]).all()
    human.module.temperature = 1.0
    logits = human.predict_cells(adata).proba
    human.module.temperature = human.settings_.temperature
    groups = human.module.group.numpy()
    coarse = np.stack([logits[:, groups == i].sum(axis=1) for i in range(140)], axis=1)
    same = np.isclose(coarse, own["coarse"], atol=1e-5).all(axis=1)
    assert same.mean() > 0.8  # all cells but those whose probabilities are exchanged


@pytest.mark.parametrize("name", ["pbmc3k_seurat", "zheng_pbmc_facs"])
def test_labels_of_real_cells_are_the_packages_own(human, name):
    folder = os.environ.get("SCTOOL_DATA_DIR")
    if not folder:
        pytest.skip("SCTOOL_DATA_DIR is not set: no labelled data")
    adata = ad.read_h5ad(Path(folder) / f"{name}.h5ad")
    with np.load(FIXTURES / f"{name}.npz") as file:
        own = file["classes"][file["codes"]]
    # the package knows genes by one name alone, ours by their earlier names too
    known = set(human.features_.selected)
    adata.var_names = [g if g in known else f"other_{i}" for i, g in enumerate(adata.var_names)]
    assert (human.predict(adata) == own).all()


def test_symbols_of_mice_are_refused(human):
    names = [str(name).capitalize() for name in human.features_.selected[:1500]]
    counts = np.random.default_rng(0).poisson(1.0, (20, 1500)).astype(np.float32)
    adata = ad.AnnData(counts, var=pd.DataFrame(index=names))
    with pytest.raises(ValueError, match="are those of another species"):
        sctool.tl.annotate(adata, "human")

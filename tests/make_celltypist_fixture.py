"""Write small models of CellTypist: ``python tests/make_celltypist_fixture.py`` where it is.

Made with CellTypist 1.7.1 and scikit-learn 1.7.2. Into ``fixtures/celltypist``: three models of
simulated cells of 260 genes, by logistic regression, by SGD and of two types alone, and what
CellTypist says of the cells, in ``expected.npz``: labels, and a probability per type. The query
lacks ten of the genes and has others.
"""

from pathlib import Path

import anndata as ad
import celltypist
import numpy as np
import scanpy as sc

FOLDER = Path(__file__).parent / "fixtures" / "celltypist"
TYPES = np.array(["B cells", "NK cells", "T cells"])


def simulate(rng: np.random.Generator, means: np.ndarray, n: int) -> ad.AnnData:
    codes = np.arange(n) % len(means)
    counts = rng.poisson(means[codes] * rng.lognormal(0, 0.4, (n, 1))).astype(np.float32)
    adata = ad.AnnData(counts, obs={"cell_type": TYPES[codes]})
    adata.var_names = [f"GENE{i}" for i in range(adata.n_vars)]
    return adata


def normalized(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def main() -> None:
    rng = np.random.default_rng(0)
    means = rng.lognormal(0, 1, (1, 280)) * rng.lognormal(0, 0.5, (3, 280))
    ref, query = simulate(rng, means, 150)[:, :260].copy(), simulate(rng, means, 60)[:, 10:].copy()
    two = ref[ref.obs["cell_type"] != "T cells"].copy()
    FOLDER.mkdir(parents=True, exist_ok=True)
    expected = {"counts": query.X.astype(np.uint16), "genes": np.array(list(query.var_names))}
    for name, cells, how in [
        ("lr", ref, {"C": 1e-3}),
        ("sgd", ref, {"use_SGD": True, "alpha": 1.0, "random_state": 0}),
        ("two", two, {"C": 1e-3}),
    ]:
        model = celltypist.train(normalized(cells), labels="cell_type", n_jobs=1, **how)
        model.write(str(FOLDER / f"{name}.pkl"))
        found = celltypist.annotate(normalized(query), model=model)
        labels = found.predicted_labels["predicted_labels"].to_numpy()
        expected |= {f"{name}_labels": labels.astype(str)}
        expected |= {f"{name}_proba": found.probability_matrix.to_numpy()}
    np.savez_compressed(FOLDER / "expected.npz", **expected)


if __name__ == "__main__":
    main()

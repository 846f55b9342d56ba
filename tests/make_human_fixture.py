"""Write what actinn-jax says itself: ``python tests/make_human_fixture.py`` where it is installed.

Into ``fixtures/human``: ``random.npz``, simulated counts (n_cells, n_genes) of genes that the model
has and of others, and the labels and probabilities that the package gives to them; and for each of
the data sets of ``SCTOOL_DATA_DIR`` that it can annotate, the labels, by their codes. Their genes
are symbols, which are replaced by Ensembl ids, the only ones that the package knows.
"""

import gzip
import os
from pathlib import Path

import actinn_jax
import anndata as ad
import numpy as np
import scipy.sparse as sp

FOLDER = Path(__file__).parent / "fixtures" / "human"
GENES = Path(__file__).parents[1] / "src" / "sctool" / "tables" / "human_genes.tsv.gz"
DATA = ("pbmc3k_seurat", "zheng_pbmc_facs")


def simulate(genes: list[str]) -> ad.AnnData:
    """Cells of random types, each with some genes that are high."""
    rng = np.random.default_rng(0)
    known = rng.choice(genes, 1500, replace=False)
    names = [*known, *(f"ENSG9{i:010d}" for i in range(50))]
    mean = rng.lognormal(-2.5, 1, len(names))
    rows = [mean * np.where(rng.random(len(names)) < 0.05, 60, 1) for _ in range(120)]
    counts = np.minimum(rng.poisson(rows), 255).astype(np.uint8)
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), var={"names": names})


def main() -> None:
    model = actinn_jax.bundled_reference("panhuman_distill_v1", download=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    adata = simulate(model.coarse.norm_genes)
    adata.var_names = adata.var["names"].to_numpy(dtype=str)
    frame, _ = model.predict_frame(adata)
    np.savez_compressed(
        FOLDER / "random.npz",
        counts=adata.X.toarray().astype(np.uint8),
        genes=adata.var_names.to_numpy().astype(str),
        labels=frame["celltype"].to_numpy().astype(str),
        coarse=model.coarse.predict_proba(adata),
    )
    with gzip.open(GENES, "rt") as file:
        ids = dict(line.split()[::-1] for line in file.readlines()[1:])
    for name in DATA:
        adata = ad.read_h5ad(Path(os.environ["SCTOOL_DATA_DIR"]) / f"{name}.h5ad")
        adata.var_names = [ids.get(symbol, f"none_{symbol}") for symbol in adata.var_names]
        labels = model.predict_frame(adata)[0]["celltype"].to_numpy().astype(str)
        classes, codes = np.unique(labels, return_inverse=True)
        np.savez_compressed(FOLDER / f"{name}.npz", classes=classes, codes=codes.astype(np.uint8))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Run scANVI of scvi-tools, trained on reference and query together.

As its tutorial on label transfer has it: 2,000 genes by ``seurat_v3`` within batches, scVI of two
layers with 30 latent dimensions and the negative binomial, trained for its default number of
epochs, then scANVI for 20 epochs with 100 labelled cells of each type an epoch.
"""

import anndata as ad
import scanpy as sc
import scvi
from _protocol import LABELS, serve


def annotate(reference, query, args):
    """Train on both sides and predict."""
    scvi.settings.seed = args.seed
    query.obs[LABELS] = "Unknown"
    both = ad.concat([reference, query])
    sc.pp.highly_variable_genes(
        both,
        flavor="seurat_v3",
        n_top_genes=min(2000, both.n_vars),
        batch_key="batch",
        subset=True,
    )
    quiet = {"enable_progress_bar": False}
    scvi.model.SCVI.setup_anndata(both, batch_key="batch")
    base = scvi.model.SCVI(both, n_layers=2, n_latent=30, gene_likelihood="nb")
    base.train(**quiet)
    model = scvi.model.SCANVI.from_scvi_model(base, "Unknown", labels_key=LABELS)
    model.train(max_epochs=20, n_samples_per_label=100, **quiet)
    proba = model.predict(soft=True).loc[query.obs_names]
    return {"prediction": proba.idxmax(axis=1), "proba": proba}


if __name__ == "__main__":
    serve(annotate, "scvi-tools")

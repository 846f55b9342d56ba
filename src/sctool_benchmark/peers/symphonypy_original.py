#!/usr/bin/env python3
"""Run symphonypy (Symphony for Python).

As its instructions have it: log1p of counts per 100,000, 2,000 variable genes of the reference,
scaled and capped at 10, 30 principal components, Harmony over the reference's batches where there
are several, nearest neighbours by scikit-learn's defaults. It transfers names alone; the shares of
the five neighbours are taken for probabilities. Its own distance to the reference's clusters
(``per_cell_confidence``) is the novelty score.

``--uncorrected`` takes the query's place among the reference's components as it is, before it is
corrected towards the reference's clusters.
"""

import pandas as pd
import scanpy as sc
import symphonypy as sp
from _protocol import LABELS, log1p, serve
from sklearn.neighbors import KNeighborsClassifier


def annotate(reference, query, args):
    """Embed the reference, map the query onto it, and transfer labels."""
    log1p(reference, 1e5)
    log1p(query, 1e5)
    sc.pp.highly_variable_genes(reference, n_top_genes=min(2000, reference.n_vars))
    reference = reference[:, reference.var["highly_variable"]].copy()
    sc.pp.scale(reference, max_value=10)
    sc.pp.pca(reference, n_comps=30, zero_center=False)
    basis, batches = "X_pca", "batch" if query.obs["batch"].nunique() > 1 else None
    if reference.obs["batch"].nunique() > 1:
        basis = "X_pca_harmony"
        sp.pp.harmony_integrate(reference, key="batch")
    sp.tl.map_embedding(query, reference, key=batches)
    sp.tl.per_cell_confidence(query, reference, ref_basis_adjusted=basis)
    if args.uncorrected:
        basis, placed = "X_pca", query.obsm["X_pca_reference"]
    else:
        placed = query.obsm["X_pca_harmony"]
    # What `transfer_labels_kNN` does, which gives no shares.
    neighbors = KNeighborsClassifier().fit(reference.obsm[basis], reference.obs[LABELS])
    proba = neighbors.predict_proba(placed)
    return {
        "prediction": neighbors.predict(placed),
        "proba": pd.DataFrame(proba, columns=neighbors.classes_),
        "novel_score": query.obs["symphony_per_cell_dist"],
    }


if __name__ == "__main__":
    serve(annotate, "symphonypy", "--uncorrected")

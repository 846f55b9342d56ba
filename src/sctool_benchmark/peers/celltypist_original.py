#!/usr/bin/env python3
"""Run CellTypist, trained on the reference, on a benchmark task, in an environment of its own.

::

    python3.11 -m venv peer && peer/bin/pip install celltypist==1.7.1 'scikit-learn<1.8'
    CELLTYPIST_PYTHON=peer/bin/python python -m sctool_benchmark --suite scarce -o results

scikit-learn 1.8 took away an argument that it passes. Its own defaults: all genes, C of 1, no
majority voting. With ``--majority-voting`` the names are those of its own clusters of the query;
probabilities stay those of the cells. Seconds are its training and prediction.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time
import warnings


def main():
    """Train, predict, and write the predictions as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", help=".h5ad: obs['cell_type'], obs['split']")
    parser.add_argument("output", help="JSON to write")
    parser.add_argument("--majority-voting", action="store_true", help="name clusters, not cells")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import anndata as ad
    import celltypist
    import numpy as np
    import pandas as pd
    import scanpy as sc
    import scipy.sparse as sp

    data = ad.read_h5ad(args.input)
    x = sp.csr_matrix(data.X, dtype=np.float64)
    if not np.array_equal(x.data, np.round(x.data)):
        x.data = np.expm1(x.data)  # it was log1p of something linear
    cells = ad.AnnData(
        x.astype(np.float32),
        obs=pd.DataFrame(index=data.obs_names.astype(str)),
        var=pd.DataFrame(index=data.var_names.astype(str)),
    )
    # What it asks for: log1p of counts per 10,000.
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    is_query = (data.obs["split"].astype(str) == "query").to_numpy()
    ref, query = cells[~is_query].copy(), cells[is_query].copy()
    labels = data.obs["cell_type"].astype(str).to_numpy()[~is_query]

    start = time.perf_counter()
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        model = celltypist.train(ref, labels=labels, n_jobs=1)
        found = celltypist.annotate(query, model=model, majority_voting=args.majority_voting)
    seconds = time.perf_counter() - start

    column = "majority_voting" if args.majority_voting else "predicted_labels"
    proba = found.probability_matrix.to_numpy()
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    answer = {
        "prediction": found.predicted_labels[column].astype(str).tolist(),
        "score": proba.max(axis=1).tolist(),
        "proba": proba.tolist(),
        "classes": [str(name) for name in found.probability_matrix.columns],
        "seconds": seconds,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "versions": {"celltypist": celltypist.__version__},
    }
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()

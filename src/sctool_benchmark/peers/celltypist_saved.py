#!/usr/bin/env python3
"""Run a saved model of CellTypist on a file of cells, in an environment of its own.

``train REF MODEL`` trains on counts with ``obs["cell_type"]``; ``[voting] FILE MODEL RESULT``
annotates counts with ``obs["truth"]`` and writes seconds, memory and accuracy. CellTypist asks for
log1p of counts per 10,000 in memory; reading and normalising are part of the seconds, as they are
for others.
"""

import contextlib
import json
import os
import resource
import sys
import time
import warnings


def main():
    """Train, or predict and write the result as JSON."""
    warnings.filterwarnings("ignore")
    import anndata as ad
    import celltypist
    import scanpy as sc

    def read(path):
        cells = ad.read_h5ad(path)
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        return cells

    words = sys.argv[1:]
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        if words[0] == "train":
            ref = read(words[1])
            labels = ref.obs["cell_type"].astype(str).to_numpy()
            celltypist.train(ref, labels=labels, n_jobs=1).write(words[2])
            return
        voting = words[0] == "voting"
        path, model, result = words[-3:]
        start, cpu = time.perf_counter(), time.process_time()
        cells = read(path)
        found = celltypist.annotate(cells, model=model, majority_voting=voting)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    column = "majority_voting" if voting else "predicted_labels"
    right = found.predicted_labels[column].astype(str) == cells.obs["truth"].astype(str)
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    answer = {
        "seconds": seconds,
        "cpu": cpu,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "accuracy": float(right.mean()),
    }
    with open(result, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()

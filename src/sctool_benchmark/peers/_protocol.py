"""What the scripts of the peers share: the cells that they read, the answer that they write.

It runs in the environment of a peer, next to its script, and so imports only what all of them hold.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time
import warnings
from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

LABELS = "cell_type"


def serve(annotate, package, *switches):
    """Read a task, let a peer annotate the query, and write its answer as JSON.

    Seconds are those of the peer with its normalisation; imports and reading are not counted.

    Parameters
    ----------
    annotate
        Called with the reference, the query and the arguments of the command line; see `read`.
        Returns a dict of ``prediction`` (n_cells,), and either ``proba``, a data frame of
        probabilities with a column for each type, or a ``score`` and a ``novel_score``, or neither.
        Of probabilities the largest is the score, and one minus it the novelty score, unless these
        are given.
    package
        Name of the distribution, whose version is recorded.
    switches
        Switches of the command line, such as ``"--majority-voting"``.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("input", help=".h5ad: counts, obs['cell_type'], obs['split']")
    parser.add_argument("output", help="JSON to write")
    parser.add_argument("--seed", type=int, default=0)
    for switch in switches:
        parser.add_argument(switch, action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    reference, query = read(args.input)
    start = time.perf_counter()
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        found = annotate(reference, query, args)
    answer = {
        "prediction": np.asarray(found["prediction"]).astype(str).tolist(),
        "seconds": time.perf_counter() - start,
        "peak_rss_gb": peak_rss_gb(),
        "versions": {package: version(package)},
    }
    if "proba" in found:
        proba = np.clip(np.asarray(found["proba"], dtype=float), 0, 1)
        answer |= {"proba": proba.tolist(), "classes": [str(name) for name in found["proba"]]}
        answer["score"] = proba.max(axis=1).tolist()
        answer["novel_score"] = (1 - proba.max(axis=1)).tolist()
    for name in {"score", "novel_score"} & set(found):
        answer[name] = np.asarray(found[name], dtype=float).tolist()
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(answer, file)


def read(path):
    """Return reference and query: counts in X (CSR, float32), obs["cell_type"] and obs["batch"].

    Cells of one side that name no batch are of one. What is not counts was log1p of something
    linear, which is given back. The labels of the query are missing.
    """
    cells = ad.read_h5ad(path)
    x = sp.csr_matrix(cells.X, dtype=np.float64)
    if not np.array_equal(x.data, np.round(x.data)):
        x.data = np.expm1(x.data)
    split = cells.obs["split"].astype(str)
    obs = pd.DataFrame({LABELS: cells.obs[LABELS].astype(object), "batch": split})
    if "batch" in cells.obs:
        obs["batch"] += " " + cells.obs["batch"].astype(str)
    obs.index = cells.obs_names.astype(str)
    var = pd.DataFrame(index=cells.var_names.astype(str))
    both = ad.AnnData(x.astype(np.float32), obs=obs, var=var)
    is_query = (split == "query").to_numpy()
    reference, query = both[~is_query].copy(), both[is_query].copy()
    reference.obs[LABELS] = pd.Categorical(reference.obs[LABELS].astype(str))
    del query.obs[LABELS]
    return reference, query


def log1p(cells, target_sum=1e4):
    """Turn counts into log1p of counts per so many, in place."""
    sc.pp.normalize_total(cells, target_sum=target_sum)
    sc.pp.log1p(cells)


def peak_rss_gb():
    """Return the peak memory of this process in GiB; on Linux not that of those that started it."""
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024**2
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

#!/usr/bin/env python3
"""Run the published ``scnym`` package on a benchmark task, in an environment of its own.

The package's files are left as they are. Two names that it expects and that current environments
lack are supplied before it is imported: ``numpy.int``, and of torchvision the one class it uses.
Seconds are its training and its prediction; imports and normalisation are not counted.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import resource
import sys
import tempfile
import time
import types
import warnings


def supply_missing_names():
    """Add ``numpy.int`` and a stand-in for ``torchvision.transforms.Compose``."""
    import numpy

    setattr(numpy, "int", int)

    class Compose:
        def __init__(self, transforms):
            self.steps = tuple(transforms)

        def __call__(self, value):
            for step in self.steps:
                value = step(value)
            return value

    package = types.ModuleType("torchvision")
    transforms = types.ModuleType("torchvision.transforms")
    setattr(transforms, "Compose", Compose)
    setattr(package, "transforms", transforms)
    sys.modules["torchvision"] = package
    sys.modules["torchvision.transforms"] = transforms


def main():
    """Train, predict, and write the predictions as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", help=".h5ad: counts, obs['cell_type'], obs['split']")
    parser.add_argument("output", help="JSON to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100, help="default: its public interface's")
    parser.add_argument("--new-identity", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    supply_missing_names()

    from importlib.metadata import version

    import anndata as ad
    import numpy as np
    import pandas as pd
    import scanpy as sc
    import torch
    from scnym import api, trainer

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    pair = ad.read_h5ad(args.input)
    is_query = (pair.obs["split"].astype(str) == "query").to_numpy()
    labels = np.where(is_query, "Unlabeled", pair.obs["cell_type"].astype(object))
    cells = ad.AnnData(
        pair.X.astype(np.float32),
        obs=pd.DataFrame({"labels": labels}, index=[f"cell{i}" for i in range(pair.n_obs)]),
        var=pd.DataFrame(index=pair.var_names.astype(str)),
    )
    sc.pp.normalize_total(cells, target_sum=1e6)
    sc.pp.log1p(cells)

    config = copy.deepcopy(
        api.CONFIGS["new_identity_discovery" if args.new_identity else "no_new_identity"]
    )
    config["n_epochs"] = args.epochs
    if min(is_query.sum(), int(0.8 * (~is_query).sum())) < config["batch_size"]:
        sys.exit(f"fewer than {config['batch_size']} cells on one side: the package never ends")

    epochs = 0
    validate = trainer.SemiSupervisedTrainer.val_epoch

    def count_epochs(self):
        nonlocal epochs
        epochs += 1
        validate(self)

    trainer.SemiSupervisedTrainer.val_epoch = count_epochs
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sink:
        shared = {"adata": cells, "groupby": "labels", "out_path": os.path.join(folder, "model")}
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            start = time.perf_counter()
            api.scnym_api(task="train", config=copy.deepcopy(config), **shared)
            api.scnym_api(
                task="predict",
                trained_model=shared["out_path"],
                config=copy.deepcopy(config),
                **shared,
            )
            seconds = time.perf_counter() - start

    score = cells.obs["scNym_confidence"].to_numpy(dtype=float)[is_query]
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    answer = {
        "prediction": cells.obs["scNym"].astype(str)[is_query].tolist(),
        "score": np.clip(score, 0, 1).tolist(),
        "novel_score": (1 - np.clip(score, 0, 1)).tolist(),
        "seconds": seconds,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "epochs": epochs,
        "versions": {"scnym": version("scnym")},
    }
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()

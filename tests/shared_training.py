"""A script that trains a model, alone or in two processes, and writes what each of them has.

``python shared_training.py METHOD N_PROCESSES BATCH_SIZE EPOCHS FOLDER``
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from synthetic import simulate_sides

import sctool

if __name__ == "__main__":
    method, n, batch_size, epochs, folder = sys.argv[1:]
    rank = int(os.environ.get("LOCAL_RANK", 0))
    adata, ref = simulate_sides()
    options = {
        "max_epochs": int(epochs),
        "batch_size": int(batch_size),
        "accelerator": "cpu",
        "devices": int(n),
        "enable_progress_bar": False,
    }
    if int(n) > 1:
        options["strategy"] = "ddp"
    if method == "cicl":
        model = sctool.tl.cluster(
            adata, method="cicl", n_clusters=4, return_model=True, train_kwargs=options
        )
    else:
        model = sctool.tl.annotate(
            adata, ref, method=method, return_model=True, train_kwargs=options
        )
    found = adata.obs["cicl" if method == "cicl" else "sctool"].astype(str).to_numpy(dtype=str)
    history = {
        name: table.iloc[:, 0].astype(float).tolist() for name, table in model.history.items()
    }
    weights = np.concatenate(
        [v.double().numpy().ravel() for v in model.module.state_dict().values()]
    )
    np.savez(Path(folder) / f"{rank}.npz", found=found, weights=weights)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(history))

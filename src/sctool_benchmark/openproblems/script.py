"""Label projection by sctool, as a component of Open Problems.

Reads ``train.h5ad`` and ``test.h5ad`` (``layers["counts"]``, ``obs["batch"]``, of the training
cells ``obs["label"]``), and writes ``obs["label_pred"]`` of the test cells.
"""

import anndata as ad
import pandas as pd

import sctool

## VIASH START
par = {
    "input_train": "resources_test/task_label_projection/cxg_immune_cell_atlas/train.h5ad",
    "input_test": "resources_test/task_label_projection/cxg_immune_cell_atlas/test.h5ad",
    "output": "output.h5ad",
    "method": "auto",
}
meta = {"name": "sctool"}
## VIASH END

print(">> Load data", flush=True)
train, test = ad.read_h5ad(par["input_train"]), ad.read_h5ad(par["input_test"])

print(">> Train and predict", flush=True)
# The task scores known names alone: nothing is to be called novel.
sctool.tl.annotate(
    test,
    train,
    labels_key="label",
    batch_key="batch",
    layer="counts",
    novel=0,
    method=par["method"],
)

print(">> Write the prediction", flush=True)
output = ad.AnnData(
    obs=pd.DataFrame({"label_pred": test.obs["sctool"].astype(str)}, index=test.obs_names),
    uns={
        "method_id": meta["name"],
        "dataset_id": test.uns["dataset_id"],
        "normalization_id": test.uns["normalization_id"],
    },
)
output.write_h5ad(par["output"], compression="gzip")

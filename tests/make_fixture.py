"""Write a model into ``fixtures``: ``python tests/make_fixture.py [DIR]``.

A small trained model, the query it is to annotate (``query.npz``: counts and gene names) and what
it said of it (``expected.npz``). There is one of every format of saved models, and none is ever
written again: where the format changes, another is added, under the oldest Python that is
supported, so that the tests load it under the others. One more was written under Python 3.13, with
scvi-tools 1.5 and pandas 3, and is loaded under the older ones.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from synthetic import FAST, simulate_joint, simulate_sides

from sctool.model import SCNYM
from sctool.model._saving import FORMAT

FOLDER = Path(__file__).parent / "fixtures"
#: By format.
FIXTURES = {1: FOLDER / "saved_scnym", 2: FOLDER / "saved_scnym_2"}
#: Of the present format, by newer packages: ``python tests/make_fixture.py``, with this folder.
BY_NEWER = FOLDER / "saved_scnym_2_python_3_13"


def main(path: Path = FOLDER / f"saved_scnym_{FORMAT}") -> None:
    """Train, save, and write what is expected."""
    joint, (adata, _) = simulate_joint(), simulate_sides(n_query=24)
    joint.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(joint.n_vars)]
    joint.obs["cell_type"] = joint.obs["cell_type"].astype("category")
    joint.uns["cell_type_colors"] = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#808080"]
    SCNYM.setup_anndata(joint, "cell_type", "Unknown")
    torch.manual_seed(0)
    model = SCNYM(joint, n_top_genes=150, n_hidden=16)
    model.train(**(FAST | {"max_epochs": 12}))
    model.save(path)
    counts = adata.X.toarray().astype(np.uint16)
    np.savez_compressed(path / "query.npz", counts=counts, genes=np.array(list(adata.var_names)))
    np.savez_compressed(
        path / "expected.npz",
        proba=model.predict(adata, soft=True).to_numpy(),
        latent=model.get_latent_representation(adata),
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

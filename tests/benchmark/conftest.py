"""A small suite of peers, runs without processes, and the rivals beside the library's methods."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from benchmark.cells import make_adata
from sctool.model import CLUSTER_METHODS, METHODS
from sctool_benchmark import _run, _worker
from sctool_benchmark._ablations import ABLATIONS, CLUSTER_ABLATIONS

PEER = """
import json, sys
import h5py, numpy as np

kind, input, output, seed = sys.argv[1:]
if kind == "failing":
    sys.exit("first line\\nout of luck")
with h5py.File(input) as file:
    x, codes = file["X"][:], file["obs/cell_type/codes"][:]
    types = file["obs/cell_type/categories"].asstr()[:]
    assert isinstance(file["obs/_index"], h5py.Dataset)  # which older readers know
    split = file["obs/split/categories"].asstr()[:][file["obs/split/codes"][:]]
query = split == "query"
assert (codes[query] == -1).all() and (codes[~query] >= 0).all()
if kind == "centroid":
    centres = np.stack([x[codes == code].mean(0) for code in range(len(types))])
    nearest = ((x[query][:, None] - centres) ** 2).sum(2).argmin(1)
else:
    nearest = np.zeros(query.sum(), int)
answer = {"prediction": types[nearest].tolist(), "score": [0.5] * int(query.sum())}
if kind == "centroid":
    answer |= {"seconds": 1.5, "peak_rss_gb": 0.25, "versions": {"peer": "1.0"}}
json.dump(answer, open(output, "w"))
"""
SUITE = """
seeds = 2

[[task]]
name = "closed"
data = "kang"
file = '{file}'
kind = "pair"

[[task]]
name = "open"
data = "mine"
file = '{file}'
kind = "intra"

[method.centroid]
command = ["{{python}}", "{{here}}/peer.py", "centroid", "{{input}}", "{{output}}", "{{seed}}"]
[method.losing]
command = ["{{python}}", "{{here}}/peer.py", "losing", "{{input}}", "{{output}}", "{{seed}}"]
[method.failing]
command = ["{{python}}", "{{here}}/peer.py", "failing", "{{input}}", "{{output}}", "{{seed}}"]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of two tasks and three peers, with its data beside it."""
    make_adata(split=True).write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "peer.py").write_text(PEER)
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(file=tmp_path / "cells.h5ad"))
    return path


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Run jobs in this process, which saves its imports, and list them."""
    done: list[dict] = []

    def spawn(job: dict, timeout: float | None, log: Path) -> dict:
        done.append(job)
        return json.loads(json.dumps(_worker.work(json.loads(json.dumps(job)))))

    monkeypatch.setattr(_run, "_spawn", spawn)
    return done


@pytest.fixture
def cells() -> ad.AnnData:
    """Counts of 160 cells of four types, each with thirty genes of its own."""
    rng = np.random.default_rng(0)
    codes = rng.choice(4, 160, p=[0.4, 0.3, 0.2, 0.1])
    x = rng.poisson(1 + 5 * np.repeat(np.eye(4), 30, axis=1)[codes]).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(["B", "T", "NK", "DC"])[codes]})
    return ad.AnnData(x, obs.set_axis([f"cell{i}" for i in range(160)]))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's methods beside the library's, as in its worker."""
    for name, model in CLUSTER_ABLATIONS.items():
        monkeypatch.setitem(CLUSTER_METHODS, name, model)
    for name, model in ABLATIONS.items():
        monkeypatch.setitem(METHODS, name, model)

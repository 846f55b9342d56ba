"""A small suite of peers, and runs without processes."""

import json
from pathlib import Path

import pytest

from benchmark.cells import make_adata
from sctool_benchmark import _run, _worker

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

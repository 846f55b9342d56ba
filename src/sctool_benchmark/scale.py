"""What a saved model costs on large files: ``python -m sctool_benchmark.scale -o results/scale``.

Models of methods with "-trained" are not saved: they are trained on the reference and some of the
file's cells; ``--references`` makes larger references. The cells
stay in a file; each run has a process of its own, which first reads the file through and then
annotates it, both after the file has left the system's cache. CellTypist runs on the same file
in its own environment. A run is ended after 30 minutes or at 16 GB.

Files are made of the query of a pair (by default Zheng's cells to pbmc3k, whose settings chose
ours), without copies of cells: each new cell is a mix of a cell and one of its ten nearest
neighbours of the same type, whose counts are drawn anew.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from sctool_benchmark._figures import plot_scale
from sctool_benchmark._larger import BLOCK, mixed, neighbours
from sctool_benchmark._markdown import table_lines
from sctool_benchmark._run import provenance
from sctool_benchmark.peers import interpreter

SECONDS, GIGABYTES = 1800, 16
METHODS = ("logistic", "scnym", "auto", "auto-trained", "celltypist", "celltypist-voting")
TRAINED = "-trained"
PEER = Path(__file__).parent / "peers" / "celltypist_saved.py"


def write_cells(
    cells: ad.AnnData, labels: np.ndarray, n: int, path: Path, column: str = "truth", seed: int = 0
) -> None:
    """Write a file of ``n`` new cells, block by block, with their types in a column."""
    rng = np.random.default_rng(seed)
    x = sp.csr_matrix(cells.X, dtype=np.float64)
    near = neighbours(x, labels)
    drawn = rng.integers(len(labels), size=n)
    obs = pd.DataFrame({column: pd.Categorical(labels[drawn])}, index=np.arange(n).astype(str))
    ad.AnnData(obs=obs, var=cells.var[[]]).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        ad.io.write_elem(file, "X", mixed(x, near, drawn[:BLOCK], rng))
        matrix = ad.io.sparse_dataset(file["X"])
        for start in range(BLOCK, n, BLOCK):
            matrix.append(mixed(x, near, drawn[start : start + BLOCK], rng))


# -- one run -------------------------------------------------------------------------------------


def forget(path: Path) -> None:
    """Drop a file from the system's cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> float:
    """Seconds to read the values of a file, and to do nothing with them."""
    forget(path)
    start = time.perf_counter()
    with h5py.File(path) as file:
        for name in ("data", "indices"):
            array = file["X"][name]
            for i in range(0, array.shape[0], 2**22):
                array[i : i + 2**22]
    return time.perf_counter() - start


def predict(path: Path, model: Path, method: str) -> dict[str, Any]:
    """Annotate a file by a saved model, or by one that is trained on a reference's file."""
    import scanpy  # noqa: F401  (used further in: imports are not counted in the seconds)

    from sctool import tl

    reading = read_through(path)
    forget(path)
    start, cpu = time.perf_counter(), time.process_time()
    cells = ad.read_h5ad(path, backed="r")
    if method.endswith(TRAINED):
        ref = ad.read_h5ad(model, backed="r")
        tl.annotate(cells, ref, method=method.removesuffix(TRAINED))
    else:
        tl.annotate(cells, model)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    return {
        "reading": reading,
        "seconds": seconds,
        "cpu": cpu,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "accuracy": float(
            (cells.obs["sctool"].astype(str) == cells.obs["truth"].astype(str)).mean()
        ),
    }


def resident(pid: int) -> float:
    """Bytes that a process holds in memory; 0 where there is no /proc, and thus no limit."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def limited(command: Sequence[str], result: Path) -> dict[str, Any]:
    """What a process wrote, or why it was ended."""
    result.unlink(missing_ok=True)
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None:
        time.sleep(0.2)
        over = resident(child.pid) > GIGABYTES * 1e9
        if over or time.monotonic() - start > SECONDS:
            child.kill()
            child.wait()
            return {"ended": f"at {GIGABYTES} GB" if over else f"after {SECONDS} s"}
    if child.wait() or not result.exists():
        return {"ended": f"exit code {child.returncode}"}
    return json.loads(result.read_text(encoding="utf-8"))


# -- all runs ------------------------------------------------------------------------------------


def train(method: str, ref: ad.AnnData, query: ad.AnnData, out: Path) -> None:
    """Save a model that was trained with the query's own cells, not those of the files."""
    from sctool import tl

    tl.annotate(query, ref, method=method, return_model=True).save(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sctool_benchmark.scale", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", default="pbmc_zhengfacs_to_pbmc3k.h5ad", metavar="FILE")
    parser.add_argument("--cells", default="10000,100000,1000000", help="default: %(default)s")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument(
        "--references",
        default="",
        metavar="N,N",
        help='cells of larger references for methods with "-trained" (default: the reference)',
    )
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # file, model, result, method
    args = parser.parse_args(argv)
    if args.one:
        path, model, result = map(Path, args.one[:3])
        result.write_text(json.dumps(predict(path, model, args.one[3])), encoding="utf-8")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ.get("SCTOOL_DATA_DIR", "."))
    data = ad.read_h5ad(folder / args.data)
    side = data.obs["split"].astype(str)
    ref, query = (data[side == name].copy() for name in ("reference", "query"))
    labels = query.obs["cell_type"].astype(str).to_numpy()
    ref.obs = ref.obs[["cell_type"]]
    ref.write_h5ad(args.out / "ref.h5ad")
    query.obs = query.obs[[]]
    references = {ref.n_obs: args.out / "ref.h5ad"}
    if args.references:
        own = ref.obs["cell_type"].astype(str).to_numpy()
        references = {n: args.out / f"ref_{n}.h5ad" for n in map(int, args.references.split(","))}
        for n, path in references.items():
            write_cells(ref, own, n, path, "cell_type", seed=1)
    rows, result = [], args.out / "result.json"
    for n in map(int, args.cells.split(",")):
        path = args.out / f"{n}.h5ad"
        if not path.exists():
            write_cells(query, labels, n, path)
        for method in args.methods.split(","):
            model = args.out / method.removesuffix("-voting")
            given = {0: model}  # by the number of cells that are trained on
            own = [sys.executable, "-m", "sctool_benchmark.scale", "-o", str(args.out), "--one"]
            last = [str(result), method]
            if method.startswith("celltypist"):
                model = model.with_suffix(".pkl")  # which it would add
                given, last = {0: model}, [str(result)]
                own = [interpreter("celltypist"), str(PEER), *method.split("-")[1:]]
                if not model.exists():
                    subprocess.run(
                        [*own[:2], "train", str(args.out / "ref.h5ad"), str(model)], check=True
                    )
            elif method.endswith(TRAINED):
                given = references
            elif not model.exists():
                train(method, ref, query, model)
            for n_trained, model in given.items():
                row = {"cells": n, "method": method, "reference": n_trained}
                row |= limited([*own, str(path), str(model), *last], result)
                print(row, file=sys.stderr)
                rows.append(row)
                pd.DataFrame(rows).to_csv(args.out / "results.csv", index=False)
                table(rows, args.out / "table.md", argv)
                plot_scale(pd.DataFrame(rows), args.out / "curves.png")
    return 0


def table(rows: list[dict[str, Any]], path: Path, argv: Sequence[str] | None) -> None:
    """Write what was measured as a table in Markdown, and the command."""
    columns = ["cells", "method", "trained on", "seconds", "reading alone", "CPU seconds", "GB"]
    columns += ["accuracy"]
    lines = []
    for row in rows:
        trained_on = f"{row['reference']:,}" if row["reference"] else ""
        told = [f"{row['cells']:,}", f"`{row['method']}`", trained_on]
        if "ended" in row:
            told += [f"ended {row['ended']}", "", "", "", ""]
        else:
            reading = f"{row['reading']:.1f}" if "reading" in row else ""
            told += [
                f"{row['seconds']:.1f}",
                reading,
                f"{row['cpu']:.1f}",
                f"{row['peak_rss_gb']:.2f}",
            ]
            told += [f"{row['accuracy']:.3f}"]
        lines.append(told)
    text = "\n".join(table_lines(columns, lines)) + "\n" + provenance("scale", argv)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""One run of the benchmark, in a process of its own so that its peak memory is its own."""

import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np

from sctool_benchmark._cluster import cluster, cluster_scores
from sctool_benchmark._regroup import regroup
from sctool_benchmark._tasks import BATCH, LABELS, Method, Split, Task, read, split

if TYPE_CHECKING:
    from sctool.model import AnnotationModel

PACKAGES = ("sctool", "torch", "scvi-tools", "anndata", "scanpy", "scikit-learn")
KEY = "sctool"
#: Shares of the novel cells that are to be found, at which seen accuracy is recorded.
RECALLS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Make the task, run the method and score it.

    Parameters
    ----------
    job
        ``task`` and ``method`` (the fields of `Task` and `Method`), ``protocol``, ``seed``,
        ``path`` of the data and ``here``, the folder of the suite.

    Returns
    -------
    The sizes of the task, all scores, seconds and peak memory of the method, and versions.
    """
    from sctool import metrics

    task, method = Task(**job["task"]), Method(**job["method"])
    parts = split(read(task, job["path"]), task, job["seed"])
    sizes = {
        "n_ref": parts.reference.n_obs,
        "n_query": parts.query.n_obs,
        "n_genes": parts.query.n_vars,
        "n_types": len(parts.seen),
        "n_novel_types": len(parts.novel),
    }
    if task.kind == "cluster":
        answer = cluster(parts, task, method, job)
        peak, scored = _peak_rss_gb(), parts.truth.notna().to_numpy()
        prediction = np.asarray(answer["prediction"], dtype=str)[scored]
        return {
            **sizes,
            "n_types": int(parts.truth.nunique()),
            "n_novel_types": 0,
            **cluster_scores(parts.truth[scored].to_numpy(), prediction),
            **{f"n_clusters_{name}": n for name, n in answer["n_clusters"].items()},
            "seconds": answer["seconds"],
            "peak_rss_gb": peak,
            "n_threads": _n_threads(),
            "versions": _versions(),
        }
    answer = (_command if method.command else _annotate)(parts, task, method, job)

    scored = parts.truth.notna().to_numpy()
    cells = {
        name: np.asarray(answer[name])[scored]
        for name in ("score", "novel_score", "novel", "proba")
        if answer.get(name) is not None
    }
    prediction = np.asarray(answer["prediction"], dtype=str)
    # A method that marks no cell as novel says so by the name it gives.
    cells.setdefault("novel", ~np.isin(prediction, parts.seen)[scored])
    scores = metrics.summary(
        parts.truth[scored].to_numpy(),
        prediction[scored],
        parts.seen,
        classes=answer.get("classes"),
        **cells,
    )
    scores |= _at_recalls(parts.truth[scored].to_numpy(), parts.seen, answer.get("classes"), cells)
    by_type: dict[str, float] = {}
    if "proba" in cells:
        names = np.asarray(answer["classes"], dtype=str)
        truth = parts.truth[scored].to_numpy(dtype=str)
        seen = np.isin(truth, parts.seen)
        by_type = metrics.per_type_auprc(truth[seen], cells["proba"][seen], names)
    if parts.rare is not None:
        own = (parts.truth[scored] == parts.rare).to_numpy()
        right = prediction[scored] == parts.truth[scored].to_numpy()
        scores |= {"rare_recall": right[own].mean(), "others_accuracy": right[~own].mean()}
    return {
        **sizes,
        **{name: float(value) if math.isfinite(value) else None for name, value in scores.items()},
        "auprc": {name: value for name, value in by_type.items() if math.isfinite(value)},
        **{name: answer.get(name) for name in ("seconds", "peak_rss_gb", "epochs", "mixing")},
        # What was estimated, if anything was.
        **{f"novel_types_{name}": n for name, n in answer.get("n_novel", {}).items()},
        "n_threads": _n_threads(),
        "versions": _versions() | answer.get("versions", {}),
    }


def _at_recalls(
    truth: np.ndarray, seen: list[str], classes: np.ndarray | None, cells: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return the highest seen accuracy at which each share of the novel cells is found.

    Cells are called novel by their novelty score, the others get their likeliest known name.
    """
    if np.isin(truth, seen).all() or classes is None or "novel_score" not in cells:
        return {}
    from sctool import metrics

    names = np.asarray(classes, dtype=str)
    known = np.isin(names, seen)
    named = names[known][cells["proba"][:, known].argmax(axis=1)]
    curve = metrics.seen_novel_curve(truth, named, cells["novel_score"], seen)
    accuracy = [curve.seen_accuracy[curve.novel_recall >= recall].max() for recall in RECALLS]
    return {f"seen_at_recall.{r}": a for r, a in zip(RECALLS, accuracy, strict=True)}


def _annotate(parts: Split, task: Task, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """Run one of our methods through the call that users make."""
    import scanpy  # noqa: F401  (used further in: imports are not counted in the seconds)

    from sctool import metrics
    from sctool.model import METHODS
    from sctool.tl._annotate import annotate_with_model

    name, model_kwargs = str(method.method), dict(method.model_kwargs)
    novel: int | str = "auto"
    n_novel: int | None = None  # what the run is told
    if job["protocol"] == "paper":
        n_novel = len(parts.novel)
        if "paper" in METHODS[name].PRESETS:
            model_kwargs.setdefault("preset", "paper")
        novel = _as_told(METHODS[name], n_novel, model_kwargs.get("preset", "default"))
    if model_kwargs.get("prior") == "oracle":
        # (who is told the shares of all types is told their number)
        model_kwargs["distribution"], novel = _distribution(parts), len(parts.novel)
    query = parts.query
    start = time.perf_counter()
    _, model = annotate_with_model(
        query,
        parts.reference,
        labels_key=LABELS,
        method=name,
        batch_key=BATCH if task.batch_key else None,
        layer=task.layer,
        novel=novel,
        ignore_case=False,
        key_added=KEY,
        random_state=job["seed"],
        copy=False,
        model_kwargs=model_kwargs or None,
        train_kwargs=method.train_kwargs or None,
    )
    answer: dict[str, Any] = {
        "prediction": query.obs[KEY].astype(str),
        "score": query.obs.get(f"{KEY}_score"),
        "novel": query.obs.get(f"{KEY}_novel"),
    }
    if method.regroup and n_novel != 0:
        answer |= regroup(answer, parts, task, method, n_novel, job["seed"])
    seconds, peak = time.perf_counter() - start, _peak_rss_gb()
    # After the clock has stopped: how well reference and query are mixed in the embedding.
    z = [model.get_latent_representation(parts.reference, layer=task.layer), query.obsm[f"X_{KEY}"]]
    sides = np.repeat(["reference", "query"], [len(part) for part in z])
    mixing = metrics.entropy_of_batch_mixing(np.concatenate(z), sides)
    history = model.history or {}
    return answer | {
        "mixing": mixing,
        "novel_score": query.obs.get(f"{KEY}_novel_score"),
        "proba": query.obsm.get(f"{KEY}_proba"),
        "classes": query.uns[KEY]["classes"] if f"{KEY}_proba" in query.obsm else None,
        "n_novel": query.uns[KEY].get("n_novel", {}),
        "epochs": max((len(values) for values in history.values()), default=None),
        "seconds": seconds,
        "peak_rss_gb": peak,
    }


def _distribution(parts: Split) -> list[float]:
    """Return the true share of each type, seen ones first, for an ablation that is told it."""
    of_reference = parts.reference.obs[LABELS].value_counts()
    size = parts.truth.value_counts().add(of_reference, fill_value=0)
    novel = size[parts.novel].sort_values(ascending=False)
    shares = [*size[parts.seen], *novel]
    return [float(share / sum(shares)) for share in shares]


def _as_told(cls: "type[AnnotationModel]", n_novel: int, preset: str) -> int | str:
    """Return what to pass as ``novel``: the number of novel types, if the method can take it."""
    try:
        cls.settings_for_novel(n_novel, preset)
    except ValueError:
        return "auto"
    return n_novel


def _command(parts: Split, task: Task, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """Run a peer in an interpreter of its own."""
    joint = ad.concat(
        {"reference": parts.reference, "query": parts.query},
        label="split",
        join="outer",
    )
    if task.layer is not None:
        joint.X = joint.layers[task.layer]
    # As objects, names are written in the form that the peers' older anndata reads.
    joint.obs.index, joint.var.index = (
        joint.obs_names.astype(object),
        joint.var_names.astype(object),
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output.json")
        words = {
            "{input}": str(Path(folder, "input.h5ad")),
            "{output}": str(output),
            "{seed}": str(job["seed"]),
            "{python}": sys.executable,
            "{here}": job["here"],
        }
        joint.write_h5ad(words["{input}"])
        command = [re.sub(r"\{env:(\w+)\}", _environment, part) for part in method.command]
        for placeholder, word in words.items():
            command = [part.replace(placeholder, word) for part in command]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode or not output.is_file():
            print(done.stdout)
            last = (done.stdout.strip() or "it wrote no output").splitlines()[-1]
            raise RuntimeError(f"the command ended with exit code {done.returncode}: {last}")
        answer = json.loads(output.read_text(encoding="utf-8"))
    if len(answer["prediction"]) != parts.query.n_obs:
        raise RuntimeError(
            f"the command named {len(answer['prediction'])} cells, but the query has "
            f"{parts.query.n_obs}"
        )
    # What the command does not measure itself is an upper bound: its start and its reading of
    # the data are in the seconds, and its peak is not below this process' own.
    measured = {"seconds": seconds, "peak_rss_gb": _rusage_gb(resource.RUSAGE_CHILDREN)}
    return measured | {name: value for name, value in answer.items() if value is not None}


def _environment(match: re.Match[str]) -> str:
    """Return the environment variable that a command names."""
    name = match.group(1)
    if name not in os.environ:
        raise RuntimeError(f"set the environment variable {name}: the suite says what to")
    return os.environ[name]


def _peak_rss_gb() -> float:
    """Return the peak resident memory of this process in GiB.

    On Linux ``ru_maxrss`` survives exec and so starts at the memory of the process that started
    this one; ``VmHWM`` does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024**2
    return _rusage_gb(resource.RUSAGE_SELF)


def _rusage_gb(who: int) -> float:
    """Return the peak resident memory that the system accounts for, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit / 1024**3


def _n_threads() -> int:
    """Return the number of threads that the numerical work may use."""
    import torch

    return torch.get_num_threads()


def _versions() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def main(job: dict[str, Any], result: str, output: str) -> None:
    """Work as a process of its own, at the head of a group that can be ended with it.

    Parameters
    ----------
    job
        See `work`.
    result
        File for the row (JSON), written if the run succeeds.
    output
        File for all that the run prints.
    """
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    row = json.dumps(work(job), default=np.generic.item)
    Path(result).write_text(row, encoding="utf-8")

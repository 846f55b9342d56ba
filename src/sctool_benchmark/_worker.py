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
import pandas as pd

from sctool import metrics
from sctool._ontology import cell_ontology, nested_groups
from sctool._sets import Hierarchy
from sctool.model import CLUSTER_METHODS, METHODS
from sctool_benchmark._ablations import ABLATIONS, CLUSTER_ABLATIONS
from sctool_benchmark._baselines import cluster, recluster_rejected
from sctool_benchmark._metrics import (
    entropy_of_batch_mixing,
    novel_accuracy_hungarian,
    overall_accuracy_hungarian,
    safe_name_scores,
    seen_novel_curve,
    seen_unflagged,
)
from sctool_benchmark._rivals import RIVAL_NAMES
from sctool_benchmark._rivals import annotate as annotate_by_rival
from sctool_benchmark._tasks import (
    BATCH,
    CLUSTER_BASELINES,
    LABELS,
    Method,
    Split,
    Task,
    published_terms,
    read,
    split,
)
from sctool_benchmark.peers import interpreter

if TYPE_CHECKING:
    from sctool.model import AnnotationModel

PACKAGES = ("sctool-annotate", "torch", "scvi-tools", "anndata", "scanpy", "scikit-learn")
KEY = "sctool"
#: Shares of the novel cells that are to be found, at which seen accuracy is recorded.
RECALLS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)
#: Risks of error at which cells are named, of tasks that ask for it.
RISKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Make the task, run the method and score it.

    Parameters
    ----------
    job
        ``task`` and ``method`` (the fields of `Task` and `Method`), ``protocol``, ``seed`` and
        ``path`` of the data.

    Returns
    -------
    The sizes of the task, all scores, seconds and peak memory of the method, and versions.
    """
    task, method = Task(**job["task"]), Method(**job["method"])
    parts = split(read(task, job["path"]), task, job["seed"])
    row: dict[str, Any] = {
        "n_ref": parts.reference.n_obs,
        "n_query": parts.query.n_obs,
        "n_genes": parts.query.n_vars,
        "n_types": len(parts.seen),
        "n_novel_types": len(parts.novel),
    }
    if task.kind == "cluster":
        row |= {"n_types": len(parts.novel), "n_novel_types": 0}
        answer = _cluster(parts, task, method, job)
        row |= _cluster_scores(parts, answer)
    elif clusters(method):
        answer = _cluster(parts, task, method, job)
        row |= _cluster_scores(parts, answer) | _matched_scores(parts, answer)
    else:
        how = _command if method.command else _annotate
        answer = (_rival if method.method in RIVAL_NAMES else how)(parts, task, method, job)
        row |= _scores(parts, answer)
    row |= {name: answer.get(name) for name in ("seconds", "peak_rss_gb", "epochs", "mixing")}
    return row | {"n_threads": _n_threads(), "versions": _versions() | answer.get("versions", {})}


# -- Scores --------------------------------------------------------------------------------------


def _cluster_scores(parts: Split, answer: dict[str, Any]) -> dict[str, float]:
    """Return what is measured of clusters, by name."""
    scored = parts.truth.notna().to_numpy()
    truth, found = parts.truth[scored].to_numpy(), np.asarray(answer["prediction"])[scored]
    return {
        "ari": metrics.ari(truth, found),
        "nmi": metrics.nmi(truth, found),
        "clustering_accuracy": overall_accuracy_hungarian(truth, found),
        **{f"n_clusters_{name}": n for name, n in answer["n_clusters"].items()},
    }


def _matched_scores(parts: Split, answer: dict[str, Any]) -> dict[str, float]:
    """Return the accuracies of clusters where methods that name cells are measured.

    As the scDET paper does it: clusters are matched to types, anew for each of the three.
    """
    scored = parts.truth.notna().to_numpy()
    truth, found = parts.truth[scored].to_numpy(), np.asarray(answer["prediction"])[scored]
    seen = np.isin(truth, parts.seen)
    overall = overall_accuracy_hungarian(truth, found)
    return {
        "seen_accuracy": overall_accuracy_hungarian(truth[seen], found[seen]),
        "novel_accuracy": overall_accuracy_hungarian(truth[~seen], found[~seen]),
        "overall_accuracy": overall,
        "overall_accuracy_hungarian": overall,
    }


def _scores(parts: Split, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what is measured of names, by name.

    ``auprc``, ``auroc`` and ``n_labelled``, a type's cells in the reference, have a value a type.
    """
    scored = parts.truth.notna().to_numpy()
    truth, prediction = (
        np.asarray(names, dtype=str)[scored] for names in (parts.truth, answer["prediction"])
    )
    cells = {
        name: np.asarray(answer[name])[scored]
        for name in ("score", "novel_score", "novel", "proba")
        if answer.get(name) is not None
    }
    # A method that marks no cell as novel says so by the name it gives.
    cells.setdefault("novel", ~np.isin(prediction, parts.seen))
    classes = answer.get("classes")
    scores = metrics.summary(truth, prediction, parts.seen, classes=classes, **cells)
    scores["seen_unflagged"] = seen_unflagged(truth, prediction, cells["novel"], parts.seen)
    scores["novel_accuracy_hungarian"] = novel_accuracy_hungarian(truth, prediction, parts.seen)
    scores["overall_accuracy_hungarian"] = overall_accuracy_hungarian(truth, prediction)
    scores |= _at_recalls(truth, parts.seen, classes, cells)
    auprc, auroc = dict[str, float](), dict[str, float]()
    if "proba" in cells:
        seen = np.isin(truth, parts.seen)
        of_seen = truth[seen], cells["proba"][seen], np.asarray(classes, dtype=str)
        auprc, auroc = metrics.per_type_auprc(*of_seen), metrics.per_type_auroc(*of_seen)
    if parts.rare is not None:
        own, right = truth == parts.rare, prediction == truth
        called = prediction == parts.rare
        scores |= {
            "rare_share": own.mean(),
            "rare_recall": right[own].mean(),
            # (0 if no cell bears the name, so that methods are compared over the same runs)
            "rare_precision": own[called].mean() if called.any() else 0.0,
            "rare_auprc": auprc.get(parts.rare, math.nan),
            "others_accuracy": right[~own].mean(),
        }
    if parts.planted is not None:
        scores |= _planted_scores(parts.planted, answer["status"])
    scores |= answer.get("safe", {})
    return {
        **{name: float(value) if math.isfinite(value) else None for name, value in scores.items()},
        "auprc": {name: value for name, value in auprc.items() if math.isfinite(value)},
        "auroc": {name: value for name, value in auroc.items() if math.isfinite(value)},
        "n_labelled": parts.reference.obs[LABELS].value_counts().to_dict(),
        # What was estimated, if anything was.
        **{f"novel_types_{name}": n for name, n in answer.get("n_novel", {}).items()},
    }


def _planted_scores(planted: np.ndarray, status: pd.Series) -> dict[str, float]:
    """Return what planted cells are taken for, and how many of the others are taken for such."""
    given = np.asarray(status, dtype=str)
    scores: dict[str, float] = {}
    for kind, found in (("doublet", "doublet"), ("thinned", "low_quality")):
        cells = planted == kind
        if cells.any():
            scores[f"{kind}_novel"] = (given[cells] == "novel").mean()
            scores[f"{kind}_found"] = (given[cells] == found).mean()
            scores[f"{kind}_assigned"] = (given[cells] == "assigned").mean()
        scores[f"others_{found}"] = (given[planted == ""] == found).mean()
    return scores


def _at_recalls(
    truth: np.ndarray, seen: list[str], classes: np.ndarray | None, cells: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return the highest seen accuracy at which each share of the novel cells is found.

    Cells are called novel by their novelty score, the others get their likeliest known name.
    """
    if np.isin(truth, seen).all() or classes is None or "novel_score" not in cells:
        return {}
    names = np.asarray(classes, dtype=str)
    known = np.isin(names, seen)
    named = names[known][cells["proba"][:, known].argmax(axis=1)]
    curve = seen_novel_curve(truth, named, cells["novel_score"], seen)
    accuracy = [curve.seen_accuracy[curve.novel_recall >= recall].max() for recall in RECALLS]
    return {f"seen_at_recall.{r}": a for r, a in zip(RECALLS, accuracy, strict=True)}


# -- Runs ----------------------------------------------------------------------------------------


def clusters(method: Method) -> bool:
    """Whether a method clusters cells, and names none."""
    clusterers = {*CLUSTER_METHODS, *CLUSTER_ABLATIONS, *CLUSTER_BASELINES}
    return method.method in clusterers


def _cluster(parts: Split, task: Task, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """Cluster the query through the call that users make, or by a floor.

    The protocol "paper" gives the true number of types, "blind" none.
    """
    import scanpy  # noqa: F401  (used further in: imports are not counted in the seconds)

    from sctool import tl

    name, query, seed = str(method.method), parts.query, job["seed"]
    n_clusters = parts.truth.nunique() if job["protocol"] == "paper" else None
    start = time.perf_counter()
    if name in CLUSTER_BASELINES:
        prediction, number = cluster(query, name, n_clusters, task.layer, method.train_kwargs, seed)
    else:
        tl.cluster(
            query,
            n_clusters=n_clusters,
            method=name,
            layer=task.layer,
            key_added=KEY,
            random_state=seed,
            model_kwargs=method.model_kwargs or None,
            train_kwargs=method.train_kwargs or None,
        )
        prediction, number = query.obs[KEY].astype(str).to_numpy(), query.uns[KEY]["n_clusters"]
    return {
        "prediction": prediction,
        "n_clusters": number,
        "seconds": time.perf_counter() - start,
        "peak_rss_gb": _peak_rss_gb(),
    }


def _annotate(parts: Split, task: Task, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """Annotate the query through the call that users make."""
    import scanpy  # noqa: F401  (used further in: imports are not counted in the seconds)

    from sctool import tl

    name, model_kwargs, seed = str(method.method), dict(method.model_kwargs), job["seed"]
    novel: int | str = "auto"
    n_novel: int | None = None  # what the run is told
    if job["protocol"] == "paper":
        n_novel = len(parts.novel)
        if "paper" in METHODS[name].PRESETS:
            model_kwargs.setdefault("preset", "paper")
        novel = _as_told(METHODS[name], n_novel, model_kwargs.get("preset", "default"))
    if model_kwargs.get("prior") == "oracle":
        novel = _tell_oracle(model_kwargs, parts)
    query = parts.query
    start = time.perf_counter()
    model = tl.annotate(
        query,
        parts.reference,
        labels_key=LABELS,
        method=name,
        batch_key=BATCH if task.batch_key else None,
        layer=task.layer,
        novel=novel,
        key_added=KEY,
        random_state=seed,
        return_model=True,
        model_kwargs=model_kwargs or None,
        train_kwargs=method.train_kwargs or None,
    )
    answer: dict[str, Any] = {
        "prediction": query.obs[KEY].astype(str),
        "score": query.obs.get(f"{KEY}_score"),
        "novel": query.obs.get(f"{KEY}_novel"),
    }
    if method.recluster_rejected and n_novel != 0:
        # By the method's own word or, where it has none, by its score.
        if answer["novel"] is None:
            answer["novel"] = answer["score"] < method.reject_below
        answer["prediction"] = recluster_rejected(
            answer["prediction"].to_numpy(),
            answer["novel"].to_numpy(dtype=bool),
            query,
            parts.reference,
            method.recluster_rejected,
            n_novel,
            task.layer,
            seed,
        )
    seconds, peak = time.perf_counter() - start, _peak_rss_gb()
    # After the clock has stopped: how well reference and query are mixed in the embedding.
    z = [model.get_latent_representation(parts.reference, layer=task.layer), query.obsm[f"X_{KEY}"]]
    sides = np.repeat(["reference", "query"], [len(part) for part in z])
    mixing = entropy_of_batch_mixing(np.concatenate(z), sides)
    history = model.history or {}
    if task.safe:
        answer["safe"] = _at_risks(parts, model, task)
    return answer | {
        "status": query.obs.get(f"{KEY}_status"),
        "mixing": mixing,
        "novel_score": query.obs.get(f"{KEY}_novel_score"),
        "proba": query.obsm.get(f"{KEY}_proba"),
        "classes": query.uns[KEY]["classes"] if f"{KEY}_proba" in query.obsm else None,
        "n_novel": query.uns[KEY].get("n_novel", {}),
        "epochs": max((len(values) for values in history.values()), default=None),
        "seconds": seconds,
        "peak_rss_gb": peak,
    }


def _at_risks(parts: Split, model: "AnnotationModel", task: Task) -> dict[str, float]:
    """Return how names and sets at each risk are, of the cells of known types.

    The trained model names the query once more for each risk, without training.
    """
    from sctool import tl

    if model.hierarchy_ is None or model.calibration_ is None:
        return {}
    if task.safe == "ontology":
        groups = nested_groups(published_terms()[task.data].terms, cell_ontology())
        model.hierarchy_ = Hierarchy.from_groups(model.classes_, groups)
    query, seen = parts.query, parts.truth.isin(parts.seen).to_numpy()
    scores: dict[str, float] = {}
    for risk in RISKS:
        tl.annotate(query, model, layer=task.layer, risk=risk, key_added="safe")
        names, safe = (
            query.obs[column].astype(object).fillna("unknown")[seen]
            for column in ("safe", "safe_safe")
        )
        found = safe_name_scores(
            parts.truth[seen],
            safe,
            query.obsm["safe_set"][seen],
            names,
            query.obs["safe_score"][seen],
            model.hierarchy_,
            model.classes_,
        )
        scores |= {f"safe_at.{risk}.{name}": value for name, value in found.items()}
    return scores


def _tell_oracle(model_kwargs: dict[str, Any], parts: Split) -> int:
    """Give an ablation the true share of each type, seen types first and novel ones by size.

    Returns the number of novel types: the shares of all types say it.
    """
    of_reference = parts.reference.obs[LABELS].value_counts()
    size = parts.truth.value_counts().add(of_reference, fill_value=0)
    novel = size[parts.novel].sort_values(ascending=False)
    shares = pd.concat([size[parts.seen], novel]) / size.sum()
    model_kwargs["distribution"] = shares.tolist()
    return len(parts.novel)


def _as_told(cls: "type[AnnotationModel]", n_novel: int, preset: str) -> int | str:
    """Return what to pass as ``novel``: the number of novel types, if the method can take it."""
    try:
        cls._settings_for_novel(n_novel, preset)
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
            "{here}": method.folder,
        }
        joint.write_h5ad(words["{input}"])
        command = [re.sub(r"\{env:(\w+)\}", _environment, part) for part in method.command]
        command = [re.sub(r"\{peer:([\w-]+)\}", _interpreter, part) for part in command]
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


def _rival(parts: Split, task: Task, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """Annotate the query by a classifier of the papers, which is told nothing of novel types."""
    name, kwargs = str(method.method), (method.model_kwargs, method.train_kwargs, job["seed"])
    start = time.perf_counter()
    answer = annotate_by_rival(name, parts.query, parts.reference, task.layer, *kwargs)
    return answer | {"seconds": time.perf_counter() - start, "peak_rss_gb": _peak_rss_gb()}


def _environment(match: re.Match[str]) -> str:
    """Return the environment variable that a command names."""
    name = match.group(1)
    if name not in os.environ:
        raise RuntimeError(f"set the environment variable {name}: the suite says what to")
    return os.environ[name]


def _interpreter(match: re.Match[str]) -> str:
    """Return the interpreter of the peer that a command names."""
    return interpreter(match.group(1))


# -- The machine ---------------------------------------------------------------------------------


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
    METHODS.update(ABLATIONS)
    CLUSTER_METHODS.update(CLUSTER_ABLATIONS)
    row = json.dumps(work(job), default=np.generic.item)
    Path(result).write_text(row, encoding="utf-8")

"""All runs of a suite: plan, resume, report progress."""

import hashlib
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from sctool_benchmark import _worker
from sctool_benchmark._report import write_reports
from sctool_benchmark._tasks import (
    CLUSTER_BASELINES,
    PROTOCOLS,
    Method,
    Suite,
    Task,
    choose,
    load_suite,
    locate,
)

Row = dict[str, Any]
Job = dict[str, Any]


def run(
    suite: str | Path = "quick",
    methods: Sequence[str] | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    seeds: int | None = None,
    out: str | Path = "benchmark",
    *,
    timeout: float | None = None,
) -> pd.DataFrame:
    """Run every (task, method, protocol, seed) of a suite, each in a process of its own.

    A run that succeeded before, with the same task, settings and presets, is not run again.
    Changes of code are not noticed: begin a new folder for them.

    Parameters
    ----------
    suite
        Name of a suite of the package, or path of one (see `load_suite`).
    methods
        Names of methods of the library, of ``methods.toml`` or of the suite's own; by default those
        that the suite names (see `load_suite`).
    protocols
        ``"blind"``: the default preset, ``novel="auto"``.  ``"paper"``: the preset ``"paper"``
        where there is one, told whether there are novel types and, for methods that take it, how
        many; commands are left out.  A variant keeps the preset that it names.  Tasks of the kind
        "cluster" keep the default preset, and are told the number of types under ``"paper"``.
    seeds
        Number of seeds, from 0; by default what the suite says.
    out
        Folder of the results.  Rows are added to ``results.jsonl`` as they finish; ``results.csv``
        and ``table.md`` are made from all its rows at the end, ``failed/`` holds the output of
        runs that failed.
    timeout
        Seconds after which a run is ended, and counts as failed.

    Returns
    -------
    One row per run asked for; ``error`` is missing where it succeeded.

    Raises
    ------
    ValueError
        If the suite, a method or a protocol is unknown.
    FileNotFoundError
        If the data are not there.
    """
    spec = load_suite(suite)
    chosen = spec.methods if methods is None else choose(spec.known, methods)
    seeds = spec.seeds if seeds is None else seeds
    made_by = shlex.join(
        ["python", "-m", "sctool_benchmark", "--suite", str(suite)]
        + ["--methods", ",".join(method.name for method in chosen)]
        + ["--protocols", ",".join(protocols), "--seeds", str(seeds)]
        + (["--timeout", f"{timeout:g}"] if timeout else [])
        + ["-o", str(out)]
    )
    plan = _plan(spec, chosen, protocols, seeds)
    if not plan:
        raise ValueError(f"nothing to run: no tasks, no seeds, or no preset for {protocols}")
    commit = _commit(Path(__file__).parent)

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rows = {row["id"]: row for row in map(json.loads, lines)}
    done = {name for name, row in rows.items() if row["error"] is None}
    pending = [(row, job) for row, job in plan if row["id"] not in done]
    planned = {(row["method"], row["protocol"]) for row, _ in plan}
    for name, protocol in product([method.name for method in chosen], protocols):
        if (name, protocol) not in planned:
            print(f"{name} has no preset for the protocol {protocol!r}", file=sys.stderr)
    # Without a terminal: a line a run, and no bar. The time left rests on all runs so far.
    has_terminal = sys.stderr.isatty()
    with tqdm(
        total=len(plan),
        initial=len(plan) - len(pending),
        smoothing=0,
        unit="run",
        disable=not has_terminal,
    ) as bar:
        for row, job in pending:
            title = "{task} · {method} · {protocol} · seed {seed}".format(**row)
            bar.set_description(title)
            row |= {"date": datetime.now(UTC).isoformat(timespec="seconds")}
            row |= {"made_by": made_by, "commit": commit}
            try:
                row |= _spawn(job, timeout, out / "failed" / f"{row['id'].replace('/', '-')}.log")
            except RuntimeError as error:
                row["error"] = str(error)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            rows[row["id"]] = row
            if row["error"] or not has_terminal:
                outcome = f"failed: {row['error']}" if row["error"] else f"{row['seconds']:.1f} s"
                bar.write(f"{title}: {outcome}", file=sys.stderr)
            bar.update()

    asked = [rows[row["id"]] for row, _ in plan]
    write_reports(out, _current([*rows.values(), *asked]))
    return pd.json_normalize(asked)


def _commit(folder: Path) -> str:
    """Return the git commit that code is from, "+changes" if tracked files differ from it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def provenance(name: str, arguments: Sequence[str] | None) -> str:
    """Lines below a table: the command that made it, the commit and the date.

    Parameters
    ----------
    name
        Module of the benchmark that was run, such as "adapt".
    arguments
        What its ``main`` was given: None for those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", f"sctool_benchmark.{name}", *words])
    commit = _commit(Path(__file__).parent)
    today = datetime.now(UTC).date().isoformat()
    return f"\nMade by\n\n    {command}\n\n- commit {commit}\n- date {today}\n"


# -- Plan ----------------------------------------------------------------------------------------


def _presets(method: Method, task: Task) -> Mapping[str, Any]:
    """Return the presets of a method; ValueError if it cannot do the task.

    A command has none but its own way, and a baseline has none.
    """
    from sctool.model import CLUSTER_METHODS, METHODS
    from sctool_benchmark._ablations import ABLATIONS, CLUSTER_ABLATIONS
    from sctool_benchmark._rivals import RIVAL_NAMES

    clusterers: dict[str, Any] = CLUSTER_METHODS | CLUSTER_ABLATIONS
    clusterers |= dict.fromkeys(CLUSTER_BASELINES)
    able: dict[str, Any] = METHODS | ABLATIONS | clusterers | dict.fromkeys(RIVAL_NAMES)
    if task.kind == "cluster":
        able = clusterers | {"leiden": None}
    elif method.command:
        return {}
    if method.method not in able:
        raise ValueError(
            f"method {method.name!r} ({method.method or 'a command'}) cannot do task "
            f"{task.name!r} of the kind {task.kind!r}: these can: {list(able)}"
        )
    return getattr(able[method.method], "PRESETS", {})


def _plan(
    suite: Suite, methods: Sequence[Method], protocols: Sequence[str], seeds: int
) -> list[tuple[Row, Job]]:
    """Return the head of the row and the job of each run, seed by seed."""
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise ValueError(f"unknown protocols {unknown}: choose from {PROTOCOLS}")
    paths = {task.name: locate(task) for task in suite.tasks}
    plan = []
    for seed, task, protocol, method in product(range(seeds), suite.tasks, protocols, methods):
        presets, usual = _presets(method, task), "default"
        # (what clusters cells is only told the number)
        if protocol == "paper" and not _worker.clusters(method) and task.kind != "cluster":
            if not presets:
                continue
            usual = "paper" if "paper" in presets else usual
        preset = method.model_kwargs.get("preset", usual)
        # (where a method is defined is no setting)
        said = asdict(method) | {"folder": None}
        config = _hash(asdict(task), said, protocol, presets.get(preset))
        row = {
            "id": f"{task.name}/{method.name}/{protocol}/{seed}/{config}",
            "task": task.name,
            "kind": task.kind,
            "data": task.data,
            "tuned": task.tuned,
            "method": method.name,
            "base": method.base,
            "protocol": protocol,
            "seed": seed,
            "config": config,
            "error": None,
        }
        job = {
            "task": asdict(task),
            "method": asdict(method),
            "protocol": protocol,
            "seed": seed,
            "path": paths[task.name],
        }
        plan.append((row, job))
    return plan


def _hash(*settings: object) -> str:
    """Return a digest of all that was said about a run, but its seed."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


# -- Runs ----------------------------------------------------------------------------------------


def _spawn(job: Job, timeout: float | None, log: Path) -> Row:
    """Run a job in a process of its own; RuntimeError says why it failed, `log` what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder, "row.json"), Path(folder, "output.txt")
        child = _processes().Process(target=_worker.main, args=(job, str(result), str(output)))
        child.start()
        try:
            child.join(timeout)
            timed_out = child.is_alive()
        finally:
            if child.is_alive():
                _end(child)
        if result.is_file():
            return json.loads(result.read_text(encoding="utf-8"))
        text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
        code = child.exitcode or 0
    if timed_out:
        error = f"ended after {timeout:g} seconds"
    elif code < 0:
        error = f"ended by {signal.Signals(-code).name}"
    else:
        error = (text.strip() or f"exit code {code}").splitlines()[-1]
    log.parent.mkdir(exist_ok=True)
    log.write_text(text, encoding="utf-8")
    raise RuntimeError(error)


@cache
def _processes() -> Any:
    """Return what starts processes.

    On Linux they are forked from one that has imported everything, which would take longer than
    many a run; elsewhere that is not safe.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_worker.__name__, "scanpy", "scvi.model", "sctool.tl"])
    return context


def _end(child: Any) -> None:
    """End a run, and a peer that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        child.kill()
    child.join()


def _current(rows: Sequence[Row]) -> list[Row]:
    """Return the last row of each run, of the last settings of each task, method and protocol."""

    def group(row: Row) -> tuple[str, ...]:
        return row["task"], row["method"], row["protocol"]

    settings = {group(row): row["config"] for row in rows}
    return list({row["id"]: row for row in rows if row["config"] == settings[group(row)]}.values())

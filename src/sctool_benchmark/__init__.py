"""The experiments of the papers, our methods and their peers, through one command.

A *suite* is a TOML file of tasks and, if need be, of variants of methods; `run` runs every
(task, method, protocol, seed) of it in a process of its own and writes ``results.jsonl`` (the
source of truth, one run a line), ``results.csv`` and ``table.md``.

===============  ================================================================================
``_tasks.py``    what a suite may say, and how a task parts cells into reference and query
``_worker.py``   one run: predict, then score
``_cluster.py``  one run without a reference
``_regroup.py``  for a floor: cluster the cells that a method rejects
``_run.py``      all runs: plan, resume, report progress; the command line
``_report.py``   the tables
===============  ================================================================================
"""

from sctool_benchmark._run import run
from sctool_benchmark._tasks import (
    Method,
    Split,
    Suite,
    Task,
    load_suite,
    read,
    shipped_suites,
    split,
)

__all__ = [
    "Method",
    "Split",
    "Suite",
    "Task",
    "load_suite",
    "read",
    "run",
    "shipped_suites",
    "split",
]

"""The experiments of the papers, our methods and their peers, through one command.

It is no part of the installed library: ``python -m sctool_benchmark`` runs it from a clone. A
*suite* names tasks and methods; every (task, method, protocol, seed) of it is run in a process of
its own. ``results.jsonl`` has one line for each run, and ``results.csv`` and ``table.md`` are made
from it.

=================  ==============================================================================
``__main__.py``    the command line
``_tasks.py``      what a suite may say, and how a task parts cells into reference and query
``_run.py``        all runs: plan, resume, report progress
``_worker.py``     one run: predict, then score
``_baselines.py``  floors that are no method of the library
``_rivals.py``     the classifiers that scNym's paper compares with
``_zinb.py``       the auto-encoders that CICL is compared with; those that scDET is compared with,
                   which learn from a labelled reference, are in ``_zinb_labelled.py``
``_report.py``     the tables
``_metrics.py``    scores that only the tables have
``scale.py``       a command of its own: saved models on large files
``suites``         tasks and methods of each experiment
``methods.toml``   variants of methods, and peers
``data.toml``      data sets
``peers``          programs that run other packages, and the command that makes their environments
``openproblems``   the protocol of Open Problems, and our component in its form
=================  ==============================================================================
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

"""The command line: ``python -m sctool_benchmark``, from a clone with an editable install."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sctool.cli import pipe_may_close
from sctool_benchmark._run import run
from sctool_benchmark._tasks import PROTOCOLS, known_methods, load_suite, shipped_suites

PROG = "python -m sctool_benchmark"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",")]

    top = argparse.ArgumentParser(
        prog=PROG,
        description="Run methods on tasks, each in a process of its own, and tabulate the metrics.",
        epilog="exit codes: 0 done, 1 a run failed, 2 the arguments are wrong",
    )
    top.add_argument("--suite", default="quick", metavar="NAME|FILE", help="default: %(default)s")
    top.add_argument("--methods", type=names, metavar="A,B", help="default: all of the suite")
    top.add_argument(
        "--protocols", type=names, default=list(PROTOCOLS), metavar="A,B", help="default: both"
    )
    top.add_argument("--seeds", type=int, metavar="N", help="default: what the suite says")
    top.add_argument("--timeout", type=float, metavar="SECONDS", help="limit of one run")
    top.add_argument("--list", action="store_true", help="list suites and methods, and end")
    top.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder of the results")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args(argv)
    if args.list:
        with pipe_may_close():
            print_list()
        return 0
    try:
        if args.out is None:
            raise ValueError("give the folder of the results: -o DIR")
        rows = run(
            args.suite, args.methods, args.protocols, args.seeds, args.out, timeout=args.timeout
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    n_failed = int(rows["error"].notna().sum())
    print(f"{len(rows) - n_failed} of {len(rows)} runs succeeded: see {args.out / 'table.md'}")
    return int(n_failed > 0)


def print_list() -> None:
    """Print the suites of the package, and all methods by name."""
    for name in shipped_suites():
        suite = load_suite(name)
        print(f"{name} (seeds: {suite.seeds})")
        for task in suite.tasks:
            print(f"    {task.name}: {task.kind}, {task.data}")
        print(f"    methods: {', '.join(method.name for method in suite.methods)}")
    print(f"all methods: {', '.join(known_methods())}")


if __name__ == "__main__":
    sys.exit(main())

"""Make the environments of peers: ``python -m sctool_benchmark.peers install NAME ...``."""

import argparse
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from sctool_benchmark.peers import COMMAND, REQUIREMENTS, folder, names, python_of


def install(name: str, into: Path) -> None:
    """Make the environment of a peer anew.

    Parameters
    ----------
    name
        One of `names`.
    into
        Folder that will hold the environment, in a folder of this name.

    Raises
    ------
    subprocess.CalledProcessError
        pip failed; it has said why.
    """
    venv.create(into / name, with_pip=True, clear=True)
    pip = [str(python_of(name, into)), "-m", "pip", "install", "--quiet"]
    files = {REQUIREMENTS / f"{name}.txt": [], REQUIREMENTS / f"{name}.no-deps.txt": ["--no-deps"]}
    for file, options in files.items():
        if file.exists():
            subprocess.run([*pip, *options, "--requirement", str(file)], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__.splitlines()[0].replace("``", "")
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the peers, and which of them have an environment")
    one = commands.add_parser("install", help="make the environments of peers")
    one.add_argument("names", nargs="+", choices=names(), metavar="NAME", help=", ".join(names()))
    one.add_argument("--into", type=Path, metavar="DIR", help=f"default: {folder()}")
    args = parser.parse_args(argv)
    if args.command == "list":
        for name in names():
            path = python_of(name)
            print(f"{name:12} {path if path.exists() else 'not installed'}")
        return 0
    into = (args.into or folder()).absolute()
    failed = []
    for name in args.names:
        try:
            install(name, into)
        except subprocess.CalledProcessError:
            failed.append(name)
    if failed:
        print(f"could not be installed: {', '.join(failed)}", file=sys.stderr)
    elif args.into and into != folder():
        print(f"to use them: export SCTOOL_PEERS_DIR={into}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

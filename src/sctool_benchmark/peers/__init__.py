"""Other packages, each run by a script in an environment of its own, and where these are.

``requirements/NAME.txt`` pins what the environment of a peer holds; of what must not bring its own
old dependencies ``requirements/NAME.no-deps.txt``. The environments are made by
``python -m sctool_benchmark.peers install NAME``. The scripts import what is in them, and of this
package only ``_protocol.py``, which lies beside them.
"""

import os
import sys
from pathlib import Path

COMMAND = "python -m sctool_benchmark.peers"
REQUIREMENTS = Path(__file__).parent / "requirements"


def names() -> list[str]:
    """Return the names of the peers that have an environment."""
    found = {path.name.split(".")[0] for path in REQUIREMENTS.glob("*.txt")}
    return sorted(found)


def folder() -> Path:
    """Return the folder of the environments.

    It is ``SCTOOL_PEERS_DIR``, else ``sctool/peers`` in the user's cache.
    """
    if told := os.environ.get("SCTOOL_PEERS_DIR"):
        return Path(told).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "sctool", "peers")


def python_of(name: str, into: Path | None = None) -> Path:
    """Return where the interpreter of a peer is, or is to be."""
    within = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return Path(into or folder(), name, *within)


def interpreter(name: str) -> str:
    """Return the interpreter of a peer.

    Raises
    ------
    RuntimeError
        It has no environment: the message says which command makes it.
    """
    path = python_of(name)
    if name not in names():
        raise RuntimeError(f"no requirements for a peer {name!r}: there are those of {names()}")
    if not path.exists():
        raise RuntimeError(
            f"the peer {name!r} has no environment: {str(path)!r} is not there; make it by "
            f"'{COMMAND} install {name}', or set SCTOOL_PEERS_DIR to the folder that holds it"
        )
    return str(path)

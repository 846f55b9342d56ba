"""sctool: cell type annotation for scanpy, with detection of novel cell types.

``sctool.tl.annotate(adata, ref)`` assigns known types, flags novel cells and scores its confidence
in each assignment. Submodules are imported on first use.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sctool import datasets, metrics, model, pl, tl
    from sctool.model import models

__all__ = ["__version__", "datasets", "metrics", "model", "models", "pl", "tl"]
#: Name on the package index, where `sctool` is not available.
DISTRIBUTION = "sctool-annotate"
__version__ = version(DISTRIBUTION)

# On cores that other programs use as well, OpenMP threads that busy-wait can make training take
# several times as long. Torch reads this when it is loaded, which importing sctool does not do; if
# it was loaded before, training warns.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("sctool.model").models
    if name in __all__:
        return import_module(f"sctool.{name}")
    raise AttributeError(f"module 'sctool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

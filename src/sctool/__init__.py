"""sctool: cell type annotation for scanpy that says what it does not know.

``sctool.tl.annotate(adata, ref)`` names the cells of known types, flags the others, and says how
far each answer can be trusted. The submodules are imported when first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sctool import datasets, metrics, model, pl, tl

__all__ = ["__version__", "datasets", "metrics", "model", "pl", "tl"]
#: What is installed: the package index has no room for `sctool` itself.
DISTRIBUTION = "sctool-annotate"
__version__ = version(DISTRIBUTION)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"sctool.{name}")
    raise AttributeError(f"module 'sctool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

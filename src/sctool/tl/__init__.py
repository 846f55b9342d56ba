"""Tools: AnnData in, named slots out."""

from sctool.tl._annotate import annotate
from sctool.tl._explain import explain

__all__ = ["annotate", "explain"]

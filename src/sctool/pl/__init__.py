"""Plots that scanpy lacks; all else is ``scanpy.pl`` on the slots that ``sctool.tl`` writes."""

from sctool.pl._confusion import confusion
from sctool.pl._explain import explain
from sctool.pl._mls import mls
from sctool.pl._reliability import reliability

__all__ = ["confusion", "explain", "mls", "reliability"]

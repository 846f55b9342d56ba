"""Plots that scanpy does not provide; for all others use ``scanpy.pl``."""

from sctool.pl._confusion import confusion
from sctool.pl._explain import explain
from sctool.pl._mls import mls
from sctool.pl._reliability import reliability

__all__ = ["confusion", "explain", "mls", "reliability"]

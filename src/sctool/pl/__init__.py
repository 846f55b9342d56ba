"""Plots that scanpy does not provide; for all others use ``scanpy.pl``."""

from sctool.pl._annotation import annotation
from sctool.pl._composition import composition
from sctool.pl._confidence import confidence
from sctool.pl._confusion import agreement, confusion
from sctool.pl._explain import explain
from sctool.pl._history import history
from sctool.pl._markers import markers
from sctool.pl._mls import mls
from sctool.pl._novel import novel
from sctool.pl._reliability import reliability
from sctool.pl._risk import risk

__all__ = [
    "agreement",
    "annotation",
    "composition",
    "confidence",
    "confusion",
    "explain",
    "history",
    "markers",
    "mls",
    "novel",
    "reliability",
    "risk",
]

"""Tools that check, annotate, cluster, evaluate and explain; results are written to the AnnData."""

from sctool.tl._annotate import annotate
from sctool.tl._check_reference import check_reference
from sctool.tl._cluster import cluster
from sctool.tl._evaluate import evaluate
from sctool.tl._explain import explain
from sctool.tl._rename_novel import rename_novel

__all__ = ["annotate", "check_reference", "cluster", "evaluate", "explain", "rename_novel"]

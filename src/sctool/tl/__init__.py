"""Tools that check, annotate, cluster, evaluate, explain, name, map and report.

Results are written to the AnnData; a report is a file.
"""

from sctool.tl._annotate import annotate
from sctool.tl._check_reference import check_reference
from sctool.tl._cluster import cluster
from sctool.tl._evaluate import evaluate
from sctool.tl._explain import explain
from sctool.tl._map_to_ontology import map_to_ontology
from sctool.tl._project_umap import project_umap
from sctool.tl._rename_novel import rename_novel
from sctool.tl._report import report

__all__ = [
    "annotate",
    "check_reference",
    "cluster",
    "evaluate",
    "explain",
    "map_to_ontology",
    "project_umap",
    "rename_novel",
    "report",
]

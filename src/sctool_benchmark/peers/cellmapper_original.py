#!/usr/bin/env python3
"""Run CellMapper with its defaults.

Without an embedding of the user's it makes one by canonical correlation analysis of both sides'
log1p values; labels are transferred by a Gaussian kernel over 30 neighbours.
"""

from _protocol import LABELS, log1p, serve
from cellmapper import CellMapper


def annotate(reference, query, args):
    """Embed both sides, and map labels onto the query."""
    log1p(reference)
    log1p(query)
    mapper = CellMapper(query, reference)
    mapper.compute_neighbors()
    mapper.compute_mapping_matrix()
    proba = mapper.map_obs(LABELS, return_probabilities=True)
    return {"prediction": query.obs[f"{LABELS}_pred"], "proba": proba.sparse.to_dense()}


if __name__ == "__main__":
    serve(annotate, "cellmapper")

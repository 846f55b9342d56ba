#!/usr/bin/env python3
"""Run CellTypist, trained on the reference.

Its own defaults: all genes, C of 1, no majority voting. With ``--majority-voting`` the names are
those of its own clusters of the query; probabilities stay those of the cells.
"""

import celltypist
from _protocol import LABELS, log1p, serve


def annotate(reference, query, args):
    """Train and annotate, on log1p of counts per 10,000, which it asks for."""
    log1p(reference)
    log1p(query)
    model = celltypist.train(reference, labels=LABELS, n_jobs=1)
    found = celltypist.annotate(query, model=model, majority_voting=args.majority_voting)
    column = "majority_voting" if args.majority_voting else "predicted_labels"
    return {"prediction": found.predicted_labels[column], "proba": found.probability_matrix}


if __name__ == "__main__":
    serve(annotate, "celltypist", "--majority-voting")

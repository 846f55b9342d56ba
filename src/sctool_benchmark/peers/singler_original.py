#!/usr/bin/env python3
"""Run SingleR (the package ``singler``, on SingleR's own C++ library).

For references of single cells its documentation asks for markers by pairwise tests between cells
(``marker_method="auc"``, ten a pair), not by the fold changes that serve bulk references. Its
scores are rank correlations, no probabilities; what its own pruning of doubtful labels looks at,
how far the best score is above the median over the types, negated, is the novelty score.
"""

import numpy as np
import singler
from _protocol import LABELS, log1p, serve


def annotate(reference, query, args):
    """Build the reference and classify, on log1p of counts per 10,000."""
    log1p(reference)
    log1p(query)
    found = singler.annotate_single(
        test_data=query.X.T.tocsr(),
        test_features=list(query.var_names),
        ref_data=reference.X.T.tocsr(),
        ref_features=list(reference.var_names),
        ref_labels=reference.obs[LABELS].astype(str).tolist(),
        train_args={"marker_method": "auc"},
    )
    scores = found["scores"]
    table = np.column_stack([scores[name] for name in scores.get_column_names()])
    above = table.max(axis=1) - np.median(table, axis=1)
    return {"prediction": found["best"], "novel_score": -above}


if __name__ == "__main__":
    serve(annotate, "singler")

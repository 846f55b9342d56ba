#!/usr/bin/env python3
"""Run popV: the vote of seven of its methods, which are its default without an ontology.

These are neighbours after three integrations (BBKNN, Harmony, scVI), scANVI, CellTypist, boosted
trees and a support vector machine. As it is used to train on a reference: on 4,000 genes, some of
the methods on 300 cells of each type. The files of an ontology would have to be downloaded, and
without them popV leaves out OnClass. The score is the share of its methods that give the name.
"""

from _protocol import LABELS, serve
from popv.annotation import annotate_data
from popv.preprocessing import Process_Query


def annotate(reference, query, args):
    """Train all methods and vote."""
    cells = Process_Query(
        query,
        reference,
        ref_labels_key=LABELS,
        ref_batch_key="batch",
        query_batch_key="batch",
        cl_obo_folder=False,
        prediction_mode="retrain",
        save_path_trained_models="models",
    ).adata
    annotate_data(cells)
    # It leaves out the cells of batches with fewer than eleven: these get no name.
    found = cells.obs[cells.obs["_dataset"] == "query"].reindex(query.obs_names)
    score = found["popv_prediction_score"].astype(float) / len(cells.uns["prediction_keys_seen"])
    score = score.fillna(0)
    return {
        "prediction": found["popv_prediction"].astype(object).fillna("unknown"),
        "score": score,
        "novel_score": 1 - score,
    }


if __name__ == "__main__":
    serve(annotate, "popv")

#!/usr/bin/env python3
"""Run a linear support vector machine on all genes, the floor of many comparisons.

scikit-learn's ``LinearSVC`` with its defaults on log1p of counts per 10,000; probabilities are its
margins calibrated on held-out cells (``CalibratedClassifierCV``).
"""

import pandas as pd
from _protocol import LABELS, log1p, serve
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import LinearSVC


def annotate(reference, query, args):
    """Train and predict."""
    log1p(reference)
    log1p(query)
    labels = reference.obs[LABELS].astype(str)
    n_folds = min(5, int(labels.value_counts().min()))
    model = CalibratedClassifierCV(
        LinearSVC(random_state=args.seed), cv=n_folds, ensemble=False
    ).fit(reference.X, labels)
    proba = pd.DataFrame(model.predict_proba(query.X), columns=model.classes_)
    machine = model.calibrated_classifiers_[0].estimator
    return {"prediction": machine.predict(query.X), "proba": proba}


if __name__ == "__main__":
    serve(annotate, "scikit-learn")

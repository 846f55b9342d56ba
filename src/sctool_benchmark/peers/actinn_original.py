#!/usr/bin/env python3
"""Run ACTINN, in its rewriting ``actinn-jax``, with its defaults, on counts."""

import pandas as pd
from _protocol import LABELS, serve
from actinn_jax import train_reference


def annotate(reference, query, args):
    """Train and predict."""
    model = train_reference(reference, LABELS, print_cost=False)
    frame, proba = model.predict_frame(query)
    return {"prediction": frame["celltype"], "proba": pd.DataFrame(proba, columns=model.classes)}


if __name__ == "__main__":
    serve(annotate, "actinn-jax")

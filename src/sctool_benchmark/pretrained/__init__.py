"""Models that others trained, on data sets with published labels."""

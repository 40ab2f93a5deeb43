"""Folders that `evaluate.load("<folder>")` reads; the metrics themselves are in `hf_clipplus.evaluation.metrics`."""

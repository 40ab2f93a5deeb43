"""Folder of one metric for `evaluate.load`."""

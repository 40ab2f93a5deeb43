"""Pipelines for tasks that transformers has none for."""

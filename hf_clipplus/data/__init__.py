"""Rows, captions, images and collators, and the embedded worlds."""

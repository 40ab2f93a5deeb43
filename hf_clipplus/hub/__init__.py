"""Pushes models of the zoo: weights, processor, card, numbers and, if wanted, their own code, in one commit."""

from .bundle import export_remote_code
from .repository import Push, push, write_repository

__all__ = ["Push", "export_remote_code", "push", "write_repository"]

"""The variants, one folder each, and the towers they share."""

# First of all: it sets off the registration, which must not meet a configuration module of ours half loaded.
from transformers import AutoConfig  # noqa: F401

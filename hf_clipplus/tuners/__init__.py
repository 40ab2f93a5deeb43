"""PEFT methods of the zoo, laid out like peft's own: config, layer and model per method."""

import peft  # noqa: F401  (first: importing it registers every method here, each of which needs it whole)

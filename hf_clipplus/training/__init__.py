"""Training of the zoo's models on top of `transformers.Trainer`."""

from .arguments import ContrastiveTrainingArguments, parse_arguments
from .calibrate import calibrate, set_auto_bias
from .checkpoints import last_complete_checkpoint
from .trainer import ContrastiveTrainer, NonFiniteLossError

__all__ = [
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "NonFiniteLossError",
    "calibrate",
    "last_complete_checkpoint",
    "parse_arguments",
    "set_auto_bias",
]

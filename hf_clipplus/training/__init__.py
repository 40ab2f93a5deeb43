"""Training of the zoo's models on top of `transformers.Trainer`."""

from .arguments import ContrastiveTrainingArguments, parse_arguments
from .calibrate import calibrate, set_auto_bias
from .checkpoints import last_complete_checkpoint
from .episodic import EpisodicTrainer, EpisodicTrainingArguments
from .evaluating_trainer import EvaluatingTrainer, NonFiniteLossError
from .trainer import ContrastiveTrainer

__all__ = [
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "EpisodicTrainer",
    "EpisodicTrainingArguments",
    "EvaluatingTrainer",
    "NonFiniteLossError",
    "calibrate",
    "last_complete_checkpoint",
    "parse_arguments",
    "set_auto_bias",
]

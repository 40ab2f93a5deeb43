"""Arguments of contrastive training, and how a script reads them: a YAML file, the command line, or both."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml
from transformers import HfArgumentParser, TrainingArguments


@dataclass
class ContrastiveTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of `ContrastiveTrainer`."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep False: the collator needs the raw columns of the data set."}
    )
    gradient_cache_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Encode this many images, and captions, at a time and still get the gradients of the whole batch "
            "(one more forward pass). None: encode the batch at once."
        },
    )
    max_logit_scale: float = field(
        default=100.0, metadata={"help": "Upper limit of the inverse temperature exp(logit_scale); the lower is 1."}
    )
    bias_init: str = field(
        default="auto",
        metadata={
            "help": "Where the bias of the sigmoid loss starts: 'config' takes the model's (-10), 'auto' measures the "
            "mean cosine and the share of positives on a few batches and makes the mean pair as likely as that share."
        },
    )


def parse_arguments(dataclasses: Sequence[type], description: str, argv: Sequence[str] | None = None) -> tuple:
    """Read dataclasses from `--config file.yaml` and the command line; what stands on the command line wins.

    Args:
        dataclasses: types whose fields have `metadata={"help": ...}`.
        description: first lines of `--help`.
        argv: arguments without the program's name; `sys.argv[1:]` when None.

    Returns:
        One instance per dataclass.

    Raises:
        SystemExit: unknown or malformed arguments, with the usage on stderr.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(dataclasses, description=description)
    parser.add_argument("--config", help="YAML file with any of these arguments (name: value).")
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 >= len(argv):
            parser.error("--config needs a file name.")
        with open(argv[at + 1], encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
        known = {action.dest: action for action in parser._actions}
        unknown = sorted(set(values) - set(known))
        if unknown:
            parser.error(f"{argv[at + 1]}: unknown arguments {', '.join(unknown)}; --help lists those that exist.")
        from_file = []
        for key, value in values.items():
            from_file.append(f"--{key}")
            from_file += [str(entry) for entry in (value if isinstance(value, list) else [value])]
        argv = from_file + argv[:at] + argv[at + 2 :]
    return parser.parse_args_into_dataclasses(argv)[: len(dataclasses)]

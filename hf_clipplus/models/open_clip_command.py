"""The command line of converters between open_clip's layout and folders of the zoo."""

import argparse
from collections.abc import Callable
from pathlib import Path

from transformers import AutoProcessor

from .open_clip_layout import write_checkpoint


def run(
    arguments: list[str] | None,
    description: str,
    *,
    read: Callable,
    write: Callable,
    model_class: type,
    processor_class: type,
) -> None:
    """Convert one checkpoint and print what became of each key.

    Args:
        arguments: of the command line; `sys.argv[1:]` when None.
        description: first lines of `--help`.
        read: (path, vision_heads=, text_heads=) -> model and report.
        write: model -> tensors in open_clip's layout and report.
        model_class, processor_class: of the zoo.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    forth = actions.add_parser("from-open-clip", help="checkpoint file -> folder")
    forth.add_argument("source")
    forth.add_argument("destination", type=Path)
    forth.add_argument("--vision-heads", type=int, help="(width / 64)")
    forth.add_argument("--text-heads", type=int, help="(width / 64)")
    forth.add_argument("--processor", help="folder or Hub name of the CLIP processor to save too")
    back = actions.add_parser("to-open-clip", help="folder -> checkpoint file (.safetensors or .pt)")
    back.add_argument("source")
    back.add_argument("destination", type=Path)
    args = parser.parse_args(arguments)

    if args.action == "to-open-clip":
        state, report = write(model_class.from_pretrained(args.source))
        print(report)
        write_checkpoint(state, args.destination)
        return
    model, report = read(args.source, vision_heads=args.vision_heads, text_heads=args.text_heads)
    print(report)
    model.save_pretrained(args.destination)
    if args.processor is None:
        print(f"no processor was saved: add one to {args.destination}, or run again with --processor.")
        return
    stock = AutoProcessor.from_pretrained(args.processor)
    stock.tokenizer.model_max_length = model.config.text_config.max_position_embeddings
    processor_class(stock.image_processor, stock.tokenizer).save_pretrained(args.destination)

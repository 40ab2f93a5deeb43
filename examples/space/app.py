"""A page to try the zoo's models on pictures and clips: name, segment, find, and learn from a few examples.

    python examples/space/prepare.py && python examples/space/app.py     # or: make space

The same folder is a Space of the Hub; README.md beside this file says how it gets there.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from models import Shelf
from page import Page

from hf_clipplus.training import parse_arguments

HERE = Path(__file__).resolve().parent
OUTPUTS = HERE.parent.parent / "outputs"
FOLDER = HERE if (HERE / "models").is_dir() else OUTPUTS / "space"
SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")


@dataclass
class AppArguments:
    """What is served, and where."""

    folder: str = field(default=str(FOLDER), metadata={"help": "Has models/ and samples/; prepare.py makes it."})
    port: int = field(default=7860, metadata={"help": "Port of the page."})
    host: str = field(default="127.0.0.1", metadata={"help": "0.0.0.0 lets other machines in."})


def theme() -> gr.themes.Base:
    """Colours, and fonts that every machine has: nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=SYSTEM_FONTS, font_mono=SYSTEM_FONTS
    ).set(
        block_label_background_fill="white",
        block_label_text_color="*body_text_color",
        block_label_shadow="none",
        block_title_background_fill="transparent",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_shadow="none",
        body_background_fill="white",
        body_text_color_subdued="*neutral_600",
    )


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((AppArguments,), __doc__, argv)
    folder = Path(args.folder)
    if not (folder / "models").is_dir():
        raise SystemExit(f"{folder} has no models: run examples/space/prepare.py first, or say --folder.")
    page = Page(Shelf(folder, OUTPUTS), folder / "samples")
    page.warm_up()
    page.blocks.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", args.host),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", args.port)),
        theme=theme(),
        css_paths=HERE / "style.css",
        allowed_paths=[str(folder / "samples")],
        max_file_size="50mb",
        footer_links=[],
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()

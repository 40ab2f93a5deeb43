"""A segmentation drawn over its picture, with a legend of the classes that occur."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_clipplus.data.images import load_image

GREY = (110, 110, 110)
LEGEND_FONT, SWATCH, PADDING = 15, 14, 8  # pixels


def class_colour(index: int) -> tuple[int, int, int]:
    """A colour for class `index`; neighbours in number differ strongly (golden-angle hues, two brightnesses)."""
    hue = int(index * 0.61803398875 % 1 * 255)
    picture = Image.new("HSV", (1, 1), (hue, 190 if index % 2 else 235, 235 if index % 3 else 175))
    return picture.convert("RGB").getpixel((0, 0))


def segmentation_overlay(
    image,
    labels,
    class_names: Sequence[str],
    *,
    opacity: float = 0.55,
    legend: bool = True,
    has_background: bool = True,
) -> Image.Image:
    """Draw label colours over a picture.

    Args:
        image: what `load_image` reads.
        labels: `[h, w]` integers of the picture's size, e.g. `GroupViTPlusSegmentation.labels`; 255 is left blank.
        class_names: name of each label.
        opacity: of the colours, in [0, 1].
        legend: add the names of the classes that occur, largest area first, below the picture.
        has_background: label 0 is the background: the picture shows through, greyed.

    Raises:
        ValueError: sizes differ, or a label has no name.
    """
    picture = load_image(image)
    labels = np.asarray(labels)
    if labels.shape != (picture.height, picture.width):
        raise ValueError(
            f"labels of {list(labels.shape)} do not fit a picture of [{picture.height}, {picture.width}] (h, w)."
        )
    present, counts = np.unique(labels[labels != 255], return_counts=True)
    if len(present) and not 0 <= present.min() <= present.max() < len(class_names):
        raise ValueError(f"label {present.max()} has no name, there are {len(class_names)} names.")
    colours = np.array(picture, dtype=np.float32)
    for label in present:
        colour = GREY if has_background and label == 0 else class_colour(int(label))
        mask = labels == label
        colours[mask] = (1 - opacity) * colours[mask] + opacity * np.float32(colour)
    drawn = Image.fromarray(colours.round().clip(0, 255).astype(np.uint8))
    if not legend:
        return drawn
    order = [int(label) for label in present[np.argsort(-counts, kind="stable")]]
    entries = [(class_names[label], GREY if has_background and label == 0 else class_colour(label)) for label in order]
    return _with_legend(drawn, entries)


def _with_legend(picture: Image.Image, entries: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """The picture with rows of swatches and names below it."""
    font = ImageFont.load_default(size=LEGEND_FONT)
    cell = max([SWATCH + 3 * PADDING + ceil(font.getlength(name)) for name, _ in entries], default=1)
    width = max(picture.width, cell + PADDING)
    columns = max(1, (width - PADDING) // cell)
    line = LEGEND_FONT + PADDING
    height = ceil(len(entries) / columns) * line + PADDING if entries else 0
    page = Image.new("RGB", (width, picture.height + height), "white")
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    for place, (name, colour) in enumerate(entries):
        x = PADDING + place % columns * cell
        y = picture.height + PADDING // 2 + place // columns * line
        draw.rectangle((x, y + 2, x + SWATCH, y + 2 + SWATCH), fill=colour)
        draw.text((x + SWATCH + PADDING, y), name, "#1f2328", font)
    return page

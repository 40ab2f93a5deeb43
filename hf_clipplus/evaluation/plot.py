"""A plain line plot drawn with Pillow: accuracy over shots, say, without a plotting library."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8a4f9e", "#b8860b", "#2f9e9e", "#555555", "#d1495b")
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 46, 44


def line_plot(
    series: Mapping[str, Sequence[float]],
    ticks: Sequence[str | int],
    *,
    title: str,
    x_label: str,
    size: tuple[int, int] = (760, 440),
) -> Image.Image:
    """One line per entry of `series` over evenly spaced `ticks`.

    Args:
        series: name -> one value per tick.
        ticks: labels below the points.
        title, x_label: texts.
        size: width and height in pixels.

    Raises:
        ValueError: nothing to draw, or a series of another length than `ticks`.
    """
    wrong = [name for name, values in series.items() if len(values) != len(ticks)]
    if not series or not ticks or wrong:
        raise ValueError(f"expected {len(ticks)} values in every series; wrong: {wrong or 'there are none'}.")
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    width, height = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM
    values = [value for line in series.values() for value in line]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def place(tick: int, value: float) -> tuple[float, float]:
        x = LEFT + width * (tick / (len(ticks) - 1) if len(ticks) > 1 else 0.5)
        return x, TOP + height * (high - value) / (high - low)

    draw.text((LEFT, 14), title, "black", ImageFont.load_default(size=17))
    draw.text((LEFT + width / 2, size[1] - 12), x_label, "black", font, anchor="mm")
    for step in range(6):
        value = low + (high - low) * step / 5
        y = place(0, value)[1]
        draw.line([(LEFT, y), (LEFT + width, y)], "#e4e4e4")
        draw.text((LEFT - 8, y), f"{value:.1f}", "#555555", font, anchor="rm")
    for tick, label in enumerate(ticks):
        draw.text((place(tick, low)[0], TOP + height + 14), str(label), "#555555", font, anchor="mm")
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(tick, value) for tick, value in enumerate(line)]
        if len(points) > 1:
            draw.line(points, colour, width=3, joint="curve")
        for x, y in points:
            draw.ellipse([(x - 4, y - 4), (x + 4, y + 4)], colour)
        y = TOP + 10 + 20 * number
        draw.line([(size[0] - RIGHT + 16, y), (size[0] - RIGHT + 38, y)], colour, width=3)
        draw.text((size[0] - RIGHT + 46, y), name, "black", font, anchor="lm")
    return image

"""Colours and canvases of the clip-art worlds: names by CIELAB, backgrounds that show a drawing, pasting."""

from functools import lru_cache

import numpy as np
from PIL import Image

# Prototypes of the colour names, sRGB; a pixel takes the name of the nearest prototype in CIELAB.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((0, 0, 0), (40, 40, 40)),
    "grey": ((90, 90, 90), (128, 128, 128), (170, 170, 170), (200, 200, 200)),
    "white": ((255, 255, 255), (232, 232, 232)),
    "red": ((255, 0, 0), (200, 20, 30), (150, 10, 20), (230, 60, 60)),
    "orange": ((255, 140, 0), (240, 120, 30), (255, 165, 60)),
    "yellow": ((255, 255, 0), (240, 220, 40), (255, 240, 130), (220, 200, 0)),
    "green": ((0, 128, 0), (0, 220, 0), (120, 200, 60), (20, 70, 20), (150, 220, 150), (60, 140, 90)),
    "turquoise": ((64, 224, 208), (0, 160, 160), (0, 230, 255)),
    "blue": ((0, 0, 255), (30, 60, 150), (70, 130, 220), (150, 190, 240), (0, 0, 100), (0, 160, 240)),
    "purple": ((128, 0, 128), (150, 80, 200), (80, 20, 120), (190, 150, 230)),
    "pink": ((255, 160, 190), (255, 105, 180), (255, 0, 255), (250, 200, 215), (220, 20, 130)),
    "brown": ((110, 60, 20), (150, 90, 40), (80, 45, 25), (165, 110, 70)),
    "beige": ((225, 200, 165), (240, 220, 190), (200, 180, 140)),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
_ACHROMATIC = 3  # the first three names
_WARM = [COLOUR_NAMES.index(name) for name in ("orange", "brown", "beige")]  # shades of one colour to the eye
MIN_COLOUR_SHARE = 0.2  # of a drawing's visible pixels: below it, a chromatic colour does not name the drawing
MANY_COLOURS_SHARE = 0.15  # with three chromatic colours above it a drawing is "colourful"
BLACK_AND_WHITE_SHARE = 0.12  # of each, where together they are more than the grey between them

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "light grey": (205, 205, 205),
    "dark grey": (85, 85, 85),
    "black": (12, 12, 12),
    "light blue": (170, 210, 245),
    "dark blue": (25, 40, 110),
    "light green": (180, 230, 170),
    "dark green": (20, 80, 40),
    "light yellow": (255, 245, 175),
    "pink": (250, 190, 210),
    "lavender": (205, 190, 240),
    "orange": (245, 160, 70),
    "beige": (235, 215, 185),
    "brown": (115, 70, 35),
    "dark red": (130, 20, 30),
    "turquoise": (80, 200, 195),
}
BACKGROUND_NAMES: tuple[str, ...] = tuple(BACKGROUNDS)
BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), dtype=np.uint8)  # [B, 3]
CHROMA_WEIGHT = 0.5  # in the distance below: a shape is seen by its lightness first
VISIBLE_DISTANCE = 38.0  # CIELAB distance from which a pixel stands out from the background
VISIBLE_SHARE = 0.5  # of a drawing's pixels that must stand out
WHITE_DISTANCE, WHITE_SHARE = 15.0, 0.1  # the same for the white of evaluations, where outlines are enough


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB values 0..255, [..., 3], to CIELAB under D65, [..., 3]."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 841 / 108 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_BACKGROUND_LAB = srgb_to_lab(BACKGROUND_RGB)  # [B, 3]


@lru_cache(maxsize=1)
def _colour_table() -> np.ndarray:
    """The index of the nearest colour name for every colour of 5 bits a channel, [32, 32, 32]."""
    steps = np.arange(32) * (255 / 31)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    lab = srgb_to_lab(cube)
    best = np.full(lab.shape[:-1], np.inf)
    table = np.zeros(lab.shape[:-1], dtype=np.int64)
    for index, prototypes in enumerate(COLOURS.values()):
        for prototype in srgb_to_lab(np.array(prototypes)):
            distance = ((lab - prototype) ** 2).sum(-1)
            table[distance < best] = index
            best = np.minimum(best, distance)
    return table


def colour_name(rgb: np.ndarray, weight: np.ndarray) -> str:
    """The colour a person would give a drawing, measured from its pixels.

    Every pixel votes for the nearest name in CIELAB. A chromatic colour beats outlines and white areas as soon as it
    has a fifth of the votes; three chromatic colours make the drawing colourful.

    Args:
        rgb: uint8 pixels, [N, 3], not premultiplied.
        weight: their visible alpha, [N]; pixels that are hidden or transparent weigh 0.

    Returns:
        One of `COLOUR_NAMES`, "black and white" or "colourful".

    Raises:
        ValueError: if no pixel is visible.
    """
    coarse = (rgb.astype(np.int64) * 31 + 127) // 255
    votes = np.bincount(_colour_table()[tuple(coarse.T)], weights=weight, minlength=len(COLOUR_NAMES))
    if votes.sum() <= 0:
        raise ValueError("colour_name: expected at least one visible pixel, got weights that are all 0")
    votes = votes / votes.sum()
    chromatic = votes[_ACHROMATIC:]
    apart = np.append(np.delete(votes, _WARM)[_ACHROMATIC:], votes[_WARM].sum())
    if (apart >= MANY_COLOURS_SHARE).sum() >= 3:
        return "colourful"
    if chromatic.max() >= MIN_COLOUR_SHARE:
        return COLOUR_NAMES[_ACHROMATIC + int(chromatic.argmax())]
    if min(votes[0], votes[2]) >= BLACK_AND_WHITE_SHARE and votes[0] + votes[2] > votes[1]:
        return "black and white"
    return COLOUR_NAMES[int(votes.argmax())]


def visibility(image: np.ndarray, *, distance: float = VISIBLE_DISTANCE) -> np.ndarray:
    """The share of a drawing's visible pixels that stand out from each background.

    Args:
        image: RGBA drawing, uint8 [h, w, 4].
        distance: CIELAB distance from which a pixel stands out.

    Returns:
        shares 0..1, [B], in the order of `BACKGROUND_NAMES`.
    """
    pixels = image.reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 64]
    if len(pixels) == 0:
        return np.zeros(len(BACKGROUND_NAMES))
    pixels = pixels[:: max(1, len(pixels) // 256)]
    difference = srgb_to_lab(pixels[:, :3])[:, None] - _BACKGROUND_LAB[None]  # [N, B, 3]
    difference *= pixels[:, None, 3:] / 255  # what shows through the pixel is the background itself
    difference *= (1, CHROMA_WEIGHT, CHROMA_WEIGHT)
    return (np.linalg.norm(difference, axis=-1) > distance).mean(0)


def showing_backgrounds(shares: np.ndarray) -> np.ndarray:
    """Indices of the backgrounds on which enough stands out, the best three if there are fewer.

    Args:
        shares: from `visibility`, [B]; for several drawings, the least share of any.
    """
    enough = np.flatnonzero(shares >= VISIBLE_SHARE)
    return enough if len(enough) >= 3 else np.argsort(-shares, kind="stable")[:3]


def plain(size: int, colour: np.ndarray) -> np.ndarray:
    """A canvas of one colour, uint8 [size, size, 3]."""
    canvas = np.empty((size, size, 3), dtype=np.uint8)
    canvas[:] = colour
    return canvas


@lru_cache(maxsize=64)
def _ramp(size: int, direction: int) -> np.ndarray:
    """Weights 0..256 that rise downwards, upwards, to the right, or to the left, uint16 [size, size or 1, 1]."""
    ramp = np.linspace(0, 256, size).astype(np.uint16)
    ramp = ramp[::-1] if direction % 2 else ramp
    return ramp[:, None, None] if direction < 2 else ramp[None, :, None]


def gradient(size: int, start: np.ndarray, end: np.ndarray, *, direction: int) -> np.ndarray:
    """A canvas that runs from one colour to another, uint8 [size, size, 3]; direction is 0..3."""
    ramp = _ramp(size, direction)
    line = (start.astype(np.uint16) * (256 - ramp) + end.astype(np.uint16) * ramp) >> 8
    return np.ascontiguousarray(np.broadcast_to(line.astype(np.uint8), (size, size, 3)))


def fit(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height, at least 1, of a drawing scaled to a longest side with its aspect kept."""
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def paste(canvas: np.ndarray, sprite: np.ndarray, left: int, top: int) -> None:
    """Lay a premultiplied drawing over a canvas in place; what lies outside the canvas is cut.

    Args:
        canvas: uint8 [H, W, 3].
        sprite: premultiplied RGBA, uint8 [h, w, 4].
        left, top: place of the sprite's corner, pixels; may be negative.
    """
    height, width = canvas.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + sprite.shape[1], width), min(top + sprite.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    under = canvas[y0:y1, x0:x1]
    shown = under * (255 - part[..., 3:]).astype(np.uint16)
    shown += 128
    shown += shown >> 8  # with the shift below: a rounded division by 255
    shown >>= 8
    np.add(shown, part[..., :3], out=under, casting="unsafe")


def premultiplied(image: np.ndarray) -> tuple[Image.Image, ...]:
    """A drawing at full and at half size with colours multiplied by alpha, PIL images of mode RGBa."""
    full = Image.fromarray(image, "RGBA").convert("RGBa")
    return full, full.reduce(2)


def scaled(mips: tuple[Image.Image, ...], longest: int) -> np.ndarray:
    """A drawing from its mips at a longest side in pixels, premultiplied RGBA uint8 [h, w, 4]."""
    source = mips[1] if 2 * longest <= max(mips[0].size) else mips[0]
    return np.asarray(source.resize(fit(*mips[0].size, longest), Image.Resampling.BILINEAR))

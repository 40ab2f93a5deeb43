"""Pictures for people: queries with their best answers, right ones in green, and look-alike pairs with their texts."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hf_clipplus.data.images import load_image
from hf_clipplus.data.mmvp_source import ImagePair
from hf_clipplus.evaluation.metrics import similarity

WIDTH, MARGIN, GAP = 1200, 32, 14  # pixels
QUERY_WIDTH = 230
PAIRS_ACROSS = 3
TEXT, FAINT, RIGHT, FRAME = "#1f2328", "#656d76", "#1a7f37", "#d0d7de"
GREEN_FILL = "#e6f4ea"


def retrieval_gallery(
    images: Sequence,
    texts: Sequence[str],
    image_embeds: Tensor,
    text_embeds: Tensor,
    owner: Tensor,
    *,
    text_queries: Sequence[int] = (),
    image_queries: Sequence[int] = (),
    top: int = 5,
    title: str = "",
) -> Image.Image:
    """Draw the best answers to some queries, each with its cosine, 1200 px wide.

    Args:
        images: N entries that `load_image` reads; only those shown are read.
        texts: C strings.
        image_embeds: [N, D] L2-normalised.
        text_embeds: [C, D] L2-normalised.
        owner: [C] index of each text's image.
        text_queries: indices of texts to search images with.
        image_queries: indices of images to search texts with.
        top: answers shown per query, 3 to 8.
        title: heading of the picture.

    Returns:
        An RGB image. An answer in a green frame is right; where none is, the place of the best right one is told.

    Raises:
        ValueError: sizes disagree, there is no query, or a query index is out of range.
    """
    if len(images) != len(image_embeds) or not len(texts) == len(text_embeds) == len(owner):
        raise ValueError(
            f"expected one embedding per image and text and one owner per text, got {len(images)} images with "
            f"{len(image_embeds)} embeddings, {len(texts)} texts with {len(text_embeds)} and {len(owner)} owners"
        )
    if not len(text_queries) + len(image_queries):
        raise ValueError("there is nothing to draw: give text_queries or image_queries")
    for name, queries, size in (("text", text_queries, len(texts)), ("image", image_queries, len(images))):
        wrong = [query for query in queries if not 0 <= query < size]
        if wrong:
            raise ValueError(f"{name} queries {wrong} are out of range, there are {size}")
    if not 3 <= top <= 8:
        raise ValueError(f"top must be 3 to 8 for the answers to fit, got {top}")

    legend = "The number is the cosine similarity; green is the right answer."
    blocks = [_vertical([_lines(title, 30, TEXT, 2), _lines(legend, 16, FAINT, 1)])]
    if len(text_queries):
        blocks.append(_lines("Text to image: the best images for a text", 24, TEXT, 1))
    for query in text_queries:
        scores = similarity(text_embeds[query : query + 1], image_embeds)[0]
        own = torch.arange(len(images)) == owner[query]
        blocks.append(_text_query(texts[query], images, scores, own, top))
    if len(image_queries):
        blocks.append(_lines("Image to text: the best texts for an image", 24, TEXT, 1))
    for query in image_queries:
        scores = similarity(image_embeds[query : query + 1], text_embeds)[0]
        blocks.append(_image_query(images[query], texts, scores, owner == query, top))
    return _stack(blocks)


def pair_sheet(pairs: Sequence[ImagePair], *, correct: Sequence[bool] = (), title: str = "") -> Image.Image:
    """Draw look-alike pairs, each image above the text that is true of it, three pairs in a row.

    Args:
        pairs: to be drawn, in this order.
        correct: which pairs a model had right, they get a green frame; empty: no frames.
        title: heading of the picture.

    Raises:
        ValueError: there are no pairs, or another number of `correct`.
    """
    if not pairs:
        raise ValueError("there are no pairs to draw")
    if len(correct) not in (0, len(pairs)):
        raise ValueError(f"expected one entry of correct for each of {len(pairs)} pairs, got {len(correct)}")
    marks = list(correct) or [False] * len(pairs)
    width = (WIDTH - 2 * MARGIN - (PAIRS_ACROSS - 1) * 2 * GAP) // PAIRS_ACROSS
    drawn = [_pair(pair, bool(right), width) for pair, right in zip(pairs, marks, strict=True)]
    blocks = [_lines(title, 30, TEXT, 2)] if title else []
    for start in range(0, len(drawn), PAIRS_ACROSS):
        row = drawn[start : start + PAIRS_ACROSS]
        block = _canvas(WIDTH - 2 * MARGIN, max(pair.height for pair in row))
        for place, pair in enumerate(row):
            block.paste(pair, (place * (width + 2 * GAP), 0))
        blocks.append(block)
    return _stack(blocks)


def _pair(pair: ImagePair, right: bool, width: int) -> Image.Image:
    """The kind of a pair, its images side by side, and below each the text that is true of it."""
    side = (width - GAP) // 2
    texts = pair.texts if pair.first_is_true[0] else pair.texts[::-1]
    columns = [
        _vertical([_tile(image, side, right), _lines(text, 15, RIGHT if right else TEXT, 4, side)])
        for image, text in zip(pair.images, texts, strict=True)
    ]
    head = _lines(pair.pattern, 16, FAINT, 1, width)
    block = _canvas(width, head.height + max(column.height for column in columns))
    block.paste(head, (0, 0))
    for place, column in enumerate(columns):
        block.paste(column, (place * (side + GAP), head.height))
    return block


def _text_query(text: str, images: Sequence, scores: Tensor, own: Tensor, top: int) -> Image.Image:
    """One text at the left, its best images in a row."""
    best = _best(scores, top)
    side = (WIDTH - 2 * MARGIN - QUERY_WIDTH - top * GAP) // top
    left = _vertical(
        [_lines(text, 20, TEXT, 6, QUERY_WIDTH), _lines(_place(scores, own, top), 15, FAINT, 2, QUERY_WIDTH)]
    )
    block = _canvas(WIDTH - 2 * MARGIN, max(left.height, side + 30))
    block.paste(left, (0, 0))
    draw, font = ImageDraw.Draw(block), ImageFont.load_default(size=17)
    for place, index in enumerate(best):
        x = QUERY_WIDTH + GAP + place * (side + GAP)
        block.paste(_tile(images[index], side, bool(own[index])), (x, 0))
        draw.text((x + side / 2, side + 6), f"{scores[index]:.3f}", RIGHT if own[index] else TEXT, font, anchor="ma")
    return block


def _image_query(image: Any, texts: Sequence[str], scores: Tensor, own: Tensor, top: int) -> Image.Image:
    """One image at the left, its best texts below one another."""
    width = WIDTH - 2 * MARGIN - QUERY_WIDTH - GAP
    rows = []
    for index in _best(scores, top):
        right = bool(own[index])
        background = GREEN_FILL if right else "white"
        words = _lines(texts[index], 20, RIGHT if right else TEXT, 2, width - 100, background)
        row = _canvas(width, max(words.height, 24) + 14, background)
        row.paste(words, (86, 7))
        draw = ImageDraw.Draw(row)
        draw.text((12, 9), f"{scores[index]:.3f}", RIGHT if right else FAINT, ImageFont.load_default(size=17))
        if right:
            draw.rectangle((0, 0, row.width - 1, row.height - 1), outline=RIGHT, width=2)
        rows.append(row)
    answers = _vertical([*rows, _lines(_place(scores, own, top), 15, FAINT, 1, width)])
    block = _canvas(WIDTH - 2 * MARGIN, max(answers.height, QUERY_WIDTH))
    block.paste(_tile(image, QUERY_WIDTH, False), (0, 0))
    block.paste(answers, (QUERY_WIDTH + GAP, 0))
    return block


def _best(scores: Tensor, top: int) -> list[int]:
    return scores.argsort(descending=True, stable=True)[:top].tolist()


def _place(scores: Tensor, own: Tensor, top: int) -> str:
    """Where the best right answer stands, if it is not among those shown."""
    if own[_best(scores, top)].any():
        return ""
    above = int((scores > scores[own].max()).sum()) if own.any() else None
    return "no right answer exists" if above is None else f"best right one: number {above + 1} of {len(scores)}"


def _tile(image: Any, side: int, right: bool) -> Image.Image:
    """A square with the whole image in its middle, framed green where it is right."""
    tile = _canvas(side, side)
    border = 6
    picture = load_image(image)
    scale = (side - 2 * border) / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    tile.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    outline, width = (RIGHT, 5) if right else (FRAME, 1)
    ImageDraw.Draw(tile).rectangle((0, 0, side - 1, side - 1), outline=outline, width=width)
    return tile


def _lines(
    text: str, size: int, colour: str, most: int, width: int = WIDTH - 2 * MARGIN, background: str = "white"
) -> Image.Image:
    """Text wrapped into at most `most` lines of `width` pixels; what does not fit ends in dots."""
    font = ImageFont.load_default(size=size)
    lines = _wrap(text, font, width)
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(last + " ...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + " ..."]
    pitch = round(size * 1.3)
    block = _canvas(width, pitch * len(lines), background)
    draw = ImageDraw.Draw(block)
    for row, line in enumerate(lines):
        draw.text((0, row * pitch), line, colour, font)
    return block


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at blanks, or within a word that is longer than a line."""
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width:
            fit = max(n for n in range(1, len(word) + 1) if n == 1 or font.getlength(word[:n]) <= width)
            lines, line, word = [*lines, *([line] if line else []), word[:fit]], "", word[fit:]
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) > width:
            lines, joined = [*lines, line], word
        line = joined
    return [*lines, line] if line else lines


def _vertical(blocks: list[Image.Image]) -> Image.Image:
    """Blocks below one another with a small gap; empty ones take no place."""
    blocks = [block for block in blocks if block.height]
    column = _canvas(
        max(block.width for block in blocks), sum(block.height for block in blocks) + 8 * (len(blocks) - 1)
    )
    y = 0
    for block in blocks:
        column.paste(block, (0, y))
        y += block.height + 8
    return column


def _stack(blocks: list[Image.Image]) -> Image.Image:
    """The page: blocks below one another with room between them."""
    page = _canvas(WIDTH, 2 * MARGIN + sum(block.height for block in blocks) + 2 * GAP * (len(blocks) - 1))
    y = MARGIN
    for block in blocks:
        page.paste(block, (MARGIN, y))
        y += block.height + 2 * GAP
    return page


def _canvas(width: int, height: int, colour: str = "white") -> Image.Image:
    return Image.new("RGB", (width, height), colour)

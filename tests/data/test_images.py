"""Reading images of every form, and their augmentation."""

import colorsys
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from hf_clipplus.data.compose import Compose
from hf_clipplus.data.images import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Rotation,
    UnreadableImageError,
    image_augmentation,
    load_image,
)


def photo(width=40, height=30, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_every_form_gives_the_same_pixels(tmp_path):
    image, path = photo(), tmp_path / "a.png"
    path.write_bytes(encoded(image))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(path, "a.png")
    values = [
        image,
        path,
        str(path),
        encoded(image),
        {"bytes": encoded(image), "path": "gone.png"},
        {"bytes": None, "path": str(path)},
        {"path": str(path)},
        f"zip://a.png::{tmp_path / 'all.zip'}",
    ]
    for value in values:
        loaded = load_image(value)
        assert loaded.mode == "RGB"
        assert np.array_equal(loaded, image), value


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert load_image(image).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_transparent_entry_and_half_transparent_red():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    loaded = load_image(encoded(palette, transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]
    assert load_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)


def test_grey_and_deep_grey_and_cmyk():
    assert load_image(Image.new("L", (2, 2), 77)).getpixel((0, 0)) == (77, 77, 77)
    deep = Image.fromarray(np.array([[0, 65535, 32768]], dtype=np.uint16))
    assert np.array_equal(np.asarray(load_image(encoded(deep)))[0, :, 0], [0, 255, 128])
    assert np.array_equal(np.asarray(load_image(deep.convert("I")))[0, :, 0], [0, 255, 128])
    dark = Image.fromarray(np.full((1, 1), 200, dtype=np.uint16))  # deep grey stays deep grey however dark it is
    assert load_image(encoded(dark)).getpixel((0, 0)) == (0, 0, 0)
    assert load_image(Image.new("CMYK", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation():
    image = Image.new("RGB", (20, 10), "white")
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    assert load_image(encoded(image, "JPEG", exif=exif)).size == (10, 20)


def test_unreadable_images_are_named(tmp_path):
    whole = encoded(photo(200, 200), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    for name in ("cut.jpg", "empty.jpg", "text.jpg", "missing.jpg"):
        for value in (tmp_path / name, {"bytes": None, "path": str(tmp_path / name)}):
            with pytest.raises(UnreadableImageError, match=name):
                load_image(value)
    with pytest.raises(UnreadableImageError, match=r"row 7.*UnidentifiedImageError"):
        load_image({"bytes": b"\x89PNG broken", "path": None}, name="row 7")
    for nothing in (None, b"", {"bytes": None, "path": None}, {"bytes": b"", "path": ""}):
        with pytest.raises(UnreadableImageError, match="row 8"):
            load_image(nothing, name="row 8")
    with pytest.raises(TypeError, match="int"):
        load_image(3)


@pytest.mark.parametrize("preset", ["none", "fff", "strong"])
def test_presets_depend_on_the_seed_alone(preset):
    image, augment = photo(), image_augmentation(preset, size=24)
    before = image.copy()
    twice = [[np.asarray(augment(image, np.random.default_rng(s))) for s in range(6)] for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*twice, strict=True))
    assert np.array_equal(image, before)  # the input is left alone
    distinct = {a.tobytes() for a in twice[0]}
    assert len(distinct) == (1 if preset == "none" else 6)
    assert twice[0][0].shape == ((30, 40, 3) if preset == "none" else (24, 24, 3))


def test_unknown_preset():
    with pytest.raises(ValueError, match="strong"):
        image_augmentation("storng")


def test_crop_keeps_area_and_aspect_in_range():
    crop, generator = RandomResizedCrop(), np.random.default_rng(0)
    boxes = np.array([crop._box(200, 200, generator) for _ in range(500)])
    left, top, width, height = boxes.T
    area, aspect = width * height / 200**2, width / height
    assert 0.69 < area.min() < 0.73
    assert area.max() > 0.95
    assert 0.79 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.26
    assert (left >= 0).all()
    assert (left + width <= 200).all()
    assert (top + height <= 200).all()
    assert left.max() > 20


@pytest.mark.parametrize("size", [(1, 1), (300, 3), (2, 400), (1, 7)])
def test_crop_of_odd_shapes(size):
    image, generator = Image.new("RGB", size, "red"), np.random.default_rng(0)
    for _ in range(20):
        left, top, width, height = RandomResizedCrop()._box(*size, generator)
        assert 0 <= left <= size[0] - width
        assert 0 <= top <= size[1] - height
        result = image_augmentation("strong")(image, generator)
        assert result.width == result.height >= 1


def test_single_steps_do_what_they_say():
    image, generator = photo(), np.random.default_rng(3)
    pixels = np.asarray(image)
    assert np.array_equal(HorizontalFlip(p=1.0)(image, generator), pixels[:, ::-1])
    assert np.array_equal(HorizontalFlip(p=0.0)(image, generator), pixels)
    grey = np.asarray(Grayscale(p=1.0)(image, generator))
    assert np.array_equal(grey[..., 0], grey[..., 2])
    blurred = np.asarray(GaussianBlur(sigma=(2, 2), p=1.0)(image, generator), dtype=float)
    assert np.abs(np.diff(blurred, axis=1)).mean() < 0.7 * np.abs(np.diff(pixels.astype(float), axis=1)).mean()
    turned = np.asarray(Rotation(degrees=10)(Image.new("RGB", (30, 30), (9, 99, 199)), generator))
    assert np.abs(turned.astype(int) - [9, 99, 199]).max() <= 1  # corners take the mean colour, no black wedges
    assert not np.array_equal(Rotation(degrees=10)(image, generator), pixels)


def test_color_jitter_parts():
    red, generator = Image.new("RGB", (2, 2), (200, 40, 40)), np.random.default_rng(0)
    only_hue = ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.5)
    hues = []
    for _ in range(50):
        r, g, b = (level / 255 for level in only_hue(red, generator).getpixel((0, 0)))
        hues.append(colorsys.rgb_to_hsv(r, g, b)[0])
        assert max(r, g, b) == pytest.approx(200 / 255, abs=0.02)  # value stays
    assert min(hues) < 0.15
    assert max(hues) > 0.85
    only_brightness = ColorJitter(brightness=0.4, contrast=0, saturation=0, hue=0)
    reds = [only_brightness(red, generator).getpixel((0, 0))[0] for _ in range(100)]
    assert 119 <= min(reds) < 140
    assert max(reds) == 255
    assert ColorJitter(p=0.0)(red, generator).getpixel((0, 0)) == (200, 40, 40)


def test_compose_runs_in_order():
    steps = Compose((lambda x, g: x + 1, Compose((lambda x, g: x * 10,))))
    assert steps(1, np.random.default_rng(0)) == 20

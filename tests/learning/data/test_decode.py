from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lt_pipeline.learning.data import decode
from lt_pipeline.learning.data.decode import UnreadableImageError, open_rgb, read_image

# left half red, right half blue
TWO = Image.new("RGB", (40, 20), (200, 0, 0))
TWO.paste((0, 0, 200), (20, 0, 40, 20))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "made",
    [
        encoded(TWO, "PNG"),
        encoded(TWO, "JPEG", quality=100, subsampling=0),
        encoded(TWO, "WEBP", lossless=True),
        encoded(TWO, "BMP"),
        encoded(TWO, "TIFF"),
        encoded(TWO.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        encoded(TWO.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        encoded(TWO.convert("RGBA"), "PNG"),
        encoded(TWO.convert("CMYK"), "TIFF"),
    ],
    ids=["png", "jpeg", "webp", "bmp", "tiff", "palette", "gif", "rgba", "cmyk"],
)
def test_every_format_and_mode_gives_the_same_pixels(made):
    pixels = read_image(made, 20, "stretch")
    assert pixels.shape == (20, 20, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[:, 2], [[200, 0, 0]] * 20, atol=8)
    np.testing.assert_allclose(pixels[:, -3], [[0, 0, 200]] * 20, atol=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_as_a_person_sees_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's Transpose that undoes it
    stored = TWO
    if orientation in turns:
        undo = Image.Transpose(turns[orientation])
        inverse = {
            Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
            Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
        }.get(undo, undo)
        stored = TWO.transpose(inverse)
    image = open_rgb(encoded(stored, "PNG", exif=exif))
    assert image.size == (40, 20)
    assert image.getpixel((5, 10)) == (200, 0, 0)


def test_grey_is_repeated_and_16_bits_keep_their_upper_half():
    grey = Image.fromarray(np.full((8, 8), 77, np.uint8))
    assert (read_image(encoded(grey, "PNG"), 8) == 77).all()
    deep = Image.fromarray(np.full((8, 8), 77 * 256 + 200, np.uint16))
    assert deep.mode.startswith("I")
    assert (read_image(encoded(deep, "PNG"), 8) == 77).all()
    assert (read_image(encoded(deep, "TIFF"), 8) == 77).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(mode):
    clear = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
    made = clear.convert("LA") if mode == "LA" else clear
    if mode == "P":
        made = Image.new("P", (8, 8), 0)
        made.info["transparency"] = 0
    assert (read_image(encoded(made, "PNG"), 8) == 255).all()


def test_the_three_ways_to_make_a_square():
    whole = encoded(TWO, "PNG")
    assert (read_image(whole, 20, "crop")[:, 0] == [200, 0, 0]).all()
    padded = read_image(whole, 20, "pad")
    assert (padded[:4] == 0).all()
    assert (padded[10, 0] == [200, 0, 0]).all()
    assert (read_image(whole, 20, "stretch")[0, 0] == [200, 0, 0]).all()


def test_a_large_jpeg_is_read_reduced_and_looks_the_same():
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    large = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    assert min(open_rgb(data, at_least=64).size) < 1200 / 4
    exact = decode.to_square(open_rgb(data), 64, "crop").astype(int)
    assert np.abs(read_image(data, 64).astype(int) - exact).mean() < 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no image"),
        (b"not an image", "is no image"),
        (encoded(TWO, "PNG")[:60], "cannot be read|is no image"),
        (encoded(TWO, "JPEG")[:-300], "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, said):
    path = tmp_path / "damaged file.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=said) as error:
        read_image(path, 8)
    assert "damaged file.png" in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "TGA", "ICO"])
def test_whatever_damage_is_an_image_or_one_line(kind):
    """Readers of other formats raise what they like, as struct.error or IndexError."""
    whole, random = np.frombuffer(encoded(TWO, kind), np.uint8), np.random.default_rng(0)
    said = []
    for _ in range(300):
        damaged = whole[: random.integers(4, len(whole) + 1)].copy()
        damaged[random.integers(2, len(damaged), 3)] = random.integers(0, 256, 3)
        try:
            assert read_image(damaged.tobytes(), 8, max_pixels=10**6).shape == (8, 8, 3)
        except UnreadableImageError as error:
            said.append(str(error))
    assert len(said) > 20
    assert not any("\n" in line for line in said)


def test_a_missing_file_a_huge_one_and_floats_are_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match="there is no"):
        read_image(tmp_path / "none.png", 8)
    with pytest.raises(UnreadableImageError, match="40 x 20 pixels, more than 100"):
        read_image(encoded(TWO, "PNG"), 8, max_pixels=100)
    assert read_image(encoded(TWO, "PNG"), 8, max_pixels=800).shape == (8, 8, 3)
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    with pytest.raises(UnreadableImageError, match="no known range"):
        read_image(encoded(floats, "TIFF"), 8)

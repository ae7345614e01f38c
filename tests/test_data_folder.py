"""Folders of images, and single image files."""

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from xcnn import data
from xcnn.errors import DataError, UsageError


def picture(path, value=100, mode="RGB", size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    Image.new(mode, size, (value,) * channels if channels > 1 else value).save(path)


def pets(folder, cats=6, dogs=5, **options):
    for name, n in (("cats", cats), ("dogs", dogs)):
        for k in range(n):
            picture(folder / name / f"{k}.png", 10 * k + (name == "dogs"), **options)


def test_every_fifth_image_of_a_class_is_held_out(tmp_path):
    pets(tmp_path)
    train, test = data.load("folder", tmp_path)
    assert train.classes == test.classes == ("cats", "dogs")
    assert train.name == tmp_path.name
    assert (train.images.dtype, train.shape) == (np.uint8, (3, 32, 32))
    assert train.labels.tolist() == [0] * 5 + [1] * 4
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 50, 1, 11, 21, 31]
    assert test.images[:, 0, 0, 0].tolist() == [40, 41]
    assert test.labels.tolist() == [0, 1]


def test_folders_train_and_test_are_kept_apart(tmp_path):
    pets(tmp_path / "train", 2, 1)
    picture(tmp_path / "test" / "dogs" / "x.png", 200)
    train, test = data.load("folder", tmp_path, size=8)
    assert train.labels.tolist() == [0, 0, 1]
    assert (test.labels.tolist(), test.classes, test.shape) == ([1], ("cats", "dogs"), (3, 8, 8))


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path):
    pets(tmp_path, mode="L")
    assert data.load("folder", tmp_path)[0].shape == (1, 32, 32)
    picture(tmp_path / "cats" / "7.png", mode="RGB")
    assert data.load("folder", tmp_path)[0].shape == (3, 32, 32)


def test_other_files_are_passed_over(tmp_path):
    pets(tmp_path)
    (tmp_path / "cats" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.md").write_text("")
    for hidden in ("._0.png", ".png", ".DS_Store"):
        (tmp_path / "dogs" / hidden).write_bytes(b"no image")
    (tmp_path / "dogs" / "Thumbs.db").write_bytes(b"no image")
    assert sum(map(len, data.load("folder", tmp_path))) == 11


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "gif", "tif", "tiff", "webp", "jpg", "jpeg", "ppm", "pgm"])
def test_formats(tmp_path, suffix):
    pets(tmp_path)
    picture(tmp_path / "cats" / f"z.{suffix}", 77)
    train, _ = data.load("folder", tmp_path)
    assert abs(int(train.images[5, 0, 3, 3]) - 77) <= 2


def test_an_image_is_resized_by_shape(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "x.png")
    assert np.array_equal(data.read_image(tmp_path / "x.png", (3, 4, 6)), array.transpose(2, 0, 1))
    half = data.read_image(tmp_path / "x.png", (3, 2, 3))
    assert half.shape == (3, 2, 3)
    grey = data.read_image(tmp_path / "x.png", (1, 4, 6))
    expected = array @ [0.299, 0.587, 0.114]
    assert np.abs(grey[0] - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_become_grey_or_rgb(tmp_path, mode, channels):
    white = {"1": 1, "L": 255, "LA": (255, 255), "P": 0, "RGB": (255,) * 3, "RGBA": (255,) * 4, "I;16": 65535}[mode]
    image = Image.new(mode, (4, 4), white)
    if mode == "P":
        image.putpalette([255, 255, 255])
        image.info["transparency"] = b"\x80"
    image.save(tmp_path / "x.png")
    assert np.array_equal(data.read_image(tmp_path / "x.png", (channels, 4, 4)), np.full((channels, 4, 4), 255))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.asarray([[0, 256], [32768, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert data.read_image(tmp_path / "x.png", (1, 2, 2)).tolist() == [[[0, 1], [128, 255]]]


def test_a_photograph_lying_down_is_stood_up(tmp_path):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    image.save(tmp_path / "x.png", exif=exif)
    assert data.read_image(tmp_path / "x.png", (1, 3, 2)).tolist() == [[[120, 0], [160, 40], [200, 80]]]


def refused(call, *says):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(str(part) in message for part in says), message


def test_a_damaged_image_is_named(tmp_path):
    picture(tmp_path / "good.png", size=(50, 50))
    content = (tmp_path / "good.png").read_bytes()
    for k, bad in enumerate((b"", b"no image", content[:-30], content[:40], content[:60] + b"xx" + content[62:])):
        path = tmp_path / f"{k}.png"
        path.write_bytes(bad)
        refused(lambda path=path: data.read_image(path, (3, 4, 4)), path, "cannot be read as an image")
    pets(tmp_path / "pets")
    (tmp_path / "pets" / "dogs" / "x.png").write_bytes(content[:-30])
    refused(lambda: data.load("folder", tmp_path / "pets"), "x.png", "cannot be read")


def test_content_of_a_format_that_starts_programs_is_refused_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: pytest.fail("started Ghostscript"))
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    with Image.open(path) as image:
        assert image.format == "EPS"  # Pillow would take it
    refused(lambda: data.read_image(path, (1, 4, 4)), path, "cannot be read as an image")


def test_any_changed_byte_gives_an_image_or_one_sentence(tmp_path):
    path = tmp_path / "x.png"
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "bmp"):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(tmp_path / f"good.{suffix}")
        content = np.fromfile(tmp_path / f"good.{suffix}", np.uint8)
        for _ in range(60):
            bad = content.copy()
            bad[rng.integers(len(bad))] = rng.integers(256)
            bad.tofile(path)
            try:
                assert data.read_image(path, (3, 4, 4)).shape == (3, 4, 4)
            except DataError as error:
                message = str(error)
                assert "\n" not in message


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    refused(lambda: data.read_image(tmp_path / "bomb.png", (1, 4, 4)), "bomb.png", "9000 x 9000 pixels")
    monkeypatch.undo()
    Image.new("1", (15000, 15000)).save(tmp_path / "bigger.png")  # here Pillow itself raises
    refused(lambda: data.read_image(tmp_path / "bigger.png", (1, 4, 4)), "bigger.png")


def test_floating_point_images_are_refused(tmp_path):
    Image.new("F", (3, 3)).save(tmp_path / "x.tif")
    refused(lambda: data.read_image(tmp_path / "x.tif", (1, 3, 3)), "mode F", "8 bits")


def test_what_makes_no_data_set_is_refused(tmp_path):
    refused(lambda: data.load("folder", tmp_path), tmp_path, "2 or more subfolders")
    pets(tmp_path, 4, 4)
    refused(lambda: data.load("folder", tmp_path), tmp_path, "5 or more images")
    (tmp_path / "birds").mkdir()
    refused(lambda: data.load("folder", tmp_path), "birds holds no images")
    (tmp_path / "birds").rmdir()
    (tmp_path / "train").mkdir()
    refused(lambda: data.load("folder", tmp_path), "both or neither")
    one = tmp_path / "one"
    picture(one / "cats" / "x.png")
    refused(lambda: data.load("folder", one), one, "it has 1")
    two = tmp_path / "two"
    pets(two / "train")
    picture(two / "test" / "cats" / "x.png")
    picture(two / "test" / "mice" / "x.png")
    refused(lambda: data.load("folder", two), "mice", "train has not")
    refused(lambda: data.read_image(tmp_path / "none.png", (1, 2, 2)), "no file", "none.png")


def test_arguments_out_of_range(tmp_path):
    with pytest.raises(UsageError, match="size"):
        data.load("folder", tmp_path, size=0)
    with pytest.raises(UsageError, match="1 or 3 channels"):
        data.read_image(tmp_path / "x.png", (2, 4, 4))

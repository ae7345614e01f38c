"""Folders of images, and single image files."""

import contextlib
import errno
import os
import shutil
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

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
    assert (train.x.dtype, train.shape) == (np.uint8, (3, 32, 32))
    assert train.y.tolist() == [0] * 5 + [1] * 4
    assert train.x[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 50, 1, 11, 21, 31]
    assert test.x[:, 0, 0, 0].tolist() == [40, 41]
    assert test.y.tolist() == [0, 1]


def test_folders_train_and_test_are_kept_apart(tmp_path):
    pets(tmp_path / "train", 2, 1)
    picture(tmp_path / "test" / "dogs" / "x.png", 200)
    train, test = data.load("folder", tmp_path, size=8)
    assert train.y.tolist() == [0, 0, 1]
    assert (test.y.tolist(), test.classes, test.shape) == ([1], ("cats", "dogs"), (3, 8, 8))


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
    assert abs(int(train.x[5, 0, 3, 3]) - 77) <= 2


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


def test_a_photograph_is_rotated_as_its_metadata_says(tmp_path):
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


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    refused(lambda: data.read_image(tmp_path / "bomb.png", (1, 4, 4)), "bomb.png", "has more than")
    monkeypatch.undo()
    Image.new("1", (15000, 15000)).save(tmp_path / "bigger.png")  # here Pillow itself raises
    refused(lambda: data.read_image(tmp_path / "bigger.png", (1, 4, 4)), "bigger.png")


def test_a_small_file_has_no_large_image(tmp_path, monkeypatch):
    path, limit = tmp_path / "blank.png", Image.MAX_IMAGE_PIXELS
    Image.new("1", (6000, 6000)).save(path)
    assert path.stat().st_size < 6000 * 6000 / 1024
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        refused(lambda: data.read_image(path, (1, 4, 4)), path, "has more than 4", "too many for a file of 4")
    Image.new("1", (1024, 1024)).save(path)
    assert data.read_image(path, (1, 4, 4)).sum() == 0
    assert limit == Image.MAX_IMAGE_PIXELS
    Image.new("RGB", (1, 70_000)).save(path)
    refused(lambda: data.read_image(path, (1, 4, 4)), path, "at most 65536 in a row or column")


def test_settings_of_the_process_stay_as_they_are(tmp_path, monkeypatch):
    """Other threads may use Pillow and warnings at the same time."""
    opened, filters = [], list(warnings.filters)

    def spy(*arguments, real=Image.open, **options):
        opened.append((Image.MAX_IMAGE_PIXELS, warnings.filters == filters))
        return real(*arguments, **options)

    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "open", spy)
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "gif"):
        picture(tmp_path / f"x.{suffix}")
        data.read_image(tmp_path / f"x.{suffix}", (3, 4, 4))
    assert opened == [(before, True)] * 6
    assert before == Image.MAX_IMAGE_PIXELS


def gif(screen, frame, blocks=b""):
    """Return a GIF file whose frame may be larger than its screen; without pixels."""
    header = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes([0, 0, 0, 255, 0, 0])
    return header + blocks + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


@pytest.mark.parametrize(
    "blocks",
    [
        b"",
        b"!\xf9\x04\x08\x00\x00\x00\x00",  # restore to the background: Pillow allocates a frame
        b"!\xfe\x03abc\x02de\x00",
        b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00",
        b"!\xff\x0bNETSCAPE2.0\x00\x01;\x00",  # empty where Pillow expects a block, so that it reads another chain
        b"junk\x00!\x01\x00\x01,\x00",
    ],
)
def test_a_frame_of_a_gif_is_measured_before_pillow_allocates_it(tmp_path, monkeypatch, blocks):
    path = tmp_path / "x.gif"
    path.write_bytes(gif((10, 10), (9000, 9000), blocks))
    with Image.open(path) as image:
        assert image.size == (9000, 9000)  # what Pillow finds
    monkeypatch.setattr(Image, "open", lambda *arguments, **options: pytest.fail("opened"))
    refused(lambda: data.read_image(path, (1, 4, 4)), path, "more than 1048576 pixels")


def test_a_photograph_is_scanned_a_limited_number_of_times(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("L", (64, 64), 9).save(path, progressive=True)
    content = path.read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + last * 100 + content[-2:])
    assert data.read_image(path, (1, 4, 4))[0, 0, 0] == 9
    path.write_bytes(content[:-2] + last * 1000 + content[-2:])
    refused(lambda: data.read_image(path, (1, 4, 4)), path, "scans over its pixels, at most 1000 are read")


def tiff(width, height, tile_width, tile_height, content):
    """Return a TIFF image in one deflated tile."""
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, tile_width), (323, tile_height), (324, 8 + 2 + 10 * 12 + 4), (325, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + content


def test_a_tile_larger_than_its_image_counts(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(10, 10, 16, 16, zlib.compress(bytes(256))))
    assert data.read_image(path, (1, 4, 4)).sum() == 0
    path.write_bytes(tiff(10, 10, 30_000, 30_000, zlib.compress(bytes(100))))
    refused(lambda: data.read_image(path, (1, 4, 4)), path, "has more than 1048576 pixels")


def test_messages_of_decoders_are_silenced(tmp_path, capfd):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(10, 10, 1024, 1024, b"damaged"))  # libtiff complains from C
    refused(lambda: data.read_image(path, (1, 4, 4)), path, "cannot be read as an image")
    content = struct.pack("<2sHIH", b"II", 42, 8, 4)
    for tag, value in ((256, 1), (257, 1), (258, 8), (277, 1 << 20)):
        content += struct.pack("<HHII", tag, 4, 1, value)
    path.write_bytes(content + bytes(4))  # Pillow logs an error
    refused(lambda: data.read_image(path, (1, 4, 4)), path, "cannot be read as an image")
    Image.new("L", (11000, 9000), 0).save(tmp_path / "x.png")  # Pillow warns
    refused(lambda: data.read_image(tmp_path / "x.png", (1, 4, 4)), "x.png", "more than 67108864 pixels")
    assert capfd.readouterr() == ("", "")
    os.write(2, b"stderr is back")
    assert capfd.readouterr().err == "stderr is back"


def test_a_process_without_stderr_reads_images(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.EBADF, "Bad file descriptor")

    Image.new("L", (3, 3), 7).save(tmp_path / "x.tif")
    monkeypatch.setattr(os, "dup", refuse)
    assert data.read_image(tmp_path / "x.tif", (1, 3, 3)).tolist() == [[[7] * 3] * 3]


def test_too_little_memory_is_not_the_files_fault(tmp_path, monkeypatch):
    def fail(image, in_place):
        raise MemoryError

    picture(tmp_path / "x.png")
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    with pytest.raises(MemoryError):
        data.read_image(tmp_path / "x.png", (3, 4, 4))


def test_a_length_that_a_chunk_claims_is_not_allocated(tmp_path):
    path = tmp_path / "x.png"
    picture(path)
    content = path.read_bytes()
    at = content.index(b"IDAT")
    path.write_bytes(content[: at - 4] + b"\x7f\xff\xff\xff" + content[at:])
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            data.read_image(path, (3, 4, 4))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def within(seconds, call):
    """Call a function that might wait forever."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        within(
            5, lambda path=path: refused(lambda: data.read_image(path, (1, 4, 4)), path, "directory, pipe or device")
        )


def test_links_to_folders_are_followed(tmp_path):
    pets(tmp_path / "elsewhere")
    pets(tmp_path / "pets" / "train")
    (tmp_path / "pets" / "test").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets" / "train" / "birds").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "link").symlink_to("pets")
    train, test = data.load("folder", tmp_path / "link")
    assert (len(train), len(test), train.classes) == (17, 11, ("birds", "cats", "dogs"))


def test_a_link_to_an_image_stays_inside(tmp_path):
    folder = tmp_path / "pets"
    pets(folder)
    picture(tmp_path / "outside.png")
    (folder / "cats" / "a.png").symlink_to("../dogs/0.png")
    assert sum(map(len, data.load("folder", folder))) == 12
    for target in ("../../outside.png", "/etc/passwd", tmp_path / "missing.png"):
        (folder / "cats" / "b.png").symlink_to(target)
        refused(lambda: data.load("folder", folder), folder / "cats" / "b.png", "is a link that leads out of")
        (folder / "cats" / "b.png").unlink()


def test_links_in_circles_end(tmp_path):
    pets(tmp_path)
    (tmp_path / "cats" / "x.png").symlink_to("x.png")
    refused(lambda: data.load("folder", tmp_path), "x.png cannot be read", "symbolic links")
    (tmp_path / "cats" / "x.png").unlink()
    (tmp_path / "cats" / "again").symlink_to(tmp_path)
    (tmp_path / "never").symlink_to("never")
    assert data.load("folder", tmp_path)[0].classes == ("cats", "dogs")


def test_names_cannot_command_a_terminal(tmp_path):
    pets(tmp_path)
    bad = tmp_path / "dogs" / "x\x1b[2J\n.png"
    bad.write_bytes(b"")
    refused(lambda: data.load("folder", tmp_path), r"x\x1b[2J\n.png cannot be read")
    bad.unlink()
    (tmp_path / "dogs").rename(tmp_path / "dogs\n")
    refused(lambda: data.load("folder", tmp_path), r"dogs\n cannot be a class")


def test_a_folder_that_cannot_be_searched_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    pets(tmp_path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    refused(lambda: data.load("folder", tmp_path), f"load: {tmp_path} cannot be read: Permission denied")


def test_floating_point_images_are_refused(tmp_path):
    Image.new("F", (3, 3)).save(tmp_path / "x.tif")
    refused(lambda: data.read_image(tmp_path / "x.tif", (1, 3, 3)), "mode F", "8 bits")


def test_folders_without_a_valid_data_set_are_refused(tmp_path):
    refused(lambda: data.load("folder", tmp_path), tmp_path, "2 or more classes, one per subfolder, got 0")
    refused(lambda: data.load("folder", tmp_path / "none"), "there is no folder", tmp_path / "none")
    pets(tmp_path / "deeper", 2, 2)
    refused(lambda: data.load("folder", tmp_path), "got 0; ignored: 2 inside a class (folders)")
    shutil.rmtree(tmp_path / "deeper")
    (tmp_path / "pets.tsv").write_text("path\tlabel\n")
    refused(lambda: data.load("folder", tmp_path / "pets.tsv"), "neither a folder nor a table whose name ends in .csv")
    (tmp_path / "pets.tsv").unlink()
    pets(tmp_path, 4, 4)
    picture(tmp_path / "birds" / "x.png")
    refused(lambda: data.load("folder", tmp_path), "the class birds has one image", "add images, or remove the class")
    (tmp_path / "train").mkdir()
    refused(lambda: data.load("folder", tmp_path), "both or neither")
    one = tmp_path / "one"
    picture(one / "cats" / "x.png")
    refused(lambda: data.load("folder", one), one, "got 1")
    two = tmp_path / "two"
    pets(two / "train")
    picture(two / "test" / "cats" / "x.png")
    for k in range(2):
        picture(two / "test" / "mice" / f"{k}.png")
    refused(lambda: data.load("folder", two), "classes without images to train: mice")
    refused(lambda: data.read_image(tmp_path / "none.png", (1, 2, 2)), "No such file", "none.png")


def test_arguments_out_of_range(tmp_path):
    for size in (0, 2.5, "32", 1025):
        with pytest.raises(UsageError, match="size must be an integer from 1 to 1024, got"):
            data.load("folder", tmp_path, size=size)
    for option, value in (("resize", "squeeze"), ("resize", 3), ("background", "#12"), ("background", None)):
        for call in (
            lambda chosen: data.load("folder", tmp_path, **chosen),
            lambda chosen: data.read_image(tmp_path / "x.png", (1, 4, 4), **chosen),
            lambda chosen: data.ImageFiles([], (1, 4, 4), **chosen),
        ):
            with pytest.raises(UsageError, match=option):
                call({option: value})
    with pytest.raises(UsageError, match="skip_broken must be True or False, got 1"):
        data.load("folder", tmp_path, skip_broken=1)
    with pytest.raises(UsageError, match="in_memory must be an integer of at least 0, got -1"):
        data.load("folder", tmp_path, in_memory=-1)
    with pytest.raises(UsageError, match="1 or 3 channels"):
        data.read_image(tmp_path / "x.png", (2, 4, 4))
    for shape in ((1, 0, 4), (1, 4), (1, 4, "4")):
        with pytest.raises(UsageError, match=r"read_image: shape (takes|must be)"):
            data.read_image(tmp_path / "x.png", shape)


def test_a_path_may_be_a_string(tmp_path):
    picture(tmp_path / "x.png")
    assert data.read_image(str(tmp_path / "x.png"), (1, 2, 2)).shape == (1, 2, 2)

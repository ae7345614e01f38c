"""Tables of image files, the parts of a folder, and what is told of them."""

import re

import numpy as np
import pytest
from PIL import Image
from test_data_folder import pets, picture, refused

from xcnn import data
from xcnn.errors import DataError


def table(folder, text, name="pets.csv", encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def rows(*lines, header="path,label"):
    return "\n".join((header, *lines)) + "\n"


def told(*arguments, **options):
    """Return what is told when a folder is loaded, and its parts."""
    sentences = []
    return sentences, data.load("folder", *arguments, tell=sentences.append, **options)


# Parts


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_brings_its_own_validation_part(tmp_path, name):
    for part, count in (("train", 4), (name, 2), ("test", 1)):
        pets(tmp_path / part, count, count)
    parts = data.catalog.DATASETS["folder"].load(tmp_path, 8)
    assert [len(part) for part in parts] == [8, 4, 2]
    assert [part.classes for part in parts] == [("cats", "dogs")] * 3


def test_without_a_test_folder_the_validation_folder_is_the_test(tmp_path):
    pets(tmp_path / "train", 3, 3)
    pets(tmp_path / "val", 1, 2)
    sentences, (train, test) = told(tmp_path)
    assert (len(train), len(test)) == (6, 3)
    assert f"{tmp_path.name}: there is no test part, so the validation part is the test" in sentences
    pets(tmp_path / "valid", 1, 1)
    refused(lambda: data.load("folder", tmp_path), "more than one folder of validation images (valid, val)")


def test_a_small_class_has_a_test_image_too(tmp_path):
    pets(tmp_path, 2, 12)
    train, test = data.load("folder", tmp_path)
    assert (np.bincount(train.y).tolist(), np.bincount(test.y).tolist()) == ([1, 10], [1, 2])
    assert test.x[:, 0, 0, 0].tolist() == [
        10,
        21,
        71,
    ]  # the last cat; every fifth of 0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9


# What is told


def test_classes_counts_sizes_and_parts_are_told(tmp_path):
    folder = tmp_path / "pets"
    pets(folder, 12, 10)
    picture(folder / "owls" / "x.jpg", size=(40, 30))
    picture(folder / "owls" / "y.png", size=(5, 4))
    sentences, _ = told(folder, size=8, resize="pad")
    assert sentences == [
        "pets: 3 classes (cats 12, dogs 10, owls 2), 24 colour images of 5x4 to 40x30 pixels, resized to 8x8 (pad)",
        "pets: 19 images to train, 5 to test",
    ]


def test_a_turned_photograph_is_told_by_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        for k in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (3000, 2000), 9).save(tmp_path / name / f"{k}.jpg", exif=exif)
    sentences, _ = told(tmp_path)
    assert "4 grey images of 2000x3000 pixels" in sentences[0]


def test_many_classes_are_told_in_short(tmp_path):
    for k in range(12):
        for number in range(2 + k % 2):
            picture(tmp_path / f"class{k:02}" / f"{number}.png")
    assert "12 classes (2 to 3 images each), 30 colour images of 6x6 pixels" in told(tmp_path)[0][0]


def test_what_is_ignored_is_told(tmp_path):
    pets(tmp_path)
    for place in (".git/x.png", "cats/more/x.png", "notes/readme.txt", "x.png"):
        picture((tmp_path / place).with_suffix(".png"))
        (tmp_path / place).with_suffix(".png").rename(tmp_path / place)
    (tmp_path / "dogs" / ".DS_Store").write_bytes(b"")
    (tmp_path / "dogs" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    sentences, _ = told(tmp_path)
    assert sentences[2:] == [
        f"{tmp_path.name}: ignored: 2 hidden, 1 outside of the folders of classes, 1 inside a class (folders), "
        "2 without an image suffix, 2 without images (folders)"
    ]
    (tmp_path / "dogs" / "y.HEIC").write_bytes(b"")
    assert "2 without an image suffix, 1 .heic (save them as .jpg or .png), 2" in told(tmp_path)[0][2]
    (tmp_path / "photos" / "train").parent.mkdir()
    for part in ("train", "test", "backup"):
        pets(tmp_path / "photos" / part, 2, 2)
    assert told(tmp_path / "photos")[0][2] == "photos: ignored: 1 beside photos/train (folders)"


# Broken files


def test_a_folder_that_cannot_be_used_is_refused_before_its_images_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("xcnn.data.files.decode", lambda *arguments, **options: pytest.fail("decoded"))
    pets(tmp_path, 5, 1)
    refused(lambda: data.load("folder", tmp_path), "the class dogs has one image")


def broken(folder, count):
    for k in range(count):
        (folder / "cats" / f"x{k:04}.png").write_bytes(b"no image")


def test_all_broken_files_are_listed_in_one_sentence(tmp_path):
    pets(tmp_path)
    broken(tmp_path, 2)
    Image.new("1", (9000, 9000)).save(tmp_path / "dogs" / "bomb.png")
    (tmp_path / "dogs" / "link.png").symlink_to("link.png")
    with pytest.raises(DataError) as caught:
        data.load("folder", tmp_path)
    message = str(caught.value)
    assert message.startswith("load: 4 of 15 images cannot be used: ")
    assert message.endswith("; repair or remove them, or leave them out with skip_broken=True")
    for words in (
        r"x0000.png cannot be read as",
        r"x0001.png cannot",
        r"bomb.png has more than",
        r"link.png cannot be re",
    ):
        assert len(re.findall(words, message)) == 1, message


def test_twenty_broken_files_are_listed_and_the_others_counted(tmp_path):
    pets(tmp_path)
    broken(tmp_path, 223)
    refused(lambda: data.load("folder", tmp_path), "223 of 234 images", "x0018.png", "x0019.png", "; and 203 more")
    with pytest.raises(DataError, match=r"^(?!.*x0020\.png)"):
        data.load("folder", tmp_path)


def test_broken_files_may_be_left_out(tmp_path):
    pets(tmp_path / "bad")
    pets(tmp_path / "good")
    broken(tmp_path / "bad", 2)
    sentences, found = told(tmp_path / "bad", skip_broken=True)
    assert sentences[0].startswith("bad: left out 2 of 13 images: ")
    assert all(name in sentences[0] for name in ("x0000.png", "x0001.png"))
    with pytest.warns(UserWarning, match=r"^bad: left out 2 of 13 images: .*x0000\.png"):  # also where nobody listens
        data.load("folder", tmp_path / "bad", skip_broken=True)
    for part, expected in zip(found, data.load("folder", tmp_path / "good"), strict=True):  # as if they were not there
        assert np.array_equal(part.x, expected.x)
        assert np.array_equal(part.y, expected.y)
    for path in (tmp_path / "bad").glob("dogs/*"):
        path.write_bytes(b"")
    refused(lambda: told(tmp_path / "bad", skip_broken=True), "2 or more classes", "got 1")


# Tables


def test_a_table_names_images_and_labels(tmp_path):
    for k in range(6):
        picture(tmp_path / "all" / f"{k}.png", 10 * k)
    lines = [f'"all/{k}.png", {"dog" if k % 2 else "cat"}' for k in range(6)]
    train, test = data.load("folder", table(tmp_path, rows(*lines)))
    assert (train.classes, train.name) == (("cat", "dog"), "pets")
    assert train.x[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert (train.y.tolist(), test.y.tolist()) == ([0, 1, 0, 1], [0, 1])  # the last of each class


def test_a_table_of_a_spreadsheet(tmp_path):
    """It begins with a byte order mark, quotes some values, ends lines as Windows does, and has columns of its own."""
    folder = tmp_path / "x"
    for k in range(5):
        picture(folder / f"a, {k}.png", k)
    lines = [f'{k},"a, {k}.png",Katze ß,{part}' for k, part in enumerate(["train", "Train", "val"])]
    lines += ['3,"a, 3.png","the ""dog""",train', '4,"a, 4.png","the ""dog""",test', ""]
    text = "\ufeff" + rows(*lines, header="id,Path,label,split").replace("\n", "\r\n")
    sentences = []
    parts = data.catalog.DATASETS["folder"].load(table(folder, text), 8, tell=sentences.append)
    assert [part.x[:, 0, 0, 0].tolist() for part in parts] == [[0, 1, 3], [2], [4]]
    assert parts[0].classes == ("Katze ß", 'the "dog"')
    assert sentences[1:] == ["pets: 3 images to train, 1 to validate, 1 to test", "pets: ignored: 1 column (id)"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must begin with a line path,label"),
        ("path;label\na.png;cat\n", "separated by commas, got 'path;label'"),
        ("file,label\na.png,cat\n", "must begin with a line path,label"),
        ("path,path,label\na.png,a.png,cat\n", "must begin with a line path,label"),
        (rows("a.png,cat", "b.png"), "line 3 has 1 values, not 2"),
        (rows("a.png,"), "line 2 has no label"),
        (rows(",cat"), "line 2 has no path"),
        (rows("a.png,cat", "b.png,dog", "./a.png,dog"), "line 4 repeats ./a.png of line 2"),
        (
            rows("a.png,cat", "none.png,dog", "b.png,", "../x.png,cat"),
            "line 3 names a file that is missing: none.png; ",
        ),
        (rows("none.png,dog", "b.png,", "../x.png,cat"), "line 4 leads out of the folder of the table: ../x.png"),
        (rows("/etc/passwd,cat"), "line 2 has a path outside of the folder of the table, "),
        (rows("none.png,cat", "a.png,cat", "gone.png,dog"), "gone.png; correct the paths, or leave such rows out with"),
        (rows("a/../../x.png,cat"), "line 2 leads out of the folder"),
        (rows("a.png\0,cat"), "line 2 has a null character in its path"),
        (rows("/a.png\0,cat"), "line 2 has a null character in its path"),
        (rows("out.png,cat"), "line 2 names a link that leads out of the folder of the table: out.png"),
        (rows("a.png,cat\x1b[2J"), r"line 2 cannot have the label cat\x1b[2J: it has control characters"),
        (rows("a.png," + "c" * 256), "line 2 has a label of 256 characters, more than 255"),
        (rows(*[",cat"] * 10_005), "; and 9,980 more"),
        (rows('"a.png,cat'), "is not valid CSV"),
        (rows('"a.png"x,cat'), "line 2 is not valid CSV"),
        (rows("a.png,cat", "b.png,cat"), "needs images of 2 or more classes"),
        (rows("a.png,cat,dev", header="path,label,split"), "line 2 has the split 'dev', expected train, validation"),
        (rows("a.png,cat,", header="path,label,split"), "line 2 has the split ''"),
        (rows("a.png,cat,test", "b.png,dog,test", header="path,label,split"), "class cat has one image"),
        (
            rows(*(f"{x}.png,{y},test" for x, y in zip("abcd", "pqpq", strict=True)), header="path,label,split"),
            "to train",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, says):
    folder = tmp_path / "pets"
    for name in ("../x.png", "a.png", "b.png", "c.png", "d.png"):
        picture(folder / name)
    (folder / "out.png").symlink_to("../x.png")
    path = table(folder, text)
    refused(lambda: data.load("folder", path), path, says)


def test_absolute_paths_inside_the_folder_are_those_relative_to_it(tmp_path):
    pets(tmp_path / "pets")
    names = [f"{name}/{k}.png" for name in ("cats", "dogs") for k in range(4)]
    (tmp_path / "link").symlink_to("pets")
    for folder in (tmp_path / "pets", tmp_path / "link"):
        relative, absolute, real = (
            data.load("folder", table(folder, rows(*(f"{top}{name},{name[:4]}" for name in names))), size=8)
            for top in ("", f"{folder}/", f"{tmp_path}/pets/dogs/../")
        )
        for one in (absolute, real):
            for part, wanted in zip(one, relative, strict=True):
                assert np.array_equal(part.x, wanted.x)
                assert np.array_equal(part.y, wanted.y)
    twice = table(tmp_path / "pets", rows("cats/0.png,a", f"{tmp_path}/pets/cats/0.png,b"))
    refused(lambda: data.load("folder", twice), "line 3 repeats cats/0.png of line 2")


def test_rows_without_a_file_are_left_out_as_broken_images_are(tmp_path):
    pets(tmp_path)
    whole = [f"{name}/{k}.png,{name}" for name in ("cats", "dogs") for k in range(4)]
    wanted = data.load("folder", table(tmp_path, rows(*whole), "whole.csv"), size=8)
    path = table(tmp_path, rows("none.png,cats", *whole, "gone.png,dogs"))
    said, parts = told(path, size=8, skip_broken=True)
    assert said[0] == (
        "pets: left out 2 rows of missing files: line 2 names a file that is missing: none.png; "
        "line 11 names a file that is missing: gone.png"
    )
    for part, one in zip(parts, wanted, strict=True):
        assert np.array_equal(part.x, one.x)
    wrong = table(tmp_path, rows("none.png,cats", *whole, "../x.png,dogs"))
    refused(lambda: data.load("folder", wrong, skip_broken=True), "line 11 leads out of the folder")


@pytest.mark.parametrize(
    ("most", "fix"), [(4095, "; scale them to 65,535 in the files, or they stay dark"), (65535, "")]
)
def test_what_16_bits_lose_is_told(tmp_path, most, fix):
    pets(tmp_path / "pets")
    for k, value in enumerate((7, most, 300)):
        Image.fromarray(np.full((6, 6), value, np.uint16)).save(tmp_path / "pets" / "cats" / f"deep{k}.png")
    said, _ = told(tmp_path / "pets")
    assert f"pets: of 3 images of 16 bits the upper 8 are used; the brightest value is {most:,} of 65,535{fix}" in said
    pets(tmp_path / "plain")
    assert not any("16 bits" in one for one in told(tmp_path / "plain")[0])


def test_a_table_must_be_utf8_and_not_too_large(tmp_path, monkeypatch):
    path = table(tmp_path, rows("a.png,Katze ß"), encoding="latin-1")
    refused(lambda: data.load("folder", path), path, "is not UTF-8 (byte 23); save it as CSV in UTF-8")
    monkeypatch.setattr("xcnn.data.table._MOST_BYTES", 10)
    refused(lambda: data.load("folder", path), "has 25 bytes, at most 10 are read")
    refused(lambda: data.load("folder", tmp_path / "none.csv"), "none.csv cannot be read: No such file")


def test_a_folder_may_be_called_like_a_table(tmp_path):
    pets(tmp_path / "pets.csv")
    assert data.load("folder", tmp_path / "pets.csv")[0].classes == ("cats", "dogs")

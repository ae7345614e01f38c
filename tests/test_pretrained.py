"""Photographs are classified with weights that others have trained, through the command, on every array library.

Runs where the packages are installed, as in `nox -s pretrained`; the photographs are those of scikit-image and of
scikit-learn.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from xcnn import models
from xcnn.models import PRETRAINED, pretrained


def folder(package):
    found = importlib.util.find_spec(package)
    return None if found is None else Path(found.submodule_search_locations[0])


PACKAGES = ("skimage", "sklearn", "timm", PRETRAINED["efficientnet_lite0"].file[0])
MISSING = [name for name in PACKAGES if not folder(name)]
installed = pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)}, which nox -s pretrained installs")

PHOTOS = {
    ("skimage", "data/chelsea.png"): {"tabby, tabby cat", "tiger cat", "Egyptian cat"},
    ("skimage", "data/coffee.png"): {"espresso"},
    ("skimage", "data/rocket.jpg"): {"missile", "projectile, missile"},
    ("sklearn", "datasets/images/china.jpg"): {"palace"},
    ("sklearn", "datasets/images/flower.jpg"): {"daisy"},
}


@installed
@pytest.mark.parametrize("device", ["cpu", "torch", "jax"])
def test_photographs_are_classified(xcnn, device):
    if device != "cpu":
        pytest.importorskip(device)
    paths = [str(folder(package) / file) for package, file in PHOTOS]
    code, out, err = xcnn("predict", "efficientnet_lite0", *paths, "--device", device, "--json")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["image"] for one in found] == paths
    for one, expected in zip(found, PHOTOS.values(), strict=True):
        assert one["class"] in expected, (one["image"], one["top"])
        assert len(one["probabilities"]) == 1000
        print(device, Path(one["image"]).name, one["class"], round(one["probability"], 3))


@installed
def test_the_weights_are_those_of_the_package():
    content = pretrained.pretrained_file("efficientnet_lite0").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("57934424")  # as its name says


def test_a_new_head_for_few_classes_is_as_narrow_as_that_for_a_thousand():
    """The published bound, 1 / sqrt(classes), makes scores of a few classes so large that a new head hardly learns."""
    for name in ("efficientnet_lite0", "efficientnet_b0"):
        head = models.build(name, (3, 32, 32), 4).state_dict()["classifier.1.weight"]
        assert 0.9 < np.abs(head).max() * np.sqrt(1000) <= 1

"""Networks by name: a table of functions that build them."""

from xcnn.models.catalog import MODELS, Entry, build, entry
from xcnn.models.pretrained import PRETRAINED

__all__ = ["MODELS", "PRETRAINED", "Entry", "build", "entry"]

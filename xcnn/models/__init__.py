"""Networks by name: a table of functions that build them."""

from xcnn.models.catalog import MODELS, Entry, build, entry

__all__ = ["MODELS", "Entry", "build", "entry"]

"""Named networks: builder functions and their table."""

from xcnn.models.catalog import MODELS, Entry, build

__all__ = ["MODELS", "Entry", "build"]

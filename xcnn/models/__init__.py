"""Networks by name: a table of functions that build them, and a grammar that draws them at random."""

from xcnn.models.catalog import MODELS, Entry, build, entry
from xcnn.models.grammar import Drawn, draw, drawn_name
from xcnn.models.pretrained import PRETRAINED
from xcnn.models.sketch import sketch

__all__ = ["MODELS", "PRETRAINED", "Drawn", "Entry", "build", "draw", "drawn_name", "entry", "sketch"]

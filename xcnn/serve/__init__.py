"""A local page to play with a trained network: draw, watch every layer, change weights, and take a step.

A thin shell over `xcnn.explain`: `session` holds the network, `drawing` and `neuron` compute what the page asks for,
`wire` packs arrays, `app` has the routes, `limits` refuses what no page of ours sends, and `server` listens. The page
itself is in `static/`.
"""

from xcnn.serve.server import Server, serve
from xcnn.serve.session import Session

__all__ = ["Server", "Session", "serve"]

"""See what a network has learned: its arrays, gradients at the input, receptive fields, mistakes.

Everything works on any network and layer, on the arrays of any library. `xcnn.plots` draws the results.
"""

from xcnn.explain.trace import Call, Rule, Trace, trace

__all__ = ["Call", "Rule", "Trace", "trace"]

"""What the attributions of `xcnn.explain` show, in words for someone who sees one for the first time."""

from typing import NamedTuple

__all__ = ["METHODS", "Method", "of_signals"]


class Method(NamedTuple):
    """An attribution in words.

    Attributes
    ----------
    title : its name.
    shows : what its map shows.
    careful : where to be careful.
    source : where it comes from.
    """

    title: str
    shows: str
    careful: str
    source: str


METHODS = {
    "grad_cam": Method(
        "Grad-CAM",
        "Where the last maps of the network speak for the answer. Each of these maps is weighted by how much the score "
        "would rise with it, and the sum is shown where it is positive.",
        "The map is as coarse as the last maps, and enlarged to the image: its edges are not those of the image. "
        "It shows only what speaks for the answer, never what speaks against it.",
        "Selvaraju et al. 2017",
    ),
    "grad_cam_plus_plus": Method(
        "Grad-CAM++",
        "As Grad-CAM, but with weights that treat several objects of the class more alike.",
        "The map is as coarse as the last maps are. Its weights rest on an approximation.",
        "Chattopadhay et al. 2018",
    ),
    "occlusion": Method(
        "Occlusion",
        "A window is covered, place by place, and the score is computed again. Red: covering it makes the score fall, "
        "so this part speaks for the answer. Blue: the score rises, so this part speaks against it.",
        "The network has never seen an image with a hole, and what happens depends on the size of the window and on "
        "the black that covers it. Two parts that can replace each other both look unimportant.",
        "Zeiler and Fergus 2013",
    ),
    "input_gradient": Method(
        "Gradient at the image",
        "How the score would change if a pixel became a little brighter. Red: it would rise; blue: it would fall.",
        "It says how to change the image, not what the answer rests on, and it is noisy.",
        "Simonyan, Vedaldi and Zisserman 2013",
    ),
    "gradient_times_input": Method(
        "Gradient times image",
        "The gradient at each pixel multiplied by its value: how much a pixel would add to the score if the network "
        "were a straight line here.",
        "A black pixel has the value 0 and never shows, however important it is that it is black.",
        "Shrikumar et al. 2016",
    ),
    "smooth_grad": Method(
        "SmoothGrad",
        "The mean of the gradients at many copies of the image with noise, so that chance patterns cancel out.",
        "The result depends on how strong the noise is.",
        "Smilkov et al. 2017",
    ),
    "integrated_gradients": Method(
        "Integrated gradients",
        "Each pixel multiplied by the mean of its gradients on the way from a black image to this one. All pixels "
        "together give the difference of the scores of both images.",
        "It compares with a black image: black pixels never show. Another image to compare with gives another map.",
        "Sundararajan, Taly and Yan 2017",
    ),
    "guided_backprop": Method(
        "Guided backpropagation",
        "The gradient, but each ReLU lets only positive gradients back, which draws sharp outlines.",
        "It draws outlines of the image even for a network with random weights, so it says little about the answer.",
        "Springenberg et al. 2014",
    ),
}
"""The attributions of `xcnn.explain` by name."""

_OF_SIGNALS = {
    "brighter": "larger",
    "A black pixel has the value 0 and never shows, however important it is that it is black": "A number that is 0 "
    "never shows, however important it is",
    "a black image": "a signal of zeros",
    "black pixels never show": "zeros never show",
    "the black that covers": "the zeros that cover",
    "pixel": "number",
    "image": "signal",
}


def of_signals(text: str) -> str:
    """Return what a text on images says of signals."""
    for words, others in _OF_SIGNALS.items():
        text = text.replace(words, others)
    return text

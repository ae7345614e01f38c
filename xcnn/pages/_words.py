"""What layers and methods do, in words for someone who sees a network for the first time."""

import re
from typing import NamedTuple

from xcnn.nn import Module

__all__ = ["METHODS", "Method", "about_layer"]

_LAYERS = {
    "Conv": "Each map shows where one small pattern occurs: a filter slides over the maps before and is multiplied by "
    "what lies below it. Red: the pattern is there; blue: its opposite is.",
    "ConvTranspose": "Each value of the maps before is spread over several places, so that the maps become larger.",
    "Linear": "Each number is a weighted sum of all numbers before.",
    "ReLU": "What is below zero becomes zero, so only patterns that were found remain.",
    "MaxPool": "Of each small window only the largest value remains: the maps become smaller, and exactly where a "
    "pattern was matters less.",
    "AvgPool": "Each small window becomes its mean: the maps become smaller.",
    "AdaptiveAvgPool": "The maps are averaged over windows that give maps of a fixed size.",
    "AdaptiveMaxPool": "Of each window, chosen to give maps of a fixed size, the largest value remains.",
    "GlobalAvgPool": "Each map becomes one number, its mean: whether a pattern was there, no longer where.",
    "GlobalMaxPool": "Each map becomes one number, its largest: whether a pattern was there, no longer where.",
    "BatchNorm": "Each map is shifted and scaled, as it was in training to have mean 0 and deviation 1.",
    "LayerNorm": "The numbers of one example are shifted and scaled together.",
    "GroupNorm": "Groups of maps are shifted and scaled together.",
    "InstanceNorm": "Each map of the image is shifted and scaled by itself.",
    "LocalResponseNorm": "Strong values weaken those at the same place in the maps beside them.",
    "Normalize": "The mean of the training images is subtracted, and the rest is divided by their deviation.",
    "Flatten": "The maps are written one after the other into one row of numbers. Nothing is computed.",
    "Unflatten": "A row of numbers is written as maps. Nothing is computed.",
    "Dropout": "In training, random values are set to zero; here nothing changes.",
    "StochasticDepth": "In training, whole branches are left out at random; here nothing changes.",
    "Identity": "Nothing changes.",
    "Add": "Two branches are added: what the layers in between have found, and what was there before them.",
    "Concat": "The maps of several branches are put side by side.",
    "Multiply": "Two branches are multiplied: one decides how much of the other passes.",
    "Softmax": "The scores become probabilities: positive numbers whose sum is 1.",
    "LogSoftmax": "The scores become logarithms of probabilities.",
    "Sigmoid": "Each number is pressed into the range from 0 to 1.",
    "Hardsigmoid": "Each number is pressed into the range from 0 to 1, along straight lines.",
    "Tanh": "Each number is pressed into the range from -1 to 1.",
    "Upsample": "The maps become larger.",
    "Pad": "A border is added to the maps.",
    "PixelShuffle": "Maps are interleaved into fewer and larger ones.",
    "PixelUnshuffle": "Maps are divided into more and smaller ones.",
    "ChannelShuffle": "The maps change their order, so that groups mix.",
}
"""By class of the layer, without the number of its axes."""

_CURVED = {"CELU", "ELU", "GELU", "SELU", "Hardswish", "LeakyReLU", "Mish", "PReLU", "SiLU", "Softplus", "Softsign"}
_BOUNDED = {"ReLU6", "Hardtanh"}


def about_layer(module: Module) -> str:
    """Return what a layer does, in one or two sentences."""
    kind = re.sub(r"[123]d$", "", type(module).__name__)
    if kind in _CURVED:
        return (
            "Each number passes through a curve that lets positive values through and presses negative ones together."
        )
    if kind in _BOUNDED:
        return "What is outside a range becomes the end of the range."
    return _LAYERS.get(kind, "A layer whose work this page does not know.")


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
        "How the score would change with each pixel, by a tiny step. Red: a brighter pixel would raise the score; "
        "blue: it would lower it.",
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
        "The gradients on the way from a black image to this one, added up. All pixels together give the difference of "
        "the scores of both.",
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

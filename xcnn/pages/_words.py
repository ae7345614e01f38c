"""What layers do, in words for someone who sees a network for the first time."""

import re

from xcnn.nn import Module

__all__ = ["about_layer"]

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

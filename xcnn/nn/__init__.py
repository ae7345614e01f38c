"""Layers and containers: modules that own parameters, call ops, and compose their backward passes."""

from xcnn.nn import init
from xcnn.nn._layer import Layer
from xcnn.nn._module import Buffer, Module
from xcnn.nn._summary import Summary, summary
from xcnn.nn.containers import Graph, Sequential
from xcnn.nn.functions import Flatten, Identity, LogSoftmax, MaxPool1d, MaxPool2d, MaxPool3d, ReLU, Softmax
from xcnn.nn.layers import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear
from xcnn.parameter import Parameter

__all__ = [
    "Buffer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Flatten",
    "Graph",
    "Identity",
    "Layer",
    "Linear",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Softmax",
    "Summary",
    "init",
    "summary",
]

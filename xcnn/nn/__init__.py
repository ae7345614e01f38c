"""Layers and containers: modules that own parameters, call ops, and compose their backward passes."""

from xcnn.nn._module import Buffer, Module
from xcnn.parameter import Parameter

__all__ = ["Buffer", "Module", "Parameter"]

"""Convolutional networks with hand-written forward and backward passes, on any array library."""

"""Compression: a network, or a part of it, written smaller without training, and the weights that stay solved for."""

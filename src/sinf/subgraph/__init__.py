"""Smaller networks: which channels belong together, which go, the physical cut, the weights that make up for it."""

"""A traced network as a graph of channels: traced, coupled, cut, counted, sliced, and verified."""

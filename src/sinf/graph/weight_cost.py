"""What loading a weight costs. No torch here: options have it as their default."""

#: MACs that one takes as long as: measured on one thread of a server processor, VGG16 at batch 1.
WEIGHT_COST = 32.0

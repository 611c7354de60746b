"""Training with gradients: one plain loop, and checkpoints without pickle that every training shares."""

"""Training with gradients: the loop of every training, checkpoints without pickle, several processes as one."""

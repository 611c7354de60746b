"""What a model does and costs beside its base: accuracy, time, stages, energy, and what must hold before delivery."""

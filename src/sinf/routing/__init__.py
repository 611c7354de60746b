"""Which subgraph an input runs: route predictor, feature router, deferral, and the threshold with its guarantee."""

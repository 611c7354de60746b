"""Dynamic pruning: every input gets its own set of channels (ManiDP, arXiv 2103.05861)."""

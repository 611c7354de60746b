"""What the verbs run, from options to a folder: ``build`` for bundles, ``prune`` for one smaller network."""

"""What the verbs run, from options to a folder: ``optimize`` for the fastest within a limit, ``build`` for bundles,
``prune`` for one smaller network."""

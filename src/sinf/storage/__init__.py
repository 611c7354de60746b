"""What is on disk: files that are whole or not there, JSON read through a schema, seals, steps that resume."""

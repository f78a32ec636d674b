"""Grids: many students over shared caches, launched here or through SLURM, and ranked by what they know of new text."""

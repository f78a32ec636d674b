"""Grids: many students over shared caches, run here or through SLURM, and ranked by measures on held-out text."""

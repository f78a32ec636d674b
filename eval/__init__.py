"""Evaluation: suites, protocols and statistics."""

"""Foundations that concern neither text nor caches: errors, settings, files, locks, progress."""

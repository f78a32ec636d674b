"""The objective of a student: terms, divergences and their weighted sum."""

"""Every model, cache, student and study as YAML, and the code that loads, overrides and checks it."""

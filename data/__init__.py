"""From raw text to tokens, windows and teacher caches."""

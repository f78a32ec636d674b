"""What a student minimises: terms, divergences, and the weighted sum of them."""

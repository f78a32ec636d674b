"""Stage one: a teacher's forward pass, and its capture into a cache."""

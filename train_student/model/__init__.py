"""The student: its shape, and the head that turns its states into logits and their terms."""

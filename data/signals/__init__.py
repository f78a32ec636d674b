"""From tokens to batches: what teachers say of windows, how it is encoded and stored, and the stream that reads it."""

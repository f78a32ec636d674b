"""From tokens to batches: teacher signals, how they are encoded and stored, and the stream that reads them."""

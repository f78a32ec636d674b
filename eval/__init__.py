"""What a model has learnt: measures, protocols and statistics."""

"""The tasks of (Super)GLUE that a model is fine-tuned on: `palenka eval RUN --suite glue`."""

"""Fine-tuning on tasks of (Super)GLUE: `palenka eval RUN --suite glue`."""

"""Following a model's ``forward`` to the inputs of its recurrences, and refusing where it cannot be followed."""

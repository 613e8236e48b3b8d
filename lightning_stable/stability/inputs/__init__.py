"""What is known about the inputs of recurrences: sets, given or derived, and whether a run stays in them."""

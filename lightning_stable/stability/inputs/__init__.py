"""The inputs of recurrences: sets that are declared or derived, the set of every layer, and the watch over a run."""

"""Moving weights into the stable set: once, strictly, or after every training step."""

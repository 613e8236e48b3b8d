"""Projections of weights onto the stable set: once and verified, or after every training step."""

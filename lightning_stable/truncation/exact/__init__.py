"""Exact windows: every output from its last ``window`` inputs, evaluated for all positions together."""

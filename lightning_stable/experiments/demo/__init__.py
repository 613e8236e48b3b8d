"""The demo: one LSTM on the text every Python carries, unconstrained and certified stable, each with its twin."""

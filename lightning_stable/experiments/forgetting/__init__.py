"""What a contraction must forget: for how many steps a stable network holds one bit."""

"""What stability costs: unconstrained and certified models beside each other, and what the loss is due to."""

"""Commands of ``lightning-stable`` that read a checkpoint."""

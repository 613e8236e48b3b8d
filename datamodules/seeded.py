"""Random generators that leave the global random state as it is."""

import torch


def seeded(seed: int, epoch: int = 0) -> torch.Generator:
    """Return a new generator for a seed and an epoch, seeded with ``(seed + epoch) mod 2^63``."""
    return torch.Generator().manual_seed((seed + epoch) % 2**63)

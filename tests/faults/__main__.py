"""Print what becomes of interrupted runs: ``python -m tests.faults [KILLS [VISITS]]``."""

import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.faults import campaigns


def main(kills: int = 100, visits: int = 1) -> int:
    """Interrupt runs at so many moments by chance, and at so many visits of every place."""
    torch.set_num_threads(1)
    begun, failures = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = campaigns.references(folder)
        for cases in (campaigns.at_places(folder, found, visits), campaigns.at_moments(folder, found, kills)):
            figures = campaigns.run(cases, found)
            failures += len(figures.failures)
            print(figures, flush=True)
    print(f"{failures} failures in {(time.monotonic() - begun) / 60:.1f} minutes")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

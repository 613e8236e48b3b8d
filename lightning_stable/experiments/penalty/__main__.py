"""``python -m lightning_stable.experiments.penalty``."""

import argparse
import sys

from lightning_stable.experiments.penalty.options import PenaltyOptions
from lightning_stable.options import add_options, read_options

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lightning_stable.experiments.penalty", description=__doc__)
    add_options(parser, PenaltyOptions)
    options = read_options(parser.parse_args(), PenaltyOptions)
    from lightning_stable.experiments.penalty.penalty import run_penalty

    sys.exit(run_penalty(options))

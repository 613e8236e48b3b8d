"""``python -m lightning_stable.experiments.cost``."""

import argparse
import sys

from lightning_stable.experiments.cost.options import CostOptions
from lightning_stable.options import add_options, read_options

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lightning_stable.experiments.cost", description=__doc__)
    add_options(parser, CostOptions)
    options = read_options(parser.parse_args(), CostOptions)
    from lightning_stable.experiments.cost.cost import run_cost

    sys.exit(run_cost(options))

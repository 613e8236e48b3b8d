"""``python -m lightning_stable.experiments.forgetting``."""

import argparse
import sys

from lightning_stable.experiments.forgetting.options import ForgettingOptions
from lightning_stable.options import add_options, read_options

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lightning_stable.experiments.forgetting", description=__doc__)
    add_options(parser, ForgettingOptions)
    options = read_options(parser.parse_args(), ForgettingOptions)
    from lightning_stable.experiments.forgetting.forgetting import run_forgetting

    sys.exit(run_forgetting(options))

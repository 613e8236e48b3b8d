"""``python -m lightning_stable.experiments.forgetting``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_stable.experiments.command import parser_of, run_with
from lightning_stable.experiments.forgetting.options import ForgettingOptions
from lightning_stable.options import read_options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return parser_of("forgetting", "For how many steps a stable network holds one bit.", ForgettingOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit status."""
    parser = build_parser()
    options = read_options(parser.parse_args(arguments), ForgettingOptions)
    from lightning_stable.experiments.forgetting.forgetting import run_forgetting  # its imports take seconds

    return run_with(parser, run_forgetting, options)


if __name__ == "__main__":
    sys.exit(main())

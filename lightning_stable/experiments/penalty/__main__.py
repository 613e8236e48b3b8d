"""``python -m lightning_stable.experiments.penalty``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_stable.experiments.command import parser_of, run_with
from lightning_stable.experiments.penalty.options import PenaltyOptions
from lightning_stable.options import read_options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return parser_of("penalty", "What a shorter window costs on data.", PenaltyOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit status."""
    parser = build_parser()
    options = read_options(parser.parse_args(arguments), PenaltyOptions)
    from lightning_stable.experiments.penalty.penalty import run_penalty  # its imports take seconds

    return run_with(parser, run_penalty, options)


if __name__ == "__main__":
    sys.exit(main())

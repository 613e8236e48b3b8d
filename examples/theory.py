"""What the theory of stable recurrent models says about training, measured: three experiments of seconds each.

    python examples/theory.py all --out runs/theory        (or gradient-gap, weight-distance, unstable)

Each prints a table, writes a figure and its numbers as JSON, and says whether the statement held; the exit status is
0 if all of them did. The statements are those of Miller & Hardt, Stable Recurrent Models, on sequences from
:class:`~lightning_stable.datamodules.LinearSystemDataModule`, in float64 throughout:

- ``gradient-gap``: at the same weights, the gradients of a recurrent model of rate λ and of its truncation to a window
  of k inputs differ by at most ``γ k λ^k``, for some constant γ.
- ``weight-distance``: trained side by side by projected gradient descent with step size ``α / t``, the two end close
  together. The distance falls with k like ``k λ^k`` and grows with the number of steps no faster than a power of it,
  for which the falling step size matters: with a constant one the proof allows exponential growth.
- ``unstable``: none of this is owed to gradient descent itself. On an unstable linear system its gradients explode.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from theory_experiments import Finding
from theory_experiments.truncated import gradient_gap, weight_distance
from theory_experiments.unstable import unstable

EXPERIMENTS: dict[str, Callable[[int], Finding]] = {
    "gradient-gap": gradient_gap,
    "weight-distance": weight_distance,
    "unstable": unstable,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments asked for; 0 if every statement held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder for figures and numbers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console, all_held = Console(width=110), True
    for name, experiment in EXPERIMENTS.items():
        if options.experiment not in (name, "all"):
            continue
        finding = experiment(options.seed)
        all_held &= finding.held
        path = options.out / name
        finding.figure.savefig(path.with_suffix(".png"), dpi=150)
        summary = {"statement": finding.statement, "held": finding.held, "seed": options.seed}
        path.with_suffix(".json").write_text(json.dumps(summary | finding.numbers, indent=1))
        console.print(finding.table)
        console.print(f"{'Held' if finding.held else 'DID NOT HOLD'}: {finding.statement}\n{path}.png, {path}.json\n")
    return 0 if all_held else 1


if __name__ == "__main__":
    torch.set_num_threads(1)  # small products, which a second thread only slows down
    raise SystemExit(main())

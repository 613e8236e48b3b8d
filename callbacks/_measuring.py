"""What the callbacks that measure share: a measurement that cannot be made ends no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from lightning_stable.diagnostics import TruncationProfile
from lightning_stable.diagnostics.finite import check_run
from lightning_stable.recurrence import recurrences_of


def is_measurable(who: str, name: str, module: nn.Module, inputs: Any, state: Any = None) -> bool:
    """Return whether weights, inputs and start state are finite; warn where they are not.

    Args:
        who: The class of the callback.
        name: The name of the module.
        module: The recurrent module.
        inputs: Its inputs, a tensor or a PackedSequence.
        state: Its start state.
    """
    states = state if isinstance(state, tuple) else (state,)
    try:
        check_run(recurrences_of(module), inputs.data, *(part for part in states if isinstance(part, Tensor)))
    except ValueError as error:
        rank_zero_warn(f"{who} skips {name!r} at this validation. {error}")
        return False
    return True


def of_all_processes(
    trainer: Trainer,
    device: torch.device,
    names: Iterable[str],
    profiles: Mapping[str, TruncationProfile],
) -> dict[str, TruncationProfile]:
    """Return this process's profiles with the sequences of all processes, each once.

    All processes must call it. A sampler that gives every process equally many sequences repeats some of them at the
    end; where they were all profiled, the repeated ones are left out. A process with shorter sequences has fewer
    windows, and no error with more.

    Args:
        trainer: The trainer.
        device: Where processes exchange tensors.
        names: Names of all modules that may have been profiled, the same in all processes.
        profiles: Profiles by the name of the module.
    """
    own = {}
    for name in names:
        errors = profiles[name].sequence_error if name in profiles else torch.empty(0, 0, dtype=torch.float64)
        own[name] = errors[:, : errors.shape[1] - _repeated(trainer, errors.shape[1])]
    shapes = torch.tensor([tuple(errors.shape) for errors in own.values()], device=device)
    every_shape: Tensor = trainer.strategy.all_gather(shapes)
    every_shape = every_shape.view(-1, len(own), 2).cpu()
    windows, most = every_shape.amax((0, 1)).tolist()
    padded = torch.zeros(len(own), windows, most, dtype=torch.float64)
    for row, errors in zip(padded, own.values(), strict=True):
        row[: errors.shape[0], : errors.shape[1]] = errors
    every: Tensor = trainer.strategy.all_gather(padded.to(device))
    every = every.view(-1, *padded.shape).cpu()
    tubes = torch.full((len(own), windows), torch.nan, dtype=torch.float64)
    for row, name in zip(tubes, own, strict=True):
        if name in profiles:
            row[: len(profiles[name].tube)] = profiles[name].tube
    every_tube: Tensor = trainer.strategy.all_gather(tubes.to(device))
    every_tube = every_tube.view(-1, *tubes.shape).cpu()
    largest = every_tube.masked_fill(every_tube.isnan(), -torch.inf).amax(0)
    found = {}
    for index, name in enumerate(own):
        longest = int(every_shape[:, index, 0].max())
        parts = zip(every, every_shape[:, index, 1].tolist(), strict=True)
        joined = torch.cat([part[index, :longest, :count] for part, count in parts], 1)
        if name in profiles:
            tube = largest[index, :longest].masked_fill(largest[index, :longest].isneginf(), torch.nan)
            found[name] = _with_sequences(profiles[name], joined, tube)
    return found


def _with_sequences(profile: TruncationProfile, errors: Tensor, tube: Tensor) -> TruncationProfile:
    """Return a profile with the errors of more sequences, some of which may be longer."""
    more = len(errors) - len(profile.windows)
    return replace(
        profile,
        windows=torch.arange(1, len(errors) + 1),
        sequence_error=errors,
        max_error=errors.amax(1),
        mean_error=torch.nn.functional.pad(profile.mean_error, (0, more)),
        tube=tube,
        bound=torch.nn.functional.pad(profile.bound, (0, more), value=torch.nan),
    )


def _repeated(trainer: Trainer, count: int) -> int:
    """Return how many of the last of ``count`` sequences the sampler of the first loader has given before."""
    loaders: Any = trainer.val_dataloaders
    while isinstance(loaders, (list, tuple, dict)):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    sampler = getattr(loaders, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or count != sampler.num_samples:
        return 0
    given = torch.arange(sampler.num_samples) * sampler.num_replicas + sampler.rank
    return int((given >= len(sampler.dataset)).sum())  # type: ignore[arg-type]

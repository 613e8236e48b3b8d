"""What windows are, by brute force: torch's own modules started again for every output."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

State = Any  # what a recurrent module takes and returns: a tensor, a pair of tensors, or None


def each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """A function of every part of a state."""
    if state is None:
        return None
    return tuple(change(part) for part in state) if isinstance(state, tuple) else change(state)


def parts(state: State) -> tuple[Tensor, ...]:
    return () if state is None else state if isinstance(state, tuple) else (state,)


def sequence(time: int = 9, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs of shape ``(time, batch, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(time, batch, 3, generator=generator, dtype=torch.float64).to(dtype)


def run_chunks(
    twin: nn.Module, x: Tensor, chunks: list[int], hx: State = None, *, change: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, State, list[State]]:
    """Outputs joined, last state and the states at all borders of chunks of these lengths."""
    outputs, states = [], []
    for values in x.split(chunks):
        if change is not None:
            hx = each(hx, change)
        output, hx = twin(values, hx)
        outputs.append(output)
        states.append(hx)
    return torch.cat(outputs), hx, states


def start_state(module: nn.Module, batch: int, seed: int = 7) -> State:
    """A state to start from that is not zero, of the dtype of the module."""
    directions = 1 + module.bidirectional
    generator = torch.Generator().manual_seed(seed)
    like = next(module.parameters())

    def part(size: int) -> Tensor:
        shape = (directions * module.num_layers, batch, size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(like).mul_(0.5)

    if isinstance(module, nn.LSTM):
        return part(module.proj_size or module.hidden_size), part(module.hidden_size)
    return part(module.hidden_size)


def own(module: nn.Module, x: Tensor, hx: State = None) -> tuple[Tensor, State]:
    """The module's own forward on ``(time, batch, features)``, whatever its layout."""
    output, state = module(x.transpose(0, 1) if module.batch_first else x, hx)
    return output.transpose(0, 1) if module.batch_first else output, state


def restarted(module: nn.Module, x: Tensor, window: int, hx: State = None) -> tuple[Tensor, State]:
    """Outputs and final states of the windowed form on ``(time, batch, features)``, one run for every output.

    A bidirectional module sees ``window - 1`` inputs to the right, too. The window starts from ``hx`` in a direction
    in which it meets the end of the sequence and from zero elsewhere.
    """
    time, both = len(x), module.bidirectional
    outputs, states = [], []
    for t in range(time):
        low, high = max(0, t - window + 1), min(time, t + window) if both else t + 1
        meets = torch.tensor([low == 0, high == time] if both else [low == 0]).repeat(module.num_layers)
        output, state = own(module, x[low:high], each(hx, lambda part, meets=meets: part * meets[:, None, None]))
        outputs.append(output[t - low])
        states.append(state)
    if not both:
        return torch.stack(outputs), states[-1]
    # The forward direction ends at the last position, the backward direction at the first.
    backward = torch.tensor([False, True]).repeat(module.num_layers)[:, None, None]
    ends = [torch.where(backward, a, b) for a, b in zip(parts(states[0]), parts(states[-1]), strict=True)]
    return torch.stack(outputs), tuple(ends) if isinstance(states[0], tuple) else ends[0]


def restarted_cell(cell: nn.Module, x: Tensor, window: int, hx: State = None) -> list[State]:
    """States after every input of a windowed cell."""
    states = []
    for t in range(len(x)):
        low = max(0, t - window + 1)
        state = hx if low == 0 else None
        for values in x[low : t + 1]:
            state = cell(values, state)
        states.append(state)
    return states


def flat(*results: Any) -> list[Tensor]:
    """All tensors of outputs and states in order, as plain tensors."""
    tensors: list[Tensor] = []
    for result in results:
        if isinstance(result, (tuple, list)):
            tensors += flat(*result)
        elif result is not None:
            tensors.append(result.as_subclass(Tensor) if type(result) is not Tensor else result)
    return tensors


def gradients(results: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss in which every entry of the results has a weight of its own."""
    loss = sum(
        (value * torch.arange(1, value.numel() + 1).sin().view(value.shape).to(value)).sum() for value in results
    )
    found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(tensor) if grad is None else grad.as_subclass(Tensor)
        for tensor, grad in zip(wanted, found, strict=True)
    ]


def same(found: Sequence[Tensor], expected: Sequence[Tensor], atol: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)

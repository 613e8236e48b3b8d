"""An attack on the tube: gradient ascent on the share of the bound that another history makes of a window's output.

It knows only torch's own layers, the input set and the start states that a tube speaks of.
"""

import copy
import math

import torch
from torch import Tensor, nn

from lightning_stable import certify_windows

_HISTORY = 6


def attack(
    module: nn.Module, bound: float, *, window: int, pairs: int, steps: int, seed: int = 0, rate: float = 0.1
) -> tuple[float, int]:
    """The largest ``||difference of outputs|| / bound`` found, and how many windows were tried.

    Args:
        module: A layer in float64.
        bound: Inputs have entries of at most this size.
        window: The number of inputs of the window, in each direction.
        pairs: How many windows are searched at once; histories begin at random states with entries up to 1.
        steps: Of Adam, which moves the window, the histories around it and the states before them.
        seed: Of the first guesses; half of them lie in corners.
        rate: Of Adam.
    """
    generator = torch.Generator().manual_seed(seed)
    module = copy.deepcopy(module).requires_grad_(False)
    directions = 1 + module.bidirectional
    places = 2 * window - 1 if module.bidirectional else window

    def guess(*shape: int) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        corner = (torch.arange(pairs) % 2 == 0)[:, None]
        return torch.where(corner, values.sign(), values).requires_grad_()

    x = guess(places, pairs, module.input_size)
    around = [guess(_HISTORY, pairs, module.input_size) for _ in range(directions)]
    rows = directions * module.num_layers
    state = [guess(rows, pairs, module.hidden_size)]
    if isinstance(module, nn.LSTM):
        state.insert(0, guess(rows, pairs, module.proj_size or module.hidden_size))
    free = [x, *around, *state]
    # Some pairs have no history: the states themselves come before the window.
    direct = torch.arange(pairs) % 4 < 2
    optimizer = torch.optim.Adam(free, lr=rate)
    worst = 0.0
    for _ in range(steps):
        inputs, histories = bound * x.clamp(-1, 1), [bound * part.clamp(-1, 1) for part in around]
        own, _ = module(inputs)
        start = tuple(part.clamp(-1, 1) for part in state)
        other = torch.where(
            direct[:, None],
            _middle(module, inputs, start, 0, window),
            _middle(module, torch.cat([histories[0], inputs, *histories[1:]]), start, _HISTORY, window),
        )
        apart = (other - own[window - 1]).square().sum(-1).add(1e-300).sqrt() - 1e-150
        ratios = apart / certify_windows(module, inputs.detach(), input_bound=bound)
        worst = max(worst, ratios.max().item())
        assert not math.isnan(worst)
        optimizer.zero_grad()
        (-(ratios + 1e-12).log().sum()).backward()
        optimizer.step()
        with torch.no_grad():
            for part in free:
                part.clamp_(-1, 1)
    return worst, pairs * steps


def _middle(module: nn.Module, inputs: Tensor, start: tuple[Tensor, ...], before: int, window: int) -> Tensor:
    outputs, _ = module(inputs, start if len(start) > 1 else start[0])
    middle: Tensor = outputs[before + window - 1]
    return middle

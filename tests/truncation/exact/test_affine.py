from itertools import product

import pytest
import torch
from torch import Tensor, nn

from lightning_stable import truncate
from lightning_stable.recurrence import recurrences_of
from lightning_stable.truncation.exact import rows
from tests.nets import net

CELLS = ("mingru", "minlstm")


def brute(module: nn.Module, x: Tensor, h0: Tensor, window: int) -> Tensor:
    outputs = []
    for end in range(len(x)):
        first = max(0, end - window + 1)
        outputs.append(module(x[first : end + 1], h0 if first == 0 else torch.zeros_like(h0))[0][-1])
    return torch.stack(outputs)


@pytest.mark.parametrize("name", CELLS)
def test_windows_of_every_length(name: str) -> None:
    module = net(name, scale=2)
    for time, window in product((1, 2, 7, 23), (1, 2, 5, 22, 40)):
        x, h0 = torch.randn(time, 2, 3).double().requires_grad_(), torch.randn(1, 2, 5).double().requires_grad_()
        found, expected = truncate(module, window, share=True)(x, h0)[0], brute(module, x, h0, window)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        sources = [x, h0, *module.parameters()]
        gradients = (torch.autograd.grad(output.square().sum(), sources) for output in (found, expected))
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CELLS)
def test_windows_go_on_over_chunks(name: str) -> None:
    module, x, h0 = net(name), torch.randn(23, 2, 3).double(), torch.randn(1, 2, 5).double()
    for window, size in product((2, 5, 40), (1, 4, 11)):
        twin, state, outputs = truncate(module, window), h0, []
        for chunk in x.split(size):
            output, state = twin(chunk, state)
            outputs.append(output)
        torch.testing.assert_close(torch.cat(outputs), brute(module, x, h0, window), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", CELLS)
def test_a_truncated_run_lacks_what_the_leaks_have_left(name: str) -> None:
    """``h^k_t = h_t - (product of the last k leaks) h_(t - k)``."""
    module, x = net(name, scale=3), torch.randn(40, 2, 3).double()
    (recurrence,) = recurrences_of(module)
    leaks, states = recurrence.affine(x)[0], module(x)[0]
    windows = truncate(module, 6)(x)[0]
    lost = leaks.unfold(0, 6, 1).prod(-1)[1:] * states[:-6]
    torch.testing.assert_close(windows[6:], states[6:] - lost, rtol=0, atol=1e-13)


def test_work_does_not_grow_with_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(rows, "_rows", refuse)
    truncate(net("mingru"), 9)(torch.randn(30, 2, 3).double())

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_stable.hooks import Hook, after_steps


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_leaves_the_hook_behind(again: Callable[[nn.Module], nn.Module]) -> None:
    module, calls = nn.Linear(1, 1), []
    module.register_forward_hook(Hook(lambda *_: calls.append(1) or torch.zeros(1)))
    twin = again(module)
    x = torch.ones(1)
    assert torch.equal(twin(x), nn.Linear.forward(module, x))
    assert not calls
    assert torch.equal(module(x), nn.Linear.forward(module, x))  # what the function returns replaces nothing
    assert calls == [1]


def test_no_optimizer_no_hook() -> None:
    holder = SimpleNamespace(param_groups=[], itself=None)
    holder.itself = holder
    assert after_steps(holder, lambda *_: None) is None
    assert after_steps(object(), lambda *_: None) is None


def test_the_last_of_several_optimizers_is_hooked() -> None:
    parameters, calls = [nn.Parameter(torch.ones(1)) for _ in range(2)], []
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in parameters]
    handle = after_steps(SimpleNamespace(optimizers=optimizers), lambda optimizer, *_: calls.append(optimizer))
    for optimizer in optimizers:
        optimizer.step()
    assert calls == optimizers[1:]
    assert handle is not None
    handle.remove()
    optimizers[1].step()
    assert len(calls) == 1

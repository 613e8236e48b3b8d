import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_stable.hooks import Hook


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

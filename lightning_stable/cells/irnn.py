"""The identity initialisation of ReLU networks."""

from typing import TypeVar

from torch import nn

from lightning_stable import checks

_RNN = TypeVar("_RNN", bound=nn.RNN)


def irnn_(module: _RNN) -> _RNN:
    """``W_hh = I``, ``b = 0``: set the recurrent weights of a ReLU network to the identity, in place.

    Source: Le, Jaitly, Hinton, *A Simple Way to Initialize Recurrent Networks of Rectified Linear Units* (2015).

    Args:
        module: An ``nn.RNN`` with ``nonlinearity="relu"``, of any number of layers and directions.

    Returns:
        The module.

    Raises:
        TypeError: If it is no module.
        ValueError: If the module is anything else.
    """
    if not isinstance(checks.module("module", module), nn.RNN) or module.nonlinearity != "relu":
        raise ValueError(f"`module` must be nn.RNN with nonlinearity='relu'. Got {checks.shown(module)}.")
    for name, parameter in module.named_parameters():
        if name.startswith("weight_hh"):
            nn.init.eye_(parameter)
        elif name.startswith("bias"):
            nn.init.zeros_(parameter)
    return module

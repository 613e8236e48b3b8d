"""Matrix products and tanh of large single-precision arrays on CPUs, by whichever of torch's libraries is fast.

Torch leaves both to libraries of which one does not use all of some processors: measured on a Zen 5 core, products
take 2.1 times as long as with oneDNN, and tanh 3 times. Anything else goes torch's usual way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What torch's own compiler calls for linear layers; not in every build.
_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# oneDNN generates code for every new shape and torch wraps its arrays: below, that is not worth it.
_MULTIPLICATIONS, _ELEMENTS = 2**21, 2**14


def product(first: Tensor, second: Tensor, added: Tensor | None = None) -> Tensor:
    """``first @ second``, plus ``added`` of the same shape; ``second`` may be a transpose at no cost.

    Stacks of matrices, ``(matrices, rows, columns)``, are multiplied one by one.
    """
    if first.dim() == 3 and added is None and _has_onednn(first):
        return torch.stack([product(one, other) for one, other in zip(first, second, strict=True)])
    large = first.dim() == 2 and first.shape[0] * second.numel() >= _MULTIPLICATIONS
    if large and _linear is not None and _has_onednn(first):
        if added is None:
            result: Tensor = _linear(first, second.t(), None, "none", [], "")
        else:
            result = _linear.binary(first, added, second.t(), None, "add")
        return result
    return first @ second if added is None else torch.addmm(added, first, second)


def tanh(values: Tensor) -> Tensor:
    """Hyperbolic tangent, a new array."""
    if values.numel() >= _ELEMENTS and _has_onednn(values):
        return values.to_mkldnn().tanh_().to_dense()
    return values.tanh()


def _has_onednn(values: Tensor) -> bool:
    return (
        values.dtype == torch.float32
        and values.device.type == "cpu"
        and torch._C._has_mkldnn
        and torch._C._get_mkldnn_enabled()  # a switch of the user's
    )

"""An adversary: gradient ascent on the contraction ratio, over pairs of admissible states and an admissible input.

It knows only torch's own layers and the sets a certificate speaks of, never how a certificate was computed. Everything
is float64, and many pairs are searched at once.
"""

import copy
import math

import torch
from torch import Tensor, nn

from lightning_stable.recurrence import recurrences_of
from lightning_stable.stability import (
    ActiveEntries,
    Box,
    FiniteSet,
    InputSet,
    L2Ball,
    LayerCertificate,
    LayerNormOutput,
)

State = tuple[Tensor, ...]
# What rounding may do: the differences of the pairs are at least NEAR, so a ratio is exact to about 1e-16 / NEAR times
# the size of the pre-activations.
TOLERANCE, NEAR = 1e-9, 1e-3


def member(inputs: InputSet | None, free: Tensor) -> Tensor:
    """Map free vectors ``(n, features)`` differentiably into the convex hull of the set, extreme points included.

    A bound on ``w x`` for all ``x`` of a set is one for its hull. None admits every input.
    """
    if inputs is None:
        return free
    if isinstance(inputs, Box):
        low, high = inputs.low.to(free), inputs.high.to(free)
        return (low + high) / 2 + (high - low) / 2 * free.clamp(-1, 1)
    if isinstance(inputs, L2Ball):
        return inputs.radius * free / free.norm(dim=1, keepdim=True).clamp(min=1)
    if isinstance(inputs, ActiveEntries):
        entries = free.clamp(0, 1)
        return inputs.height * entries * (inputs.count / entries.sum(1, keepdim=True).clamp(min=1e-9)).clamp(max=1)
    if isinstance(inputs, FiniteSet):
        points = inputs.points.detach().to(free)
        index = torch.arange(len(free)) % len(points)
        kept = (free > 0).to(free) if inputs.drop_probability else torch.ones_like(free)
        return points[index] * kept / (1 - inputs.drop_probability)
    if isinstance(inputs, LayerNormOutput):
        affine = [None if p is None else p.detach().to(free) for p in (inputs.gamma, inputs.beta)]
        return nn.functional.layer_norm(100 * free, free.shape[1:], *affine)
    raise TypeError(type(inputs))


def unprojected(module: nn.Module) -> nn.Module:
    """An LSTM with ``proj_size`` as torch's LSTM on the state ``(m, c)``, ``h = W_hr m``; other layers as they are."""
    if not getattr(module, "proj_size", 0):
        return module
    plain = nn.LSTM(module.input_size, module.hidden_size, bias=module.bias, dtype=module.weight_hh_l0.dtype)
    weights = dict(module.named_parameters())
    weights["weight_hh_l0"] = weights["weight_hh_l0"] @ weights.pop("weight_hr_l0")
    plain.load_state_dict(weights)
    return plain


def torch_step(module: nn.Module, x: Tensor, state: State) -> State:
    """One time step of torch's own single layer or cell: ``(n, features)``, states ``(n, units)``."""
    if isinstance(module, nn.RNNCellBase):
        result = module(x, state if len(state) > 1 else state[0])
        return result if isinstance(result, tuple) else (result,)
    if not isinstance(module, nn.RNNBase):  # a user's cell
        return recurrences_of(module)[0].step(x, state)
    start = tuple(part[None] for part in state)
    _, end = module(x[None], start if len(state) > 1 else start[0])
    return tuple(part[0] for part in (end if isinstance(end, tuple) else (end,)))


def extremes(inputs: InputSet, weight: Tensor) -> Tensor:
    """Members of a set at which the gates of a unit are large together; all members of a finite set."""
    points = inputs.members(weight)
    if points is not None:
        return points
    i, f, g, _ = weight.chunk(4)
    directions = [weight, *(s * i + t * g + u * f for s in (0, 1) for t in (-1, 0, 1) for u in (0.25, 1, 4))]
    return inputs.maximizer(torch.cat(directions))


def state_box(module: nn.Module, inputs: InputSet | None, state_bound: float) -> list[Tensor]:
    """A box that runs from ``|s| <= state_bound`` can fill, for each part of the state, derived here once more.

    For an LSTM ``|c_j| <= max(state_bound, i g / (1 - f))``, all gates at one input; hidden states reach 1 from
    wherever they start.
    """
    weights = {name.removesuffix("_l0"): value.detach() for name, value in module.named_parameters()}
    units = weights["weight_hh"].shape[1] if "weight_hh" in weights else module.hidden_size
    hidden = max(1.0, float(state_bound))
    box = [torch.full((units,), hidden, dtype=torch.float64)]
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        pre = extremes(inputs, weights["weight_ih"]) @ weights["weight_ih"].mT
        pre = pre + weights.get("bias_ih", 0) + weights.get("bias_hh", 0)
        reach = weights["weight_hh"].abs().sum(1) * hidden
        i, f, _, _ = (pre + reach).chunk(4, 1)
        g = (pre.abs() + reach).chunk(4, 1)[2].tanh()
        box.append((i.sigmoid() * g / (-f).sigmoid()).amax(0).clamp(min=state_bound))
    return box


def worst_ratio(
    module: nn.Module,
    certificate: LayerCertificate,
    inputs: InputSet | None,
    *,
    state_bound: float = 1.0,
    pairs: int = 96,
    steps: int = 50,
    seed: int = 0,
) -> float:
    """The largest ``distance(phi(a, x), phi(b, x)) / distance(a, b)`` found; ``module`` has one layer, in float64.

    States of nn.RNN, of which nothing is asked, are searched in the same box as others.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    module = copy.deepcopy(unprojected(module)).requires_grad_(False)
    box = state_box(module, inputs, state_bound)
    features = next(p for n, p in module.named_parameters() if n.startswith("weight_ih")).shape[1]
    # Half of the states start in corners of their box; inputs start anywhere, extremes included.
    corner = (torch.arange(pairs) % 2 == 0)[:, None]
    first = [torch.where(corner, u.sign(), u) for u in (uniform(pairs, len(b)) for b in box)]
    other = [uniform(pairs, len(b)) for b in box]
    x = 2 * uniform(pairs, features)
    # The second state lies in a direction of bounded length, from near to anywhere in the box.
    reach = torch.logspace(math.log10(NEAR), math.log10(2), 4, dtype=torch.float64).repeat(pairs // 4)[:, None]
    free = [t.requires_grad_() for t in (*first, *other, x)]
    optimizer = torch.optim.Adam(free, lr=0.05)

    def ratio() -> Tensor:
        a = tuple(s * u for s, u in zip(box, first, strict=True))
        b = tuple(s * (u + reach * v).clamp(-1, 1) for s, u, v in zip(box, first, other, strict=True))
        apart = torch.cat([(p - q).abs() for p, q in zip(a, b, strict=True)], dim=1).amax(1) > NEAR / 10
        shared = member(inputs, x)
        before = certificate.distance(a, b)
        after = certificate.distance(torch_step(module, shared, a), torch_step(module, shared, b))
        return torch.where(apart, after / before.where(apart, 1), 0)

    worst = 0.0
    for _ in range(steps):
        found = ratio()
        worst = max(worst, found.max().item())
        optimizer.zero_grad()
        (-(found + 1e-12).log().sum()).backward()
        optimizer.step()
        with torch.no_grad():
            for value in (*first, *other):
                value.clamp_(-1, 1)
    return worst

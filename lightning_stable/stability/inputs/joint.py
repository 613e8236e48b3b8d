r"""Drives of all gates of a unit at the same input: the input that opens one gate need not open another.

A *joint drive* is an interval of shape ``(scenarios, rows)``: for every admissible input and every unit there is a
scenario whose intervals hold the drives of *all* the unit's gates at that input. What a certificate derives from the
intervals of a scenario holds for the inputs of that scenario, so its maximum over the scenarios holds for all inputs.

For a finite set a scenario is a point. Any other set is cut into slices by the drive ``u_f x`` of the leak gate. Where
``s <= u_f x <= t``, any ``mu`` bounds the drive of another gate::

    u_q x = (u_q + mu u_f) x - mu u_f x <= max over x of (u_q + mu u_f) x - min(mu s, mu t)

and the lower end likewise: weak duality, so every input set can do it that bounds ``W @ x``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from lightning_stable.recurrence.base import Pairing
from lightning_stable.recurrence.intervals import Interval
from lightning_stable.stability.inputs.sets import InputSet

# Slices of the leak gate's drive, narrower towards its upper end, where rates are decided; and those of its partner's
# drive where many points are put together.
LEVELS, PARTNER_LEVELS = 16, 8
# Where the groups of :func:`fewer_scenarios` begin.
_GROUPS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 28, 36, 52, 68)
# Multipliers, in units of the ratio of the two gates' spreads.
_MULTIPLIERS = tuple(sign * 2.0**power for power in range(-2, 4) for sign in (-1, 1))
# Products of points with rows that are held at a time.
_CHUNK = 2**22


def joint_drive(inputs: InputSet, weight: Tensor, pairing: Pairing, *, between: bool = False) -> Interval:
    """Return the joint drive of units over an input set, shape ``(scenarios, rows)``.

    Args:
        inputs: The set.
        weight: Shape ``(rows, features)``, blocks of ``pairing.units`` rows.
        pairing: The blocks of the leak gate, and of the gate by which points of one leak drive are told apart where
            there are many.
        between: Whether to admit what lies between members as well: the convex hull of a finite set.
    """
    members = None if between else inputs.members(weight)
    blocks = weight.view(-1, pairing.units, weight.shape[1])
    if members is None:
        return _by_slices(inputs, blocks, pairing.leak)
    if len(members) <= LEVELS * PARTNER_LEVELS:
        products = members @ weight.mT
        return Interval(products, products)
    # The rows of a unit stay together.
    parts = torch.split(blocks, max(1, _CHUNK // (len(members) * len(blocks))), dim=1)
    bins = [_by_bins(members @ part.flatten(0, 1).mT, len(blocks), pairing) for part in parts]
    return Interval(*(torch.cat(ends, dim=2).flatten(1) for ends in zip(*bins, strict=True)))


def fewer_scenarios(drive: Interval, pairing: Pairing) -> Interval:
    """Put scenarios with neighbouring upper ends of the leak gate's drive together, unit by unit.

    Those at which the leak gate opens widest stay as they are. For maps that are applied many times.
    """
    if drive.high.dim() < 2 or len(drive.high) <= LEVELS:
        return drive
    low, high = (end.view(len(end), -1, pairing.units) for end in drive)
    order = high[:, pairing.leak].argsort(0, descending=True)[:, None].expand_as(high)
    low, high = low.gather(0, order), high.gather(0, order)
    groups = [slice(*ends) for ends in pairwise((*(first for first in _GROUPS if first < len(high)), len(high)))]
    least, largest = [low[group].amin(0) for group in groups], [high[group].amax(0) for group in groups]
    return Interval(torch.stack(least).flatten(1), torch.stack(largest).flatten(1))


def _by_slices(inputs: InputSet, blocks: Tensor, leak: int) -> Interval:
    plain = _drive(inputs, blocks)
    spread = plain.high - plain.low
    fractions = torch.linspace(1, 0, LEVELS + 1, dtype=blocks.dtype, device=blocks.device).square()[:, None, None]
    # Written so that the ends are met exactly, and no difference overflows.
    edges = plain.high[leak] * (1 - fractions) + plain.low[leak] * fractions
    bottom, top = edges[:-1], edges[1:]
    ratio = spread / spread[leak]
    ratio = ratio.where(ratio.isfinite(), 0.0)
    low, high = (end.expand(LEVELS, *end.shape) for end in plain)
    for multiplier in _MULTIPLIERS:
        mu = multiplier * ratio
        combined = _drive(inputs, blocks + mu[:, :, None] * blocks[leak])
        least, most = (mu * bottom, mu * top) if multiplier > 0 else (mu * top, mu * bottom)
        # An overflow says nothing.
        high = torch.minimum(high, (combined.high - least).nan_to_num(torch.inf, torch.inf, torch.inf))
        low = torch.maximum(low, (combined.low - most).nan_to_num(-torch.inf, -torch.inf, -torch.inf))
    low[:, leak], high[:, leak] = bottom[:, 0], top[:, 0]
    # A slice without members, in a set whose bounds are not met.
    return Interval(low.flatten(1), torch.maximum(low, high).flatten(1))


def _drive(inputs: InputSet, blocks: Tensor) -> Interval:
    drive = inputs.drive(blocks.flatten(0, 1))
    return Interval(drive.low.view(blocks.shape[:2]), drive.high.view(blocks.shape[:2]))


def _by_bins(products: Tensor, gates: int, pairing: Pairing) -> Interval:
    """Put points with nearly the same drives of leak gate and partner into one scenario, unit by unit."""
    products = products.view(len(products), gates, -1)
    drives = products[:, [pairing.leak, pairing.partner]]
    top, bottom = drives.amax(0), drives.amin(0)
    position = (top - drives) / (top - bottom)
    position = position.where(position.isfinite(), 0.0)
    leaks, partners = position[:, 0].sqrt() * LEVELS, position[:, 1] * PARTNER_LEVELS
    rank = leaks.long().clamp(max=LEVELS - 1) * PARTNER_LEVELS + partners.long().clamp(max=PARTNER_LEVELS - 1)
    index = rank[:, None].expand_as(products)
    empty = torch.full_like(products[0], torch.inf).expand(LEVELS * PARTNER_LEVELS, *products.shape[1:])
    low = empty.scatter_reduce(0, index, products, "amin")
    high = (-empty).scatter_reduce(0, index, products, "amax")
    # Scenarios of no point repeat one that there is; NaN stays.
    filled = ~(low > high)
    return Interval(low.where(filled, products[0]), high.where(filled, products[0]))

"""Negative log-likelihood of piano rolls, per frame."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.metrics.micro_average import MicroAverage


def frame_nll(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ``-sum [y log s(x) + (1 - y) log(1 - s(x))]`` in nats over keys and frames, and the number of frames.

    Here x are the logits, y the targets and s the logistic function: each key sounds with probability ``s(x)``. The sum
    is computed in float32 at least. What lies under the mask, nan included, influences neither it nor its gradient.

    Args:
        logits: Shape ``(batch, time, keys)``.
        targets: 1 where a key sounds, else 0; the same shape, of any dtype.
        mask: False at frames that do not count, ``(batch, time)``, bool; None if all of them do.

    Returns:
        Both as scalars on the device: what :class:`FrameNLL` is updated with. Their ratio is the loss.

    Raises:
        TypeError: Naming the argument that is no tensor.
        ValueError: Naming the argument that has a wrong shape.
    """
    checks.tensor("logits", logits)
    checks.tensor("targets", targets)
    if mask is not None:
        checks.tensor("mask", mask)
    if logits.dim() != 3 or logits.shape != targets.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"`logits` and `targets` must have one shape (batch, time, keys). Got {shapes}.")
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != logits.shape[:2]:
            shape = tuple(logits.shape[:2])
            raise ValueError(f"`mask` must be bool of shape {shape}. Got {mask.dtype} of shape {tuple(mask.shape)}.")
    else:
        mask = torch.ones_like(logits[..., 0], dtype=torch.bool)
    # Masked before and after: indexing with the mask would wait for the device to say how many frames there are.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~mask[..., None], 0.0)
    nll = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return nll.masked_fill(~mask[..., None], 0.0).sum(), mask.sum()


class FrameNLL(MicroAverage):
    """Nats per frame, ``sum of key NLL over all frames / number of frames``, a micro average; nan without a frame.

    Update it with the result of :func:`frame_nll`: ``metric.update(*frame_nll(logits, targets, mask))``. It averages
    over the frames of a whole split; the mean over sequences is another number.
    """

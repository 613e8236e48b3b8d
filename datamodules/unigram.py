"""The floor of language modelling: a model that ignores the context."""

import torch
from torch import Tensor

from lightning_stable import checks


def unigram_perplexity(train_ids: Tensor, test_ids: Tensor, vocab_size: int) -> float:
    """Return ``exp(-mean_t log p(test_t))`` with ``p(v) = (count_train(v) + 1) / (len(train) + vocab_size)``.

    This is the perplexity of the token frequencies alone, with add-one smoothing.

    Args:
        train_ids: Token ids that are counted, shape ``(tokens,)``.
        test_ids: Token ids that are scored, shape ``(tokens,)``.
        vocab_size: Number of ids.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If there is nothing to score or an id lies outside ``0 .. vocab_size - 1``.
    """
    vocab_size = checks.integer("vocab_size", vocab_size)
    checks.ids("train_ids", train_ids)
    if checks.ids("test_ids", test_ids).numel() == 0:
        raise ValueError("`test_ids` must hold at least one token. Got none.")
    for name, ids in (("train_ids", train_ids), ("test_ids", test_ids)):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise ValueError(
                f"`{name}` must lie in 0 .. vocab_size - 1 = {vocab_size - 1}. "
                f"Got {int(ids.min())} .. {int(ids.max())}."
            )
    counts = torch.bincount(train_ids, minlength=vocab_size).double() + 1
    log_probabilities = (counts / counts.sum()).log()
    return float(log_probabilities[test_ids.long()].mean().neg().exp())

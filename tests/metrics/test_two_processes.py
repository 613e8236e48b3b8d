"""Two processes come to the score of all data, however unevenly it is dealt out."""

import math
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from tests.metrics.conlleval import conlleval, f1
from tests.metrics.two_processes import LABELS, LOPSIDED, SHARES, main, nats, tags


def test_both_report_the_score_of_all_data(tmp_path: Path) -> None:
    # Forked, as importing torch twice would take longer than everything else.
    running = [get_context("fork").Process(target=main, args=(rank, tmp_path)) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second

    values = [value for rank in range(2) for batch in nats(rank, SHARES) for value in batch.flatten().tolist()]
    mean = math.fsum(values) / len(values)
    alone = nats(0, LOPSIDED)[0]
    names = [
        ([LABELS[i] for i in predicted], [LABELS[i] for i in gold])
        for rank in range(2)
        for batch in tags(rank)
        for predicted, gold in zip(*(ids.tolist() for ids in batch), strict=True)
    ]
    correct, predicted, gold = conlleval(names)
    assert first == pytest.approx(
        {
            "Perplexity": math.exp(mean),
            "BitsPerCharacter": mean / math.log(2),
            "FrameNLL": mean,
            "ChunkF1": f1((correct, predicted, gold)),
            "ChunkPrecision": correct / predicted,
            "ChunkRecall": correct / gold,
            "lopsided": alone.double().mean().exp().item(),
        },
        rel=1e-6,
    )

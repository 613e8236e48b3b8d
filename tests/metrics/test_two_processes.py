"""Two processes come to the score of all data, however unevenly it is dealt out."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.metrics.conlleval import conlleval, f1
from tests.metrics.two_processes import LABELS, LOPSIDED, SHARES, nats, tags


def test_both_report_the_score_of_all_data(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.metrics.two_processes"]
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=root, env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
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

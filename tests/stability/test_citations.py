"""The papers behind a certificate."""

import re

import pytest
import torch
from torch import nn

from lightning_stable import certify
from lightning_stable.cells import UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM
from lightning_stable.stability.citations import bibtex

CELLS = (nn.RNN, nn.LSTM, nn.GRU, UGRNN, IntersectionRNN, LeakyRNN, MinGRU, MinLSTM)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_every_certificate_names_its_papers(cell: type[nn.RNNBase]) -> None:
    report = certify(cell(3, 4), input_bound=1.0)
    text = report.citation()
    assert text == report.layers[0].citation()
    entries = re.findall(r"^@\w+\{(\w+),\n((?:  \w+ = \{.+\},?\n)+)\}$", text, re.M)
    assert len(entries) == text.count("@") == len({key for key, _ in entries})
    assert text.count("{") == text.count("}")
    for _, fields in entries:
        assert {"title", "author", "year"} <= set(re.findall(r"^  (\w+) = ", fields, re.M))
    assert entries[0][0] == "miller2019stable"
    assert len(entries) == (1 if cell is nn.RNN else 2)


def test_a_paper_is_named_once_and_a_norm_has_its_own() -> None:
    torch.manual_seed(0)
    report = certify(nn.ModuleList([nn.RNN(3, 64), nn.GRU(3, 4), nn.GRU(3, 4)]), input_bound=1.0)
    assert report.layers[0].norm == "full"
    assert re.findall(r"@\w+\{(\w+)", report.citation()) == [
        "miller2019stable",
        "revay2020contracting",
        "ando1973structure",
        "bonassi2021stability",
    ]
    assert bibtex([("my own cell", "my own norm")]).count("@") == 1

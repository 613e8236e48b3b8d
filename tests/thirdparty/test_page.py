"""The examples of docs/integrate.md that need other packages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import seed_everything

from tests.thirdparty.runs import needs, without_torchvision

pytestmark = needs("pytorch_forecasting", "neuralforecast", "darts", "kraken")
PAGE = Path(__file__).parents[2] / "docs" / "integrate.md"
BLOCK = r"^```python title=\"{}\"\n(.*?)^```"


@pytest.mark.parametrize("package", ["pytorch-forecasting", "neuralforecast", "darts", "kraken"])
def test_examples_run(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(BLOCK.format(package), PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    seed_everything(0)
    with without_torchvision():
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["projection"].report.rate <= 0.95
    assert names["projection"].report.guarantee == "data"

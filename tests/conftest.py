"""Every test draws the same random numbers, whatever ran before it and on whichever worker."""

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(0)


def pytest_pycollect_makemodule() -> None:
    """What a module draws while it is collected does not depend on the modules before it."""
    torch.manual_seed(0)

import importlib
import sys
from pathlib import Path

import pytest

import lightning_stable.datamodules


def test_bare_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(lightning_stable.datamodules.__file__).resolve().parents[1]
    monkeypatch.syspath_prepend(str(root))
    sys.modules.pop("datamodules", None)
    with pytest.raises(ImportError, match=r"lightning_stable\.datamodules.*Got `datamodules`"):
        importlib.import_module("datamodules")


def test_exports_exist() -> None:
    for name in lightning_stable.datamodules.__all__:
        assert hasattr(lightning_stable.datamodules, name)

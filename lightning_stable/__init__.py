"""lightning-stable: provably stable recurrent networks for PyTorch Lightning.

The functions here need torch only; the Lightning side is in ``lightning_stable.callbacks``,
``lightning_stable.datamodules`` and ``lightning_stable.models``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_stable.version import __version__

if TYPE_CHECKING:
    from lightning_stable.diagnostics.truncation_profile import truncation_profile
    from lightning_stable.recurrence import register_recurrence
    from lightning_stable.stability.certify import certify
    from lightning_stable.stability.projection.project import project_
    from lightning_stable.stability.tube import certify_windows
    from lightning_stable.truncation.truncate import truncate

__all__ = [
    "__version__",
    "certify",
    "certify_windows",
    "project_",
    "register_recurrence",
    "truncate",
    "truncation_profile",
]

_HOMES = {
    "certify": "stability",
    "certify_windows": "stability",
    "project_": "stability",
    "register_recurrence": "recurrence",
    "truncate": "truncation",
    "truncation_profile": "diagnostics",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: `lightning-stable --help` should not have to wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

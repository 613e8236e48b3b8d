"""lightning-stable: provably stable recurrent networks for PyTorch Lightning.

The functions here need torch only; the Lightning side is in ``lightning_stable.callbacks``,
``lightning_stable.datamodules`` and ``lightning_stable.models``.
"""

from lightning_stable.recurrence import register_recurrence
from lightning_stable.stability import certify, project_
from lightning_stable.truncation import truncate, truncation_profile
from lightning_stable.version import __version__

__all__ = ["__version__", "certify", "project_", "register_recurrence", "truncate", "truncation_profile"]

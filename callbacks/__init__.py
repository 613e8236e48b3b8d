"""Lightning callbacks: thin adapters of the core to a Trainer, one class per file.

The folder stands at the root of the repository and installs as ``lightning_stable.callbacks``.
"""

if __name__ != "lightning_stable.callbacks":
    # Under the bare name every class would exist a second time and isinstance checks between the copies would fail.
    raise ImportError(f"Import this package as `lightning_stable.callbacks`. Got `{__name__}`.")

from lightning_stable.callbacks.feed_forward_shadow import FeedForwardShadowCallback
from lightning_stable.callbacks.stability_projection import StabilityProjectionCallback
from lightning_stable.callbacks.stable_model_checkpoint import StableModelCheckpoint
from lightning_stable.callbacks.state_gradient import StateGradientCallback
from lightning_stable.callbacks.truncation_penalty import TruncationPenaltyCallback
from lightning_stable.callbacks.truncation_profile import TruncationProfileCallback

__all__ = [
    "FeedForwardShadowCallback",
    "StabilityProjectionCallback",
    "StableModelCheckpoint",
    "StateGradientCallback",
    "TruncationPenaltyCallback",
    "TruncationProfileCallback",
]

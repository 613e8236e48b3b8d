"""Training a second, windowed model beside the first, without the first one noticing.

Used by :class:`lightning_stable.callbacks.FeedForwardShadowCallback`.
"""

from lightning_stable.shadow.build import TwinSource, check_model
from lightning_stable.shadow.projection import TwinProjection
from lightning_stable.shadow.shadow_run import ShadowRun
from lightning_stable.shadow.twin import Twin

__all__ = ["ShadowRun", "Twin", "TwinProjection", "TwinSource", "check_model"]

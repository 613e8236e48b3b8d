"""Diagnostics: what is measured on given inputs. Every number here is a measurement, never a bound."""

from lightning_stable.diagnostics.jacobians import gradient_norms, lyapunov_exponents
from lightning_stable.diagnostics.state_gradients import StateGradients, measure_state_gradients
from lightning_stable.diagnostics.truncation_profile import TruncationProfile, truncation_profile

__all__ = [
    "StateGradients",
    "TruncationProfile",
    "gradient_norms",
    "lyapunov_exponents",
    "measure_state_gradients",
    "truncation_profile",
]

"""What a cell and its adapter can be tested with; needs pytest."""

from lightning_stable.testing.recurrence_tests import RecurrenceTests

__all__ = ["RecurrenceTests"]

"""What a pickle or a copy of a callback holds."""

from __future__ import annotations

from typing import Any


class Portable:
    """A callback that travels without its run.

    A pickle or a copy holds the arguments and the results, and neither the model, nor hooks in it, nor what was
    recorded: callbacks may stand among a module's hyperparameters, which every checkpoint holds.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes of a copy that is in no run."""
        copy = object.__new__(type(self))
        vars(copy).update(vars(self))
        copy._leave_run()
        # Lightning gives every callback of a Trainer the model's own methods.
        return {name: value for name, value in vars(copy).items() if name not in ("log", "log_dict")}

    def _leave_run(self) -> None:
        """Give a new copy attributes of its own for those of the run; the original's must not be changed."""
        raise NotImplementedError

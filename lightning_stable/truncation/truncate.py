"""The feed-forward twin of a module, which evaluates every recurrent layer on the last ``window`` inputs."""

from __future__ import annotations

from torch import Tensor

from lightning_stable import checks
from lightning_stable.copying import ModuleT, copied
from lightning_stable.recurrence import find_recurrences, recurrences_by_module
from lightning_stable.truncation.windowed import Windowed, WindowedCell, WindowedLayer, lay_over


def truncate(module: ModuleT, window: int, *, share: bool = False, recompute: bool | None = None) -> ModuleT:
    """Return a twin of the module whose recurrent layers see the last ``window`` inputs only.

    The truncation is exact: output ``t`` of a recurrent layer is that of the layer restarted from zero at
    ``t - window``, all its layers together, and depends on inputs ``t - window + 1 .. t`` alone (of bidirectional
    layers, up to ``t + window - 1``). Windows that reach over the beginning start from the state the layer is given.
    With ``window`` at least the length of the sequence the twin *is* the model.

    A state that the twin returns and is given back continues the windows: over chunks, too, an output depends on the
    last ``window`` inputs. Carry it as it was returned, detached or not, with whole sequences chosen or reset.

    Args:
        module: Any module with recurrences; it is not changed.
        window: Number of inputs that an output depends on, at least 1.
        share: Whether the twin uses the module's own parameters and buffers instead of copies.
        recompute: Whether the backward pass computes the windows once more instead of keeping them. It is then about a
            third slower, and memory does not grow with the window. None decides by their size.

    Returns:
        A deep copy of the same class. Keys and shapes of its ``state_dict`` equal the module's.

    Raises:
        ValueError: As :func:`window_`.
        TypeError: If ``window`` is no integer, or the module cannot be copied.
    """
    window, share = checks.integer("window", window), checks.boolean("share", share)
    _check_recompute(recompute)
    find_recurrences(module)
    shared: dict[int, Tensor] = {}
    if share:
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return window_(copied(module, shared), window, recompute=recompute)


def window_(module: ModuleT, window: int, *, recompute: bool | None = None) -> ModuleT:
    """Give the recurrent layers of a module their windowed form, in place, and return the module.

    Args:
        module: Any module with recurrences.
        window: Number of inputs that an output depends on, at least 1.
        recompute: As in :func:`truncate`.

    Raises:
        TypeError: If ``window`` is no integer.
        ValueError: If ``window`` is not positive, there is no recurrence, or a recurrent module has a ``forward`` of
            its own that is no wrapper of its base's.
    """
    window = checks.integer("window", window)
    _check_recompute(recompute)
    for recurrence, *_ in recurrences_by_module(module).values():
        form: type[Windowed] = WindowedLayer if recurrence.takes_sequences else WindowedCell
        recurrent = lay_over(recurrence.module, form)
        recurrent.window, recurrent.recompute = window, recompute
    return module


def _check_recompute(recompute: bool | None) -> None:
    if recompute is not None:
        checks.boolean("recompute", recompute)

"""Where the twin comes from: a windowed copy of the model, or a given module that starts from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_stable.copying import copied, parts_of
from lightning_stable.recurrence import recurrent_modules
from lightning_stable.trainers import lightning_class
from lightning_stable.truncation import Windowed, window_

TwinSource = LightningModule | Callable[[], LightningModule] | None


def check_model(model: LightningModule) -> None:
    """Refuse models that a twin cannot follow.

    Raises:
        MisconfigurationException: For manual optimization, ``training_step(dataloader_iter)`` or no recurrence.
    """
    if not model.automatic_optimization:
        raise MisconfigurationException(
            "FeedForwardShadowCallback needs automatic optimization: under manual optimization the model's "
            "`training_step` makes the optimizer steps itself, and a second run of it beside the first could not be "
            "given the same rhythm. Got `automatic_optimization=False`."
        )
    # Lightning reads the signature in the same way.
    if is_param_in_hook_signature(model.training_step, "dataloader_iter", explicit=True):
        raise MisconfigurationException(
            "FeedForwardShadowCallback trains the twin on the model's batches. Got a `training_step(dataloader_iter)`, "
            "which takes them itself; let it take `batch`."
        )
    if not recurrent_modules(model):
        raise MisconfigurationException(
            f"FeedForwardShadowCallback needs a recurrent model. Got {type(model).__name__} with modules of types "
            f"{sorted({type(m).__name__ for m in model.modules()})}; register a cell of your own with "
            "lightning_stable.register_recurrence."
        )


def windowed_copy(model: LightningModule, window: int) -> LightningModule:
    """Return a deep copy whose recurrent layers see a window.

    Raises:
        MisconfigurationException: If the model cannot be deep-copied, the copy would call the model, or a layer has no
            windowed form.
    """
    for name in ("forward", "training_step", "validation_step"):
        replaced = vars(model).get(name)
        if replaced is not None and not (isinstance(replaced, MethodType) and replaced.__self__ is model):
            raise MisconfigurationException(
                f"FeedForwardShadowCallback cannot copy {type(model).__name__}: its `{name}` was replaced, as "
                "torch.compile does, and a copy would call the model's own. Pass `twin=`, an uncompiled module or a "
                f"function that makes one. Got {replaced!r}."
            )
    _check_shapes_known(model)
    try:
        twin = copied(model)
    except Exception as error:
        raise MisconfigurationException(
            f"FeedForwardShadowCallback could not deep-copy {type(model).__name__}: pass `twin=`, a module of the same "
            f"architecture or a function that makes one. Got {type(error).__name__}: {error}"
        ) from error
    _give_window(twin, window)
    return twin


def twin_from(source: LightningModule | Callable[[], LightningModule], model: LightningModule) -> LightningModule:
    """Return the given module, or the module that the given function makes.

    Raises:
        MisconfigurationException: If the function raises or makes no module, or the module is the model itself.
    """

    def refused(got: str) -> MisconfigurationException:
        return MisconfigurationException(
            f"`twin` must be a LightningModule of its own, or a function without arguments that makes one. Got {got}."
        )

    try:
        twin: Any = source() if lightning_class(source) is None else source
    except Exception as error:
        raise refused(f"{source!r}, which raised {type(error).__name__}: {error}") from error
    if twin is model:
        raise refused("the model itself")
    if lightning_class(twin) is None:
        raise refused(repr(twin))
    return cast(LightningModule, twin)


def prepare_given(twin: LightningModule, model: LightningModule, trainer: Trainer, window: int) -> None:
    """Set a given twin up as the trainer has set up the model, and give it the model's weights and modes.

    Raises:
        MisconfigurationException: If the two do not share all parameters and buffers, naming the first, or a layer has
            no windowed form.
    """
    twin.setup("fit")
    twin.configure_model()
    complete(twin, model, trainer, window)
    _check_shapes_known(model)
    ours, theirs = _tensors(model), _tensors(twin)
    _check_same(ours, theirs)
    with torch.no_grad():
        for name, value in ours.items():
            theirs[name].copy_(value)
            theirs[name].requires_grad_(value.requires_grad)
    twin.on_fit_start()


def complete(twin: LightningModule, model: LightningModule, trainer: Trainer, window: int) -> None:
    """Make all layers of a twin, of which some may be new, windowed and what those of the model are.

    Raises:
        MisconfigurationException: If a layer has no windowed form.
    """
    _give_window(twin, window)
    trainer.precision_plugin.convert_module(twin)
    twin.to(model.device)
    modes = {name: m.training for name, m in model.named_modules()}
    for name, module in twin.named_modules():
        module.training = modes.get(name, module.training)


def _give_window(twin: LightningModule, window: int) -> None:
    try:
        window_(twin, window)
    except ValueError as error:
        raise MisconfigurationException(f"FeedForwardShadowCallback cannot truncate the model. {error}") from error
    for module in twin.modules():
        for method in parts_of(MethodType, vars(module)):
            layer, name = method.__self__, method.__name__
            if isinstance(layer, Windowed) and getattr(layer, name, method) != method:
                raise MisconfigurationException(
                    f"FeedForwardShadowCallback gives recurrent layers a `{name}` with a window, which a method kept "
                    f"from before does not have: call the layer instead. Got a kept `{name}` of {layer}."
                )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check_same(model: Mapping[str, Tensor], twin: Mapping[str, Tensor]) -> None:
    def shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
        value = tensors.get(name)
        return None if value is None or is_lazy(value) else tuple(value.shape)

    for name in [*model, *twin]:
        first, second = shape(model, name), shape(twin, name)
        if first != second:
            raise MisconfigurationException(
                "`twin` must have the model's parameters and buffers, by name and shape. Got as first mismatch "
                f"{name!r}: shape {first} in the model, {second} in the twin."
            )


def _check_shapes_known(model: LightningModule) -> None:
    lazy = [name for name, value in _tensors(model).items() if is_lazy(value)]
    if lazy:
        raise MisconfigurationException(
            "FeedForwardShadowCallback needs all parameters before training; call the model once, on an example, "
            f"before fitting. Got {len(lazy)} lazy ones without a shape, the first is {lazy[0]!r}."
        )

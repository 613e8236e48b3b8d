"""``lightning-stable fit``, ``validate``, ``test`` and ``predict``: LightningCLI, with errors that take one line."""

from __future__ import annotations

import argparse
import re
import warnings
from typing import Any

from lightning_stable.options import Commands

COMMANDS = ("fit", "validate", "test", "predict")
# What jsonargparse says about a value around the reason why it was refused.
_AROUND_A_REASON = (
    "Does not validate against",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Given value",
    "Subtypes:",
)
# How it says that a configuration is none, and what a value was.
_NO_CONFIG = ("Problems parsing config", "Unexpected config")
_VALUE = "Given value: "


def add(commands: Commands) -> None:
    """Add the commands to the list that ``--help`` shows; LightningCLI parses their arguments."""
    for name in COMMANDS:
        commands.add_parser(name, help=f"{name} with LightningCLI: {name} --config FILE", add_help=False)


def run(arguments: list[str]) -> int:
    """Run LightningCLI; the resolved configuration is written beside the logs, never over the one that was given.

    Args:
        arguments: The name of the command, and its options.

    Raises:
        ValueError: If the options or the configuration cannot be used; anything else comes from the run itself.
    """
    from jsonargparse import DefaultHelpFormatter
    from lightning.pytorch.cli import LightningCLI

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Keeps the lines of the examples."""

    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    try:
        LightningCLI(
            args=arguments,
            # Subcommands take over the formatter, and nothing else.
            parser_kwargs={"exit_on_error": False, "formatter_class": Formatter}
            | {name: _parser_options(name) for name in LightningCLI.subcommands()},
            save_config_kwargs={"config_filename": "resolved_config.yaml", "overwrite": True},
        )
    except (argparse.ArgumentError, ValueError) as error:
        ours = isinstance(error, ValueError) and _AROUND_A_REASON[0] not in str(error)
        if ours and not str(error).startswith(_NO_CONFIG):
            raise
        raise ValueError(reason(str(error))) from error
    return 0


def reason(message: str) -> str:
    """Return what an error of jsonargparse says, with the value it was given, without the lines about what it tried."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    said = " ".join(line for line in lines if line and not line.startswith(_AROUND_A_REASON))
    if said.startswith(_NO_CONFIG):
        return f"`--config` must be a YAML file of arguments. Got: {said}"
    value = next((line.removeprefix(_VALUE) for line in lines if line.startswith(_VALUE)), "")
    is_told = not value or "Got " in said or re.search(rf"(?<!\w){re.escape(value)}(?!\w)", said)
    return said if is_told else f"{said}. Got {value}."


def _parser_options(name: str) -> dict[str, Any]:
    more = "--trainer.max_epochs 3 --model.init_args.hidden_size 64" if name == "fit" else "--ckpt_path best.ckpt"
    return {
        "exit_on_error": False,
        "usage": f"lightning-stable {name} --config FILE [--config FILE ...] [--KEY VALUE ...]",
        "description": f"Run Trainer.{name} on the configuration of a model, its data, callbacks and trainer. A second "
        "file or an\noption replaces what the files before it say. --print_config prints the result.\n\n"
        "examples:\n"
        f"  lightning-stable {name} --config config.yaml\n"
        f"  lightning-stable {name} --config config.yaml {more}\n"
        f"  lightning-stable {name} --config config.yaml --print_config\n"
        f"  lightning-stable {name} --model.help lightning_stable.models.MusicModel",
    }

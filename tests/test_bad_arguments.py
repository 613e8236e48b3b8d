"""Every bad argument of every public callable is told so: by name, with its value, at once, and nothing is written."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from lightning_stable import truncate
from lightning_stable.truncation import pack_state
from tests.bad_values import EMPTY, KINDS, NO_TOKENS, Holder, Kind, made, problem, words
from tests.constructors import defaults

PACKAGES = """
    lightning_stable callbacks cells datamodules diagnostics export feedforward metrics models recurrence stability
    truncation
"""
# Records and bases: they hold what they are made of and check nothing. And what only takes `**kwargs` of a base.
UNCHECKED = {
    "DownloadError",
    "LinearSystem",
    "PaddedBatch",
    "Vocabulary",
    "InputSet",
    "LayerCertificate",
    "StabilityReport",
    "StateGradients",
    "TruncationProfile",
    "Windowed",
    "BatchForm",
    "StreamingForm",
    "Exported",
    "Metadata",
    "Budget",
    "Contraction",
    "GatedRecurrence",
    "Interval",
    "LeakingRecurrence",
    "Recurrence",
    "CoreModel",
    "ConvolutionalNet",
    "MicroAverage",
    "BitsPerCharacter",
    "FrameNLL",
    "MutualInformation",
    "Perplexity",
    "LanguageModelingDataModule",
    "SequenceDataModule",
    "GeneratedDataModule",
    "FixedPatternsDataModule",
}


def layer() -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(3, 4)


def model() -> Holder:
    return Holder(layer())


def inputs() -> torch.Tensor:
    return torch.ones(5, 2, 3)


GOOD: dict[str, Callable[[], dict[str, Any]]] = {
    **dict.fromkeys(
        ("ATISDataModule", "PennTreebankDataModule", "TextDataModule", "Text8DataModule"),
        lambda: {"data_dir": "folder"},
    ),
    "ActiveEntries": lambda: {"count": 2},
    "Box": lambda: {"low": -1.0, "high": 1.0},
    "BucketBatchSampler": lambda: {"lengths": [3, 1], "batch_size": 1},
    "ChunkF1": lambda: {"labels": ["O", "B-x"]},
    "ColumnStream": lambda: {"stream": torch.arange(9), "batch_size": 1, "chunk_length": 2},
    "DictVocabulary": lambda: {"tokens": ["<unk>"]},
    "FeedForwardShadowCallback": lambda: {"window": 2},
    "TruncationPenaltyCallback": lambda: {"window": 2},
    "FiniteSet": lambda: {"points": torch.ones(2, 3)},
    "L2Ball": lambda: {"radius": 1.0},
    "LanguageModel": lambda: {"vocab_size": 7, "embedding_size": 4, "hidden_size": 4},
    "LayerNormOutput": lambda: {"gamma": None, "beta": None, "features": 3},
    "MusicModel": lambda: {"keys": 2, "hidden_size": 4},
    "SequenceRegressor": lambda: {"input_size": 3, "output_size": 2, "hidden_size": 4},
    "SlotTagger": lambda: {"vocab_size": 7, "labels": ["O", "B-x"], "hidden_size": 4},
    "SupNorm": lambda: {"bound": 1.0},
    "build_core": lambda: {"input_size": 3, "hidden_size": 4},
    "build_recurrence": lambda: {"cell": "gru", "input_size": 3, "hidden_size": 4},
    "certify": lambda: {"module": model(), "input_bound": 1.0},
    "export": lambda: {"model": layer(), "window": 2, "path": "model.pt2", "format": "torch-export"},
    "fetch": lambda: {"url": "http://127.0.0.1:9/x", "path": "x"},
    "find_recurrences": lambda: {"module": model()},
    "frame_nll": lambda: {"logits": torch.ones(2, 3, 4), "targets": torch.ones(2, 3, 4)},
    "gradient_norms": lambda: {"recurrent": layer(), "inputs": inputs()},
    "irnn_": lambda: {"module": nn.RNN(3, 4, nonlinearity="relu")},
    "is_recurrent": lambda: {"module": model()},
    "lay_out_columns": lambda: {"stream": torch.arange(9), "columns": 2},
    "lyapunov_exponents": lambda: {"recurrent": layer(), "inputs": inputs()},
    "measure_state_gradients": lambda: {"recurrent": layer(), "inputs": inputs()},
    "mutual_information": lambda: {"correct": 0, "total": 4},
    "pack_state": lambda: {"state": carried()},
    "pad": lambda: {"pairs": [(torch.ones(2, 3), torch.ones(2, 3))]},
    "project_": lambda: {"module": model(), "input_bound": 1.0},
    "read_metadata": lambda: {"path": "model.pt2"},
    "record_inputs": lambda: {"module": model()},
    "recurrences_by_module": lambda: {"module": model()},
    "recurrences_of": lambda: {"module": layer()},
    "recurrent_modules": lambda: {"module": model()},
    "register_recurrence": lambda: {"module_type": Own, "like": nn.LSTM},
    "register_recurrence_factory": lambda: {"module_type": Own, "factory": lambda module, name: []},
    "spread_time_scales_": lambda: {"module": layer(), "longest": 9.0},
    "truncate": lambda: {"module": model(), "window": 2},
    "truncate_at_least": lambda: {"module": model(), "window": 2},
    "certify_windows": lambda: {"recurrent": layer(), "inputs": inputs(), "input_bound": 9.0},
    "truncation_profile": lambda: {"recurrent": layer(), "inputs": inputs(), "max_window": 3},
    "unigram_perplexity": lambda: {
        "train_ids": torch.ones(2).long(),
        "test_ids": torch.ones(2).long(),
        "vocab_size": 3,
    },
    "unpack_state": lambda: {"packed": pack_state(carried()), "layer": truncate(layer(), 2)},
    "window_": lambda: {"module": model(), "window": 2},
}
GOOD |= {"Recorded": GOOD["Box"], "ChunkPrecision": GOOD["ChunkF1"], "ChunkRecall": GOOD["ChunkF1"]}
GOOD |= dict.fromkeys(
    ("UGRNN", "IntersectionRNN", "LeakyRNN", "MinGRU", "MinLSTM", "TCN", "GatedConvNet", "WaveNet"),
    lambda: {"input_size": 3, "hidden_size": 4},
)


class Own(nn.LSTM):
    """A class of somebody else's."""


def carried() -> Any:
    return truncate(layer(), 2)(inputs())[1]


NAMES: dict[str, str] = {
    **dict.fromkeys(
        [
            "batch_size",
            "chunk_length",
            "columns",
            "copied",
            "count",
            "delay",
            "embedding_size",
            "eval_batch_size",
            "every_n_epochs",
            "every_n_steps",
            "features",
            "hidden_size",
            "histograms_every_n_epochs",
            "input_size",
            "keys",
            "kernel_size",
            "kinds",
            "length",
            "limit",
            "max_iterations",
            "max_bytes",
            "max_lag",
            "max_window",
            "min_frequency",
            "num_batches",
            "num_restarts",
            "num_layers",
            "output_size",
            "patterns",
            "state_size",
            "steps_per_epoch",
            "symbols",
            "test_size",
            "train_size",
            "valid_size",
            "vocab_size",
            "window",
            "world_size",
            "digits",
        ],
        "positive",
    ),
    **dict.fromkeys(["noise", "rank", "correct", "total"], "nonnegative"),
    **dict.fromkeys(
        [
            "batch_first",
            "bias",
            "bidirectional",
            "bucket",
            "causal",
            "checked",
            "derived",
            "every_step",
            "guaranteed",
            "normalize",
            "recompute",
            "residual",
            "share",
            "shuffle",
            "streaming",
            "strict",
            "tie_weights",
            "vary_length",
        ],
        "boolean",
    ),
    **dict.fromkeys(["dropout", "input_dropout", "drop_probability", "unknown_rate"], "share"),
    **dict.fromkeys(["height", "learning_rate", "max_seconds", "timeout", "tolerance"], "positive number"),
    **dict.fromkeys(["radius", "state_bound", "weight"], "nonnegative number"),
    **dict.fromkeys(["confidence", "coverage"], "inner share"),
    **dict.fromkeys(["cell", "core", "format", "level", "loss", "norm", "vocab_from"], "choice"),
    **dict.fromkeys(["data_dir", "figures", "path", "test", "train", "valid"], "path"),
    **dict.fromkeys(["low", "high", "bound"], "end of a box"),
    **dict.fromkeys(["logits", "targets"], "tensor"),
    **dict.fromkeys(["train_ids", "test_ids"], "ids"),
    **dict.fromkeys(["gamma", "beta", "example", "mask"], "tensor"),
    **dict.fromkeys(["module_type", "like"], "class of modules"),
    **dict.fromkeys(["output_gradients", "state_gradients"], "gradients"),
    **dict.fromkeys(["check", "factory", "predictions", "tokenizer"], "callable"),
    **dict.fromkeys(["gate_bias", "target_padding"], "finite number"),
    **dict.fromkeys(["monitor", "url", "sha256"], "text"),
    "device": "device",
    "dtype": "dtype",
    "gate_bound": "rate",
    "input_bound": "bound",
    "inputs": "inputs",
    "key_frequencies": "frequencies",
    "label": "label",
    "labels": "labels",
    "lengths": "lengths",
    "longest": "number above 1",
    "longest_time_constant": "number above 1",
    "method": "choice",
    "model": "module",
    "module": "module",
    "modules": "patterns",
    "name": "label",
    "packed": "packed",
    "pairs": "pairs",
    "points": "points",
    "rate": "rate",
    "recurrent": "module",
    "report": "report",
    "seed": "seed",
    "state": "state",
    "stream": "stream",
    "tokens": "tokens",
    "twin": "twin",
    "vocab": "vocabulary",
}
MODELS = ("LanguageModel", "MusicModel", "SequenceRegressor", "SlotTagger", "build_core")
# Where a name means another kind of thing than usual.
SPECIAL: dict[tuple[str, str], str] = {
    ("ATISDataModule", "digits"): "boolean",
    ("LinearSystemDataModule", "noise"): "nonnegative number",
    ("LinearSystemDataModule", "rate"): "nonnegative number",
    ("MemoryThroughputDataModule", "delay"): "nonnegative",
    ("StableModelCheckpoint", "rate"): "positive number",
    ("StateGradientCallback", "loss"): "text",
    ("FeedForwardShadowCallback", "name"): "text",
    ("ChoralesDataModule", "name"): "choice",
    **{(call, name): "text" for call in ("StabilityProjectionCallback", "Constraint") for name in ("norm", "method")},
    ("lay_out_columns", "stream"): "stream",
    ("certify", "module"): "module with weights",
    ("project_", "module"): "module with weights",
    ("truncation_profile", "recurrent"): "module with weights",
    ("certify_windows", "recurrent"): "module with weights",
    ("measure_state_gradients", "recurrent"): "module with weights",
    ("gradient_norms", "recurrent"): "module with weights",
    ("lyapunov_exponents", "recurrent"): "module with weights",
    ("certify", "input_bound"): "bound of the model",
    ("project_", "input_bound"): "bound of the model",
    ("pack_state", "state"): "carried",
    ("unpack_state", "layer"): "module",
    ("record_inputs", "module"): "module",
    ("export", "example"): "example",
    ("export", "bound"): "boolean",
    ("find_recurrences", "patterns"): "module patterns",
    ("recurrences_by_module", "patterns"): "module patterns",
    ("SequenceRegressor", "loss"): "choice",
}
# Values that are meant after all, by callable and argument.
MEANT: dict[tuple[str, str], tuple[Any, ...]] = {
    # As torch's layers.
    **{(cell, "dropout"): (1.0,) for cell in ("UGRNN", "IntersectionRNN", "LeakyRNN", "MinGRU", "MinLSTM")},
    ("unigram_perplexity", "train_ids"): (EMPTY,),
    ("lay_out_columns", "stream"): (NO_TOKENS,),
}
# How the value of one argument needs another.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    **{(call, "kernel_size"): {"core": "tcn"} for call in MODELS},
    ("BucketBatchSampler", "rank"): {"world_size": 2},
    ("ColumnStream", "rank"): {"world_size": 2},
}


class Case(NamedTuple):
    call: str
    function: Callable[..., Any]
    name: str
    kind: Kind
    optional: bool


def walk() -> list[Case]:
    found: dict[tuple[str, str], Case] = {}
    for package in PACKAGES.split():
        public = import_module("lightning_stable" if package == "lightning_stable" else f"lightning_stable.{package}")
        for call in public.__all__:
            function = getattr(public, call)
            if call in UNCHECKED or not callable(function):
                continue
            for parameter in parameters(function):
                name = parameter.name
                assert (call, name) in SPECIAL or name in NAMES, f"{call} takes a {name}: say of which kind it is"
                kind = KINDS[SPECIAL.get((call, name)) or NAMES[name]]
                if (call, name) == ("project_", "module"):
                    kind = kind + KINDS["module to change"]
                if (call, name) in SPECIAL and SPECIAL[call, name] == "bound of the model":
                    kind = KINDS["bound"] + kind
                found[call, name] = Case(call, function, name, kind, "None" in str(parameter.annotation))
    return list(found.values())


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function or a class, with those its `**kwargs` hand on to the bases."""
    listed: dict[str, inspect.Parameter] = {}
    chain = inspect.getmro(function) if isinstance(function, type) else (function,)
    kept = None
    if isinstance(function, type) and any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(function).parameters.values()
    ):
        kept = defaults(function)  # a class may hand fixed values to its base
    for part in chain:
        if not getattr(part, "__module__", "").startswith("lightning_stable") or (
            isinstance(function, type) and "__init__" not in vars(part)
        ):
            continue
        own = inspect.signature(part).parameters.values()
        for parameter in own:
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.kind is not parameter.VAR_POSITIONAL:
                listed.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return [parameter for name, parameter in listed.items() if kept is None or name in kept]


CASES = walk()


def bad_values(case: Case) -> list[tuple[Any, bool]]:
    meant = MEANT.get((case.call, case.name), ())
    values = [(value, True) for value in case.kind.types] + [(value, False) for value in case.kind.values]
    return [
        (value, wrong_type)
        for value, wrong_type in values
        if not (value is None and case.optional) and not any(value is good or value == good for good in meant)
    ]


def told(case: Case, value: Any, wrong_type: bool) -> str | None:
    good = GOOD.get(case.call, dict)() | WITH.get((case.call, case.name), {})
    bad = good | {case.name: made(value)}
    call = lambda: using(case.function, bad)  # noqa: E731
    found = problem(call, case.name, value, case.kind.also, wrong_type)
    return found and f"{case.call}({case.name}={words(value)}): {found}"


def using(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call it; what it returns may say more when it is used."""
    result = function(**arguments)
    if function.__name__ == "record_inputs":
        with result:
            pass
    if function.__name__ == "register_recurrence" and "like" not in arguments:
        result(Own)
    return result


@pytest.fixture(autouse=True)
def nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    assert [path.name for path in tmp_path.rglob("*")] == []


IDS = [f"{case.call}-{case.name}" for case in CASES]


def test_the_walk_is_long_enough() -> None:
    assert len(CASES) >= 200
    assert sum(len(bad_values(case)) for case in CASES) >= 1500


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_bad_argument(case: Case) -> None:
    """One bad value of every argument, another one for each callable."""
    values = bad_values(case)
    value, wrong_type = values[sum(map(ord, case.call + case.name)) % len(values)]
    assert told(case, value, wrong_type) is None


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_bad_argument(case: Case) -> None:
    assert [answer for value, wrong_type in bad_values(case) if (answer := told(case, value, wrong_type))] == []


@pytest.mark.parametrize("call", GOOD)
def test_good_arguments_are_good(call: str) -> None:
    """Or a bad value would be refused for another reason."""
    function = next(case.function for case in CASES if case.call == call)
    if call in ("export", "fetch", "read_metadata"):
        return  # they read or write files
    using(function, GOOD[call]())

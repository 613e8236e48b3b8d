"""``python -m benchmarks.gpu``: all there is to learn from one GPU, in less than ten minutes and without a download.

Every part runs in a process of its own, under its own limit of time, and keeps what it has found so far in a file: a
part that fails or hangs loses neither its earlier rows nor the other parts. The exit status is 0 if every part ended
well. ``--device cpu --small`` is a rehearsal on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import projection, scan, shadow, truncation, tube
from benchmarks.timing import Comparison, compared
from benchmarks.truncation import CELLS, Function, case, in_turn, naive_windows, train
from lightning_stable import truncate
from lightning_stable.files import write_text
from lightning_stable.models import LanguageModel
from lightning_stable.options import output_file
from lightning_stable.stability import Constraint
from lightning_stable.stability.projection.projector import Projector
from lightning_stable.version import __version__

Item = Comparison | str
_RATE = 0.99
# Relative, by which the rate of weights that were projected in float32 may be above the target.
_ROUNDING = 1e-4
_ROOT = Path(__file__).parents[1]
# Seconds of a whole call, with what starting the processes takes.
BUDGET = 570.0


class Part(NamedTuple):
    """One part: what it runs, and how many seconds it may take."""

    run: Callable[[str, bool], Iterator[Item]]
    limit: float


@dataclass
class Outcome:
    """How a part ended.

    Attributes:
        name: The part.
        status: ``"ok"``, ``"failed"``, ``"timed out"`` or ``"not started"``.
        seconds: How long it took, with the start of its process.
        rows: What was timed.
        notes: What was found besides.
        error: The end of what it printed, where it did not end well.
    """

    name: str
    status: str
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""


# ---------------------------------------------------------------------------------------------------------------- parts
def _tests(device: str, small: bool) -> Iterator[Item]:
    """Run the tests that need a GPU; a rehearsal looks for those of one file, and sees them skipped."""
    import pytest

    counts: dict[str, int] = {}

    class Counter:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] = counts.get(report.outcome, 0) + 1

    tests = _ROOT / "tests" / ("stability/projection/test_every_step.py" if small else "")
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={_ROOT}", str(tests)], [Counter()])
    yield f"pytest -m gpu: {', '.join(f'{count} {name}' for name, count in sorted(counts.items())) or 'no tests'}"
    if code != pytest.ExitCode.OK or (device != "cpu" and not counts.get("passed")):
        raise RuntimeError(f"pytest -m gpu ended with {code!r}")


def _steps(device: str, small: bool) -> Iterator[Item]:
    """Time steps with the projection, eagerly and as a graph, after some during which no value may be read."""
    words, units, batch, length = (9, 6, 2, 5) if small else (10_000, 256, 20, 35)
    failed = []
    for cell in ("rnn", "lstm", "gru", "mingru"):
        try:
            yield from _steps_of(cell, words, units, (batch, length), device, rounds=2 if small else 20)
        except Exception as error:  # the other cells are to be seen as well
            failed.append(cell)
            yield f"{cell}: {type(error).__name__}: {error}"
    if failed:
        raise RuntimeError(f"Steps failed of: {', '.join(failed)}")


def _steps_of(
    cell: str, words: int, units: int, shape: tuple[int, int], device: str, rounds: int
) -> Iterator[Comparison | str]:
    plain, projected, captured = (_Steps(cell, words, units, shape, device, with_it) for with_it in (False, True, True))
    for steps in (plain, projected, captured):
        for _ in range(3):
            steps.eager()
    if device == "cpu":
        projected.eager()
        replay = captured.eager
        yield f"{cell}: a CPU has neither graphs nor a mode that refuses reads; the steps ran eagerly"
    else:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                projected.eager()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield f"{cell}: steps with the projection read no value on the host"
        replay = captured.capture()
        yield f"{cell}: a step with the projection was captured in a graph"
    sides: dict[str, Callable[[], object]] = {"plain": plain.eager, "projected": projected.eager, "captured": replay}
    seconds = in_turn(sides, rounds, device)
    for steps, name in ((projected, "eager"), (captured, "captured")):
        rate = steps.projector.certify().rate
        if not rate <= _RATE * (1 + _ROUNDING):
            raise RuntimeError(f"{name} steps ended at the rate {rate}, above {_RATE}")
        yield f"{cell}: certified at {rate:.7f} after {name} steps"
    for ours, baseline in (("projected", "plain"), ("captured", "projected")):
        pairs = list(zip(seconds[baseline], seconds[ours], strict=True))
        yield compared(f"step of {cell}, {ours}", units, device, f"{baseline} step", pairs, float("nan"))


class _Steps:
    """Training steps of a language model, on random tokens that stay where they are, for a graph to read."""

    def __init__(
        self, cell: str, words: int, units: int, shape: tuple[int, int], device: str, projecting: bool
    ) -> None:
        torch.manual_seed(0)
        model = LanguageModel(words, cell=cell, hidden_size=units, dropout=0.0, input_dropout=0.0)
        self.model = model.to(device)
        self.projector = Projector(self.model, Constraint(_RATE))
        self.projector.project(strict=False)
        self.projecting = projecting
        self.tokens = torch.randint(words, (shape[0], shape[1] + 1)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, capturable=device != "cpu")

    def eager(self) -> None:
        self.optimizer.zero_grad()
        logits = self.model(self.tokens[:, :-1])[0]
        torch.autograd.backward(cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten()))
        self.optimizer.step()
        if self.projecting:
            self.projector.project(strict=False)

    def capture(self) -> Callable[[], None]:
        """Return a call that replays a step; torch wants the first ones on a stream of their own."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.eager()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            self.eager()
        return graph.replay


def _projection(device: str, small: bool) -> Iterator[Item]:
    sizes, steps = ((8,), 2) if small else ((128, 512, 1024), 20)
    yield from projection.spectral(sizes, device, steps)
    yield from projection.quadratic(sizes[:2], device, steps)
    yield from projection.gated(sizes[:2], device, 2 if small else 8)


def _truncation(device: str, small: bool) -> Iterator[Item]:
    """Time the forward alone against cuDNN's recurrence, then forward and backward against other evaluations."""
    shape = (12, 2, 4, 3) if small else truncation.GPU_SHAPES[0]
    yield from _forward(shape, device, 2 if small else 20)
    yield from truncation.truncation_against_naive((shape,), 2 if small else 5, device)


def _forward(shape: tuple[int, int, int, int], device: str, rounds: int) -> Iterator[Item]:
    length, batch, units, window = shape
    for name, cell in CELLS.items():
        layer, inputs = case(cell, length, batch, units, device=device)
        sides: dict[str, Callable[[], object]] = {
            "truncated": partial(_without_gradients, truncate(layer, window, share=True), inputs),
            "whole recurrence": partial(_without_gradients, layer, inputs),
            "naive windows": partial(_without_gradients, partial(naive_windows, layer, window=window), inputs),
        }
        seconds = in_turn(sides, rounds, device)
        for baseline in ("whole recurrence", "naive windows"):
            pairs = list(zip(seconds[baseline], seconds["truncated"], strict=True))
            what = f"truncated forward {name} T={length} B={batch} k={window}"
            yield compared(what, units, device, baseline, pairs, float("nan"))


@torch.no_grad()
def _without_gradients(function: Function, inputs: Tensor) -> object:
    return function(inputs)


def _twin(device: str, small: bool) -> Iterator[Item]:
    if small:
        yield from shadow.shadow((("rnn", 3),), units=4, vocabulary=9, runs=2, steps=6, device=device)
    else:
        yield from shadow.shadow((("lstm", 25), ("lstm", 10), ("mingru", 25)), runs=2, device=device)


def _tube(device: str, small: bool) -> Iterator[Item]:
    yield from tube.tube(((4, 3, 2),) if small else tube.SHAPES, 2 if small else 7, device)


def _scan(device: str, small: bool) -> Iterator[Item]:
    yield from scan.scan(((9, 2, 4),) if small else ((512, 20, 200), (1024, 8, 256)), 2 if small else 9, device)


def _memory(device: str, small: bool) -> Iterator[Item]:
    """Measure the memory that a forward and backward pass of an LSTM adds, and its time."""
    length, batch, units, window = (12, 2, 4, 3) if small else truncation.GPU_SHAPES[0]
    layer, inputs = case(nn.LSTM, length, batch, units, device=device)
    functions: dict[str, Function] = {
        "truncated": truncate(layer, window, share=True),
        "naive windows": partial(naive_windows, layer, window=window),
        "whole recurrence": layer,
    }
    sides: dict[str, Callable[[], object]] = {name: partial(train, f, inputs) for name, f in functions.items()}
    seconds = in_turn(sides, 2 if small else 5, device)
    added = {name: _added(side, device) for name, side in sides.items()}
    if device == "cpu":
        yield "memory of a CPU is not measured here; see python -m benchmarks memory"
    for baseline in ("naive windows", "whole recurrence"):
        pairs = list(zip(seconds[baseline], seconds["truncated"], strict=True))
        extra = {"baseline MiB": added[baseline], "ours MiB": added["truncated"]}
        yield compared(f"truncated lstm T={length} k={window}", units, device, baseline, pairs, float("nan"), extra)


def _added(function: Callable[[], object], device: str) -> float:
    """Return the MiB that are allocated at most during a call, beyond those before it; NaN on a CPU."""
    if device == "cpu":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


PARTS = {
    "tests": Part(_tests, 150),
    "steps": Part(_steps, 90),
    "projection": Part(_projection, 90),
    "truncation": Part(_truncation, 70),
    "twin": Part(_twin, 60),
    "tube": Part(_tube, 40),
    "scan": Part(_scan, 40),
    "memory": Part(_memory, 30),
}


# -------------------------------------------------------------------------------------------------------------- running
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, write both files, and return 0 if every part ended well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu for a rehearsal")
    parser.add_argument("--small", action="store_true", help="sizes that take no time, and mean nothing")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--json", type=output_file, default=Path("runs/gpu.json"), help="everything, also the errors")
    parser.add_argument("--markdown", type=output_file, default=Path("runs/gpu.md"), help="the tables")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # run the part in this process
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device must be cpu where torch finds no CUDA device, with --small for a rehearsal. Got cuda")
    torch.set_num_threads(1)
    if options.inside:
        (name,) = options.parts
        run_part(name, options.device, options.small, options.json)
        return 0
    about, outcomes, end = environment(options.device, options.small), [], time.monotonic() + BUDGET
    for name in options.parts:
        left = end - time.monotonic()
        outcomes.append(run_apart(name, options.device, options.small, min(PARTS[name].limit, left)))
        print(f"{name}: {outcomes[-1].status} after {outcomes[-1].seconds:.0f} s", flush=True)
        # After every part, so that whoever stops this has the parts before.
        found = {"environment": about, "parts": [vars(outcome) for outcome in outcomes]}
        write_text(options.json, json.dumps(found, indent=1))
        write_text(options.markdown, markdown(about, outcomes))
    return int(any(outcome.status != "ok" for outcome in outcomes))


def run_part(name: str, device: str, small: bool, path: Path) -> None:
    """Run a part in this process, and write what it finds to a file each time that it finds something."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for item in PARTS[name].run(device, small):
        if isinstance(item, str):
            notes.append(item)
        else:
            rows.append(item.to_dict())
        write_text(path, json.dumps({"rows": rows, "notes": notes}))


def run_apart(name: str, device: str, small: bool, limit: float) -> Outcome:
    """Run a part in a process of its own, for at most so many seconds."""
    if limit <= 0:
        return Outcome(name, "not started", error="The time of the whole call was over.")
    outcome, start = Outcome(name, "ok"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, printed = Path(folder, "found.json"), Path(folder, "printed")
        options = ["--device", device, *(["--small"] if small else []), "--json", str(path), "--inside"]
        with printed.open("w") as stream:
            try:
                command = [sys.executable, "-m", "benchmarks.gpu", "--parts", name, *options]
                subprocess.run(command, stdout=stream, stderr=stream, timeout=limit, check=True, cwd=_ROOT)
            except subprocess.TimeoutExpired:
                outcome.status = "timed out"
            except subprocess.CalledProcessError:
                outcome.status = "failed"
        if path.exists():
            found = json.loads(path.read_text())
            outcome.rows, outcome.notes = found["rows"], found["notes"]
        if outcome.status != "ok":
            outcome.error = printed.read_text(errors="replace")[-4000:]
    outcome.seconds = time.monotonic() - start
    return outcome


def environment(device: str, small: bool) -> dict[str, str]:
    """Return the device, its driver, and the versions that the figures belong to."""
    about = {
        "device": platform.processor() or platform.machine(),
        "sizes": "small, for a rehearsal: the figures mean nothing" if small else "full",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "lightning-stable": __version__,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "device": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB",
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "driver": _driver(),
        }
    return about


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown: no nvidia-smi"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def markdown(about: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """Return the tables of all parts; a ratio is the baseline's time over ours."""
    lines = ["# One GPU", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += ["| part | ended | seconds |", "|---|---|---|"]
    lines += [f"| {outcome.name} | {outcome.status} | {outcome.seconds:.0f} |" for outcome in outcomes]
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}", "", *(f"- {note}" for note in outcome.notes)]
        if outcome.rows:
            extra = list(dict.fromkeys(name for row in outcome.rows for name in row["extra"]))
            columns = ["what", "size", "against", "its ms", "our ms", "ratio", "spread", "error", *extra]
            lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_cells(row, extra))} |" for row in outcome.rows]
        if outcome.error:
            lines += ["", "```text", outcome.error.strip()[-1000:], "```"]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], extra: Sequence[str]) -> list[str]:
    times = [f"{1e3 * row[key]:.3g}" for key in ("baseline_seconds", "ours_seconds")]
    ratios = [f"{row['ratio']:.3g}", f"{row['spread']:.2g}", f"{row['error']:.1e}"]
    others = [f"{row['extra'][name]:.4g}" if name in row["extra"] else "" for name in extra]
    return [row["name"], str(row["size"]), row["baseline"], *times, *ratios, *others]


if __name__ == "__main__":
    sys.exit(main())

"""A model that you did not train: how long is its memory, and how often may its stream be reset?

    pip install --no-deps silero-vad
    pip install 'lightning-stable[export]'
    python examples/pretrained.py --out runs/pretrained        (15 seconds)

silero-vad (MIT licence) finds speech in a stream of sound: every 32 ms it gives the probability of speech. Its core is
an LSTM, and its users ask how often to call ``reset_states()``. The weights are read from the package's ONNX file, put
into an ``nn.LSTM`` behind the front end rebuilt in torch, and compared with onnxruntime; no code of the package runs.
All sounds are generated: what is measured on them need not hold for real speech.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable import certify, truncation_profile
from lightning_stable.diagnostics.tolerance_limits import limit_rank
from lightning_stable.diagnostics.truncation_profile import windows_needed
from lightning_stable.figures import axes, save
from lightning_stable.options import HelpFormatter, output_folder, path, positive, seed
from lightning_stable.printing import counted
from lightning_stable.stability.report import why_no_bound

HERTZ, CHUNK, CONTEXT, UNITS = 16_000, 512, 64, 128
SECONDS = CHUNK / HERTZ  # of a step
TOLERANCE = 0.1  # of a probability
COVERAGE = CONFIDENCE = 0.95
BEFORE = 250  # steps before the reset
PAUSES = (0, 2, 5, 10, 20, 30, 60, 120)  # seconds without speech before speech
COLOURS = {"speech": "#2a7f3f", "noise": "#7b4fa3", "silence": "#8c8c8c"}
MISSING = (
    "This example needs the weights of silero-vad and the extra `export`. Install both, the first without what it "
    "depends on: pip install --no-deps silero-vad; pip install 'lightning-stable[export]'"
)


class Detector(nn.Module):
    """The front end, the LSTM and the readout for sound of 16 kHz, from the package's weights by their names there."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("basis", weights["model.stft.forward_basis_buffer"])
        shapes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        self.encoder = nn.ModuleList(nn.Conv1d(inputs, outputs, 3, stride, 1) for inputs, outputs, stride in shapes)
        self.lstm = nn.LSTM(UNITS, UNITS, batch_first=True)
        self.readout = nn.Linear(UNITS, 1)
        for index, layer in enumerate(self.encoder):
            prefix = f"model.encoder.{index}.reparam_conv."
            layer.load_state_dict({name: weights[prefix + name] for name in ("weight", "bias")})
        self.lstm.load_state_dict({name: weights[f"model.decoder.rnn.{name[:-3]}"] for name in self.lstm.state_dict()})
        last = "model.decoder.decoder.2."
        self.readout.load_state_dict({"weight": weights[f"{last}weight"][:, :, 0], "bias": weights[f"{last}bias"]})

    def features(self, sound: Tensor) -> Tensor:
        """``(recordings, samples)`` to what the LSTM reads, ``(recordings, steps, 128)``."""
        chunks = F.pad(sound, (CONTEXT, 0)).unfold(1, CONTEXT + CHUNK, CHUNK)
        padded = F.pad(chunks.reshape(-1, 1, CONTEXT + CHUNK), (0, CONTEXT), mode="reflect")
        real, imaginary = F.conv1d(padded, self.get_buffer("basis"), stride=128).chunk(2, 1)
        values = (real.square() + imaginary.square()).sqrt()
        for layer in self.encoder:
            values = layer(values).relu()
        return values.view(*chunks.shape[:2], UNITS)

    def listen(self, features: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the probability of speech at every step, ``(recordings, steps)``."""
        probability: Tensor = self.readout(self.lstm(features, state)[0].relu()).sigmoid()[..., 0]
        return probability


class Reset(NamedTuple):
    """What a reset does to the probabilities that follow.

    Attributes:
        change: How much each differs from that without a reset, ``(steps, recordings)``.
        measured: Steps after which no recording is changed by more than ``TOLERANCE``; None if some are all the time.
        statistical: The same for a share ``COVERAGE`` of all recordings; None if there are too few, too.
        flips: The share of steps on which the answer "speech" is another one, by step.
    """

    change: Tensor
    measured: int | None
    statistical: int | None
    flips: Tensor


def default_file() -> Path | None:
    """Return the ONNX file of the package, which is not imported; None if it is not installed."""
    package = importlib.util.find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(package.submodule_search_locations[0]) / "data" / "silero_vad_16k_op15.onnx"
    return file if file.exists() else None


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights in an ONNX file by name."""
    import onnx

    stored = onnx.load(file).graph.initializer
    return {weight.name: torch.from_numpy(onnx.numpy_helper.to_array(weight).copy()) for weight in stored}


def run_original(file: Path, sound: Tensor) -> Tensor:
    """Return what onnxruntime computes from the file, ``(recordings, steps)``."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    state = np.zeros((2, len(sound), UNITS), np.float32)
    answers = []
    for chunk in F.pad(sound, (CONTEXT, 0)).unfold(1, CONTEXT + CHUNK, CHUNK).unbind(1):
        answer, state = session.run(None, {"input": chunk.numpy(), "state": state, "sr": np.array(HERTZ)})
        answers.append(torch.from_numpy(answer[:, 0]))
    return torch.stack(answers, 1)


def syllable(length: int, pitch: float, generator: torch.Generator) -> Tensor:
    """Return a voiced sound: harmonics of a gliding pitch through four formants, ``(length,)``."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    time = torch.arange(length) / HERTZ
    pitch *= between(0.85, 1.2)
    phase = 2 * math.pi * (pitch * (1 + between(-0.3, 0.3) * time)).cumsum(0) / HERTZ
    order = torch.arange(1, int(3800 / pitch))[:, None]
    centre = torch.tensor([between(250, 850), between(850, 2300), between(2300, 3200), 3500.0])
    width, weight = torch.tensor([80.0, 120.0, 180.0, 250.0]), 0.6 ** torch.arange(4)
    loudness = (weight / (1 + ((order * pitch - centre) / width).square())).sum(1) + 0.002
    loudness = (loudness / order[:, 0] ** 0.3)[:, None]
    start = 2 * math.pi * torch.rand(len(order), 1, generator=generator)
    voiced = (loudness * torch.sin(order * phase + start)).sum(0)
    return voiced / voiced.abs().max() * torch.sin(math.pi * torch.arange(length) / length) ** 0.6 * between(0.1, 0.4)


def speech(recordings: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return speech-like sound: syllables of 0.1 to 0.3 s with pauses and a little noise, ``(recordings, samples)``."""
    sound = torch.zeros(recordings, steps * CHUNK)
    for recording in sound:
        pitch, place = 90 + 130 * float(torch.rand((), generator=generator)), 0
        while place < len(recording):
            drawn = torch.rand(3, generator=generator) * torch.tensor([0.2, 0.08, 1.2])
            length, gap, pause = (torch.tensor([0.1, 0.0, 0.3]) + drawn).tolist()
            if torch.rand((), generator=generator) < 0.12:
                place += int(pause * HERTZ)
                continue
            part = recording[place : place + int(length * HERTZ)]
            part += syllable(len(part), pitch, generator) if len(part) > 1 else 0
            place += int((length + gap) * HERTZ)
        recording += 10 ** (-4 + 2 * float(torch.rand((), generator=generator))) * noise(1, steps, generator, 1.0)[0]
    return sound.clamp(-1, 1)


def noise(recordings: int, steps: int, generator: torch.Generator, loudness: float = 0.03) -> Tensor:
    """Return white noise, ``(recordings, samples)``."""
    return loudness * torch.randn(recordings, steps * CHUNK, generator=generator)


@torch.no_grad()
def reset(detector: Detector, features: Tensor) -> Reset:
    """Compare a run that is reset after ``BEFORE`` steps with one that is not."""
    usual = detector.listen(features)[:, BEFORE:]
    afresh = detector.listen(features[:, BEFORE:])
    change = (afresh - usual).abs().T
    needed = windows_needed(change, TOLERANCE).sort(descending=True).values
    rank = limit_rank(len(needed), COVERAGE, CONFIDENCE)
    measured, statistical = int(needed[0]), int(needed[rank - 1]) if rank else len(change) + 1
    return Reset(
        change=change,
        measured=measured if measured <= len(change) else None,
        statistical=statistical if statistical <= len(change) else None,
        flips=((afresh > 0.5) != (usual > 0.5)).float().mean(0),
    )


@torch.no_grad()
def after_pauses(detector: Detector, speaking: Tensor, pause: Tensor) -> tuple[list[float], list[float]]:
    """Return the share of steps that count as speech after a pause, and the largest entry of the cell, by its length.

    Args:
        detector: The network.
        speaking: Features of speech, ``(recordings, steps, 128)``.
        pause: Features of the longest pause, as many recordings.
    """
    shares, largest = [], []
    for seconds in PAUSES:
        steps = int(seconds / SECONDS)
        state = detector.lstm(pause[:, :steps])[1] if steps else None
        shares.append((detector.listen(speaking, state) > 0.5).float().mean().item())
        largest.append(state[1].abs().max().item() if state is not None else 0.0)
    return shares, largest


def draw(resets: dict[str, Reset], pauses: dict[str, list[float]]) -> Figure:
    """Draw what a reset changes by the time since, and what is heard as speech by the length of the pause before."""
    figure, (left, right) = axes((11, 4.2), columns=2)
    for name, found in resets.items():
        seconds = SECONDS * torch.arange(1, len(found.change) + 1)
        left.plot(seconds, found.change.amax(1), color=COLOURS[name], linewidth=1, alpha=0.5)
        left.plot(seconds, found.change.mean(1), color=COLOURS[name], linewidth=2)
        place = (float(seconds[-1]), float(found.change[-20:].mean()))
        left.annotate(name, place, (4, 0), textcoords="offset points", va="center", color=COLOURS[name])
    left.axhline(TOLERANCE, color="black", linestyle=":", linewidth=1)
    left.set(
        yscale="log", ylim=(3e-4, 1.5), xlabel="seconds since the reset", ylabel="change of the probability of speech"
    )
    left.set_title("What a reset changes: the mean, and the largest (thin)", fontsize=11)
    for name, shares in pauses.items():
        right.plot(range(len(PAUSES)), [100 * share for share in shares], "o-", color=COLOURS[name], linewidth=2)
        place = (len(PAUSES) - 1, 100 * shares[-1])
        right.annotate(name, place, (6, 0), textcoords="offset points", va="center", color=COLOURS[name])
    right.set_xticks(range(len(PAUSES)), ["reset", *(str(seconds) for seconds in PAUSES[1:])])
    right.set(ylim=(0, 100), xlabel="seconds of noise or silence between reset and speech")
    right.set_ylabel("share of the speech above probability 1/2 (%)")
    right.set_title("The same speech after a pause of this length", fontsize=11)
    return figure


def describe(name: str, found: Reset) -> str:
    """Say what a reset does in one kind of sound."""
    longest, recordings = found.change.shape

    def after(step: int | None) -> str:
        if step is None:
            return f"more than {counted(longest, 'step')} ({longest * SECONDS:.0f} s)"
        return f"{counted(step, 'step')} ({step * SECONDS:.1f} s)"

    text = (
        f"In {name}, it takes {after(found.measured)} until a reset changes the probability by no more than "
        f"{TOLERANCE:g}, measured on {counted(recordings, 'recording')}"
    )
    if limit_rank(recordings, COVERAGE, CONFIDENCE):
        text += (
            f". For {100 * COVERAGE:g} % of all such recordings, with confidence {100 * CONFIDENCE:g} %, it takes "
            f"{after(found.statistical)}"
        )
    return f"{text}. In the last second measured, {100 * found.flips[-31:].mean():.0f} % of the answers differ."


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print what was found and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=output_folder, default=Path("runs/pretrained"), help="folder for the figure")
    parser.add_argument("--file", type=path, help="the ONNX file (default: that of the installed package)")
    parser.add_argument(
        "--recordings", type=positive, default=60, help="recordings of every kind; 59 give a statistical window"
    )
    parser.add_argument("--steps", type=positive, default=500, help="steps of 32 ms after the reset")
    parser.add_argument("--seed", type=seed, default=1, help="seed of the sounds")
    options = parser.parse_args(arguments)
    file = options.file or default_file()
    if file is None or importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        parser.error(MISSING)
    generator = torch.Generator().manual_seed(options.seed)
    detector = Detector(read_weights(file)).eval().requires_grad_(False)

    steps = BEFORE + options.steps
    sounds = {
        "speech": speech(options.recordings, steps, generator),
        "noise": noise(options.recordings, steps, generator),
    }
    few = sounds["speech"][:4, : 100 * CHUNK]
    off = (detector.listen(detector.features(few)) - run_original(file, few)).abs().max().item()
    print(f"The rebuilt network and {file.name} in onnxruntime differ by at most {off:.0e}.")
    if off > 1e-4:
        raise SystemExit(f"--file must be the network that this example rebuilds, silero-vad 6.2.3. Got {file}.")
    features = {name: detector.features(sound) for name, sound in sounds.items()}

    limit = max(float(found.max()) for found in features.values())
    report = certify(detector.lstm, input_bound=limit)
    profile = truncation_profile(detector.lstm, features["speech"][:4, :400], max_window=250, input_bound=limit)
    print(f"The features are at most {limit:.1f}. {why_no_bound(report)}")
    least = "nothing bounds it" if profile.tube.isnan().all() else f"the bound is {float(profile.tube[-1]):.2g}"
    print(
        f"A window of 250 steps changes the output of the LSTM, of norm {profile.output_norm:.1f}, by up to "
        f"{float(profile.max_error[-1]):.1f} on speech (measured); for any past before this speech, {least}."
    )
    resets = {name: reset(detector, found) for name, found in features.items()}
    for name, found in resets.items():
        print(describe(name, found))
    longest = int(PAUSES[-1] / SECONDS)
    recordings = min(options.recordings, 16)
    speaking = features["speech"][:recordings, :BEFORE]
    quiet_pauses = {
        "noise": detector.features(noise(recordings, longest, generator)),
        "silence": detector.features(torch.zeros(1, longest * CHUNK)).expand(recordings, -1, -1),
    }
    pauses = {}
    for name, pause in quiet_pauses.items():
        pauses[name], largest = after_pauses(detector, speaking, pause)
        heard = ", ".join(
            f"{100 * share:.0f} % after {seconds} s" for seconds, share in zip(PAUSES, pauses[name], strict=True)
        )
        print(
            f"After a reset and a pause of {name}, it hears of the same speech: {heard}. By then, the largest entry of "
            f"the cell is {largest[-1]:.0f}."
        )
    print(save(draw(resets, pauses), options.out / "pretrained.png"))


if __name__ == "__main__":
    torch.set_num_threads(1)  # small products, which a second thread only slows down
    main()

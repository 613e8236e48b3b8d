"""The example rebuilds the network of the package, where that is installed, and measures resets on any."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pretrained
import pytest
import torch

PACKAGE = importlib.util.find_spec("silero_vad") and pretrained.default_file()


def weights() -> dict[str, torch.Tensor]:
    """Random weights by the names in the file."""
    torch.manual_seed(0)
    shapes = {"model.stft.forward_basis_buffer": (258, 1, 256)}
    for index, (inputs, outputs) in enumerate(((129, 128), (128, 64), (64, 64), (64, 128))):
        shapes |= {f"model.encoder.{index}.reparam_conv.weight": (outputs, inputs, 3)}
        shapes |= {f"model.encoder.{index}.reparam_conv.bias": (outputs,)}
    for name in ("ih", "hh"):
        shapes |= {f"model.decoder.rnn.weight_{name}": (512, 128), f"model.decoder.rnn.bias_{name}": (512,)}
    shapes |= {"model.decoder.decoder.2.weight": (1, 128, 1), "model.decoder.decoder.2.bias": (1,)}
    return {name: 0.05 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def detector() -> pretrained.Detector:
    return pretrained.Detector(weights()).eval().requires_grad_(False)


def test_a_step_reads_its_chunk_and_the_end_of_the_one_before(detector: pretrained.Detector) -> None:
    sound = torch.randn(2, 5 * pretrained.CHUNK)
    other = sound.clone()
    other[:, 2 * pretrained.CHUNK - pretrained.CONTEXT : 2 * pretrained.CHUNK] += 1  # the end of the second chunk
    same = (detector.features(sound) == detector.features(other)).all(-1).all(0)
    assert same.tolist() == [True, False, False, True, True]


def test_a_reset_is_a_run_from_zero(detector: pretrained.Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "BEFORE", 7)
    features = detector.features(torch.randn(60, 30 * pretrained.CHUNK))
    found = pretrained.reset(detector, features)
    whole, part = detector.listen(features), detector.listen(features[:, 7:])
    assert torch.allclose(found.change, (part - whole[:, 7:]).abs().T, atol=1e-6)
    assert found.measured == found.statistical == 1  # random weights forget at once
    assert "In noise, it takes 1 step (0.0 s) until a reset changes" in pretrained.describe("noise", found)
    for few in (features[:58], features[:1]):
        found = pretrained.reset(detector, few)
        assert found.statistical is None
        assert "of all such recordings" not in pretrained.describe("noise", found)


def test_a_pause_of_no_length_is_a_reset(detector: pretrained.Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PAUSES", (0, 1))
    speaking, pause = (detector.features(torch.randn(2, steps * pretrained.CHUNK)) for steps in (4, 40))
    shares, largest = pretrained.after_pauses(detector, speaking, pause)
    after = detector.listen(torch.cat((pause[:, :31], speaking), 1))[:, 31:]
    expected = [(answers > 0.5).float().mean().item() for answers in (detector.listen(speaking), after)]
    assert shares == pytest.approx(expected)
    assert largest[0] == 0 < largest[1]


def test_sounds_are_reproduced_and_in_range() -> None:
    one, two = (pretrained.speech(2, 60, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (2, 60 * pretrained.CHUNK)
    assert 0.05 < one.abs().max() <= 1


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        pretrained.main([])
    assert "pip install --no-deps silero-vad" in capsys.readouterr().err


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(pretrained, "read_weights", lambda file: weights())
    monkeypatch.setattr(pretrained, "run_original", lambda file, sound: torch.zeros(len(sound), 100))
    with pytest.raises(SystemExit, match="--file must be the network that this example rebuilds"):
        pretrained.main(["--file", str(tmp_path / "other.onnx"), "--recordings", "1", "--steps", "5"])


@pytest.mark.skipif(not PACKAGE, reason="silero-vad is not installed")
def test_the_rebuilt_network_is_that_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(pretrained, "PAUSES", (0, 2, 20))
    pretrained.main(["--out", str(tmp_path), "--recordings", "4", "--steps", "60"])
    printed = capsys.readouterr().out
    assert "in onnxruntime differ by at most" in printed
    assert "No useful bound is certified." in printed
    assert (tmp_path / "pretrained.png").stat().st_size > 20_000

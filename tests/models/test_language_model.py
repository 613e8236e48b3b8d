import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_stable.datamodules import ColumnStream, TextDataModule
from lightning_stable.models import CELLS, CORES, LanguageModel, build_recurrence
from lightning_stable.recurrence import is_recurrent

VOCAB = 11
KINDS: dict[str, dict[str, Any]] = {cell: {"cell": cell} for cell in CELLS} | {core: {"core": core} for core in CORES}


def model(cls: type[LanguageModel] = LanguageModel, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return cls(**{"vocab_size": VOCAB, "embedding_size": 6, "hidden_size": 6, "dropout": 0.0, **kwargs})


def trainer(path: Path, **kwargs: Any) -> L.Trainer:
    return L.Trainer(
        default_root_dir=path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, "max_epochs": 1, "enable_checkpointing": False, **kwargs},
    )


def columns(tokens: int = 67, batch_size: int = 3, chunk_length: int = 5, seed: int = 0) -> ColumnStream:
    stream = torch.randint(VOCAB, (tokens,), generator=torch.Generator().manual_seed(seed))
    return ColumnStream(stream, batch_size, chunk_length)


@torch.no_grad()
def loss_in_one_piece(net: LanguageModel, stream: ColumnStream) -> float:
    """Mean NLL of the columns read from beginning to end at once: what the chunks must add up to."""
    logits, _ = net.eval()(stream.columns[:, :-1])
    return F.cross_entropy(logits.double().flatten(0, 1), stream.columns[:, 1:].flatten()).item()


class Spy(LanguageModel):
    """Records for every call the stage, the state that came in and the state that went out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[tuple[str, Any, Any]] = []

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        logits, after = super().forward(tokens, state)
        stage = self.trainer.state.stage
        self.calls.append((stage.value if stage else "none", state, after))
        return logits, after


def flat(state: Any) -> Tensor:
    return torch.cat(list(state) if isinstance(state, tuple) else [state]).detach().float()


# Carrying the state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_equal_one_piece(kind: str, tmp_path: Path) -> None:
    net, stream = model(num_layers=2, **KINDS[kind]), columns()
    assert next(iter(reversed(list(stream))))[0].size(1) < 5  # the last chunk is shorter
    expected = loss_in_one_piece(net, stream)
    for stage in ("validate", "test"):
        (logged,) = getattr(trainer(tmp_path), stage)(net, stream, verbose=False)
        prefix = {"validate": "val", "test": "test"}[stage]
        assert logged[f"{prefix}_loss"] == pytest.approx(expected, rel=1e-6)
        assert logged[f"{prefix}_perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_every_data_loader_starts_anew_and_has_its_own_figures(stage: str, tmp_path: Path) -> None:
    net, streams = model(), [columns(seed=1), columns(seed=2, tokens=90)]
    logged = getattr(trainer(tmp_path), stage)(net, streams, verbose=False)
    prefix = {"validate": "val", "test": "test"}[stage]
    for index, stream in enumerate(streams):
        expected = loss_in_one_piece(net, stream)
        assert logged[index][f"{prefix}_loss/dataloader_idx_{index}"] == pytest.approx(expected, rel=1e-6)
        perplexity = logged[index][f"{prefix}_perplexity/dataloader_idx_{index}"]
        assert perplexity == pytest.approx(math.exp(expected), rel=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "tcn"])
def test_state_is_carried_within_and_reset_between_epochs_and_stages(kind: str, tmp_path: Path) -> None:
    net = model(Spy, **KINDS[kind])
    train, valid = columns(), columns(seed=1)
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=2, val_check_interval=2).fit(net, train, valid)
    # 5 batches per stream; validation runs after training batches 2 and 4.
    one_epoch = ["train"] * 2 + ["validate"] * 5 + ["train"] * 2 + ["validate"] * 5 + ["train"]
    assert [stage for stage, _, _ in net.calls] == ["sanity_check"] * 2 + one_epoch * 2
    runs = {
        "train": [call for call in net.calls if call[0] == "train"],
        "other": [call for call in net.calls[2:] if call[0] == "validate"],
    }
    for calls in [net.calls[:2], *runs.values()]:
        for index, (_, before, _) in enumerate(calls):
            if index % 5 == 0:
                assert before is None
            else:
                assert torch.equal(flat(before), flat(calls[index - 1][2]))
                assert not any(part.requires_grad for part in before)


@pytest.mark.parametrize("kind", ["lstm", "tcn"])
def test_training_after_validation_equals_training_alone(kind: str, tmp_path: Path) -> None:
    alone, watched = (model(num_layers=2, **KINDS[kind]) for _ in range(2))
    trainer(tmp_path, max_epochs=2).fit(alone, columns())
    trainer(tmp_path, max_epochs=2, val_check_interval=2).fit(watched, columns(), columns(seed=1))
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, watched.state_dict()[name])


@pytest.mark.parametrize("kind", ["lstm", "tcn"])
def test_another_batch_size_starts_from_zeros(kind: str, tmp_path: Path) -> None:
    net = model(Spy, **KINDS[kind])
    batches = [(torch.zeros(size, 4, dtype=torch.long),) * 2 for size in (3, 3, 2, 2)]
    trainer(tmp_path).test(net, DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert [before is None for _, before, _ in net.calls] == [True, False, True, False]


@pytest.mark.parametrize("with_targets", [True, False])
def test_predict_carries_the_state(with_targets: bool, tmp_path: Path) -> None:
    net, stream = model(), columns()
    batches = list(stream) if with_targets else [inputs for inputs, _ in stream]
    predicted = trainer(tmp_path).predict(net, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert predicted is not None
    with torch.no_grad():
        expected, _ = net.eval()(stream.columns[:, :-1])
    torch.testing.assert_close(torch.cat(predicted, dim=1), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", *CORES])
def test_half_precision(precision: Any, kind: str, tmp_path: Path) -> None:
    net, stream = model(Spy, **KINDS[kind]), columns()
    run = trainer(tmp_path, precision=precision)
    run.fit(net, stream, stream)
    carried = [before for _, before, _ in net.calls if before is not None]
    dtype = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert carried
    assert all(flat(before).isfinite().all() for before in carried)
    assert {part.dtype for before in carried for part in (before if isinstance(before, tuple) else [before])} == {dtype}
    expected = loss_in_one_piece(net.float(), stream)
    assert run.callback_metrics["val_loss"].item() == pytest.approx(expected, rel=0.02)
    assert run.callback_metrics["val_perplexity"].dtype == torch.float64


def test_half_precision_does_not_round_the_sum_over_tokens(tmp_path: Path) -> None:
    net, stream = model(), columns(tokens=1203, chunk_length=400)  # one chunk, so the logits are the same
    (logged,) = trainer(tmp_path, precision="bf16-true").test(net, stream, verbose=False)
    assert logged["test_loss"] == pytest.approx(loss_in_one_piece(net.bfloat16(), stream), rel=1e-6)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_state_dict_holds_weights_only(tmp_path: Path) -> None:
    net = model()
    keys = set(net.state_dict())
    run = trainer(tmp_path)
    run.fit(net, columns(), columns())
    assert set(net.state_dict()) == keys == {name for name, _ in net.named_parameters()}
    assert {name.split(".")[0] for name in keys} == {"embedding", "core", "decoder"}


def test_checkpoint_restores_the_model_and_nothing_carried(tmp_path: Path) -> None:
    net, seen = model(tie_weights=True, cell="gru"), []

    class SaveMidEpoch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(len(pl_module._carried))
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    trainer(tmp_path, callbacks=[SaveMidEpoch()]).fit(net, columns())
    assert seen[-1] == 1
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "_carried" not in str(content.keys()) + str(content["state_dict"].keys())
    restored = LanguageModel.load_from_checkpoint(tmp_path / "last.ckpt")
    assert restored.hparams == net.hparams
    assert restored._carried == {} == net._carried
    assert loss_in_one_piece(restored, columns()) == loss_in_one_piece(net, columns())


RESUMED: list[dict[str, Any]] = [{"cell": cell, "window": k} for cell in ("gru", "lstm") for k in (None, 3, 9)]


@pytest.mark.parametrize("kwargs", [*RESUMED, *({"core": core, "kernel_size": 3} for core in CORES)], ids=str)
def test_stopped_inside_an_epoch_and_resumed(kwargs: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit: the stream goes on with the next chunk, in the state the last one left."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
            if trainer.current_epoch == 1 and index == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole, resumed = (model(**kwargs, num_layers=2) for _ in range(2))
    trainer(tmp_path, callbacks=[Save()], max_epochs=2).fit(whole, columns())
    content = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    before = {name: value.clone() for name, value in content["state_dict"].items()}
    trainer(tmp_path, max_epochs=2).fit(resumed, columns(), ckpt_path=tmp_path / "middle.ckpt")
    assert any(not torch.equal(before[name], value) for name, value in whole.state_dict().items())
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())


FIELDS: list[dict[str, Any]] = [{"cell": cell, "window": window} for cell in sorted(CELLS) for window in (1, 3, 7)]


@pytest.mark.parametrize("kwargs", [*FIELDS, *({"core": core, "kernel_size": 3} for core in CORES)], ids=str)
def test_receptive_field_is_exact_across_chunks(kwargs: dict[str, Any]) -> None:
    """A prediction depends on the last tokens and on no other, in a recurrence to the last bit."""
    net = model(**kwargs, num_layers=2, hidden_size=16).double().eval()
    window = net.receptive_field
    assert window == kwargs.get("window", {"tcn": 13, "gated-conv": 5, "wavenet": 7}.get(kwargs.get("core", "")))
    tokens = torch.randint(VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def read(tokens: Tensor) -> Tensor:
        state, logits = None, []
        for chunk in tokens.split([5, 5, 3, 4], dim=1):
            scores, state = net(chunk, state)
            state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
            logits.append(scores)
        return torch.cat(logits, 1)

    expected = read(tokens)
    for position in range(tokens.size(1)):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCAB
        difference = (read(changed) - expected).abs()
        same = (difference <= (0 if "window" in kwargs else 1e-12)).all(-1).all(0)
        assert same[:position].all()
        assert same[position + window :].all()
        assert not same[position : position + window].any()


def test_window_as_long_as_the_text_is_the_recurrent_model(tmp_path: Path) -> None:
    ends = []
    for window in (None, 1000):
        net = model(dropout=0.2, num_layers=2, window=window)
        torch.manual_seed(1)
        trainer(tmp_path, max_epochs=2).fit(net, columns())
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


# The network ----------------------------------------------------------------------------------------------------------


class Tracer(torch.fx.Tracer):
    """Sees all recurrent cells as it sees torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_recurrent(m) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_forward_shapes_and_tracing(cell: str) -> None:
    net = model(cell=cell, num_layers=2, hidden_size=7).eval()
    tokens = torch.randint(VOCAB, (3, 4))
    logits, state = net(tokens)
    assert logits.shape == (3, 4, VOCAB)
    assert flat(state).shape[1:] == (3, 7)
    traced = torch.fx.GraphModule(net, Tracer().trace(net))
    torch.testing.assert_close(traced(tokens)[0], logits)
    torch.testing.assert_close(traced(tokens, state)[0], net(tokens, state)[0])


def test_a_model_of_characters_logs_bits(tmp_path: Path) -> None:
    net, stream = model(level="character"), columns()
    expected = loss_in_one_piece(net, stream)
    for stage, prefix in (("validate", "val"), ("test", "test")):
        (logged,) = getattr(trainer(tmp_path), stage)(net, stream, verbose=False)
        bits = expected / math.log(2)
        assert logged == pytest.approx({f"{prefix}_loss": expected, f"{prefix}_bpc": bits}, rel=1e-6)


def test_learns(tmp_path: Path) -> None:
    """A periodic text has no uncertainty, so its perplexity must approach one."""
    net = model(hidden_size=16, embedding_size=16, learning_rate=0.03)
    stream = ColumnStream(torch.arange(400) % VOCAB, 2, 10)
    run = trainer(tmp_path, max_epochs=4)
    run.fit(net, stream, stream)
    perplexity = run.callback_metrics["val_perplexity"].item()
    assert perplexity < 1.5
    # Neither the sanity check nor an earlier epoch is part of it.
    assert perplexity == pytest.approx(math.exp(loss_in_one_piece(net, stream)), rel=1e-6)
    assert {"train_loss", "val_loss", "val_perplexity"} <= set(run.callback_metrics)


def test_tied_weights_are_one_parameter() -> None:
    net = model(tie_weights=True)
    assert net.decoder.weight is net.embedding.weight
    assert model().decoder.weight is not model().embedding.weight


def test_identity_recurrence() -> None:
    core = build_recurrence("irnn", 3, 4, num_layers=2)
    assert core.nonlinearity == "relu"
    for layer in range(2):
        assert torch.equal(getattr(core, f"weight_hh_l{layer}"), torch.eye(4))
        assert not getattr(core, f"bias_hh_l{layer}").any()
        assert not getattr(core, f"bias_ih_l{layer}").any()


def test_dropout_reaches_all_places(recwarn: pytest.WarningsRecorder) -> None:
    net = model(dropout=0.5, num_layers=2)
    assert net.core.dropout == net.dropout.p == 0.5
    assert model(dropout=0.5).core.dropout == 0.0
    assert not [warning for warning in recwarn if "dropout" in str(warning.message)]


def test_default_optimizer() -> None:
    optimizer = model(learning_rate=0.125).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 0.125


# Two processes --------------------------------------------------------------------------------------------------------


class Recorder(LanguageModel):
    """Saves what its process was tested and would be trained on."""

    folder: Path

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.read = [*getattr(self, "read", []), batch[0]]
        super().test_step(batch, batch_idx, dataloader_idx)

    def on_test_end(self) -> None:
        train = torch.cat([inputs for inputs, _ in self.trainer.datamodule.train_dataloader()], dim=1)  # type: ignore[attr-defined]
        torch.save((torch.cat(self.read, dim=1), train), self.folder / f"{self.global_rank}.pt")


def test_two_processes_read_their_own_columns_and_agree_with_one(tmp_path: Path) -> None:
    words = torch.randint(9, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(map(str, words)))
    arguments: dict[str, Any] = {"data_dir": tmp_path, "chunk_length": 30}
    net = model(Recorder)
    net.folder = tmp_path

    both = TextDataModule(**arguments, batch_size=3, eval_batch_size=2)
    (two,) = trainer(tmp_path, strategy="ddp_fork", devices=2).test(net, both, verbose=False)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    single = TextDataModule(**arguments, batch_size=6, eval_batch_size=4)
    (one,) = trainer(tmp_path).test(net, single, verbose=False)
    everything = single.stream("test")  # the text of all three splits
    for (first, second), columns_of_both in zip(zip(*ranks, strict=True), (4, 6), strict=True):
        length = len(everything) // columns_of_both
        assert first.shape == second.shape == (columns_of_both // 2, length - 1)
        for row, read in enumerate([*first, *second]):
            assert torch.equal(read, everything[row * length : (row + 1) * length - 1])

    assert two["test_perplexity"] == pytest.approx(one["test_perplexity"], rel=1e-6)
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-6)
    assert one["test_perplexity"] == pytest.approx(math.exp(loss_in_one_piece(net, single.test_dataloader())), rel=1e-6)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_tied_weights_of_different_size() -> None:
    with pytest.raises(ValueError, match=r"`embedding_size` and `hidden_size` must be equal\. Got 6 and 8"):
        model(tie_weights=True, hidden_size=8)

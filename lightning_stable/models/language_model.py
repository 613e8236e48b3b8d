"""A recurrent language model that carries its state along a text."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.feedforward import ConvolutionalNet
from lightning_stable.metrics import BitsPerCharacter, MicroAverage, Perplexity
from lightning_stable.models.core_model import CoreModel
from lightning_stable.models.cores import output_size, pack, unpack

State = Tensor | tuple[Any, ...]
Batch = tuple[Tensor, Tensor]


def detach(state: State, dtype: torch.dtype) -> State:
    """Return a state without its history, in a dtype."""
    if isinstance(state, tuple):
        return tuple(detach(part, dtype) for part in state)
    return state.detach().to(dtype)


def batch_size(state: State, dim: int = 1) -> int:
    """Return the batch size of a state whose parts have shape ``(layers, batch, units)``."""
    return batch_size(state[0], dim) if isinstance(state, tuple) else state.size(dim)


class LanguageModel(CoreModel):
    """Predicts the next token: embedding, dropout, core, dropout, linear decoder.

    The batches of a data set are consecutive pieces of the same columns, as
    :class:`~lightning_stable.datamodules.stream.ColumnStream` yields them: the state after one batch, cut from its
    history, is the state before the next (truncated backpropagation through time). It starts from zeros at the first
    batch of every epoch and data loader, separately for each stage, and when the batch size changes.

    Logs ``train_loss`` per step and ``val_loss``, ``val_perplexity``, ``test_loss``, ``test_perplexity`` per epoch, in
    nats per token; the latter four average over tokens, not over batches. A model of characters logs bits per
    character, ``val_bpc`` and ``test_bpc``, in place of the perplexities.

    A convolutional core carries the last inputs of its receptive field along instead of a state.

    Args:
        vocab_size: Number of token ids.
        embedding_size: Features per token.
        hidden_size: Units per layer.
        dropout: Dropout between the layers (inside a convolutional core) and before the decoder.
        input_dropout: Dropout after the embedding; as ``dropout`` if None. A certificate that covers training must
            hold for every dropout mask, so for a stable gated model 0 is the better choice.
        tie_weights: Let the decoder share the weight of the embedding.
        level: What a token is, ``"word"`` or ``"character"``: the unit in which the loss is logged.
        learning_rate: Learning rate of the default optimizer, Adam.
        kwargs: The other arguments of :class:`~lightning_stable.models.CoreModel`. With a ``window`` a prediction
            depends on the last tokens only, also across the batches of a column.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        embedding_size: int = 200,
        hidden_size: int = 200,
        dropout: float = 0.2,
        input_dropout: float | None = None,
        tie_weights: bool = False,
        level: Literal["word", "character"] = "word",
        learning_rate: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(hidden_size=hidden_size, dropout=dropout, learning_rate=learning_rate, **kwargs)
        vocab_size = checks.integer("vocab_size", vocab_size)
        embedding_size = checks.integer("embedding_size", embedding_size)
        if checks.boolean("tie_weights", tie_weights) and embedding_size != hidden_size:
            raise ValueError(
                "`tie_weights` shares one matrix, so `embedding_size` and `hidden_size` must be equal. "
                f"Got {embedding_size} and {hidden_size}."
            )
        checks.choice("level", level, ("word", "character"))
        self.measure: tuple[str, type[MicroAverage]] = (
            ("perplexity", Perplexity) if level == "word" else ("bpc", BitsPerCharacter)
        )
        if input_dropout is not None:
            input_dropout = checks.number("input_dropout", input_dropout, "[0, 1)")
        self.input_dropout = nn.Dropout(self.dropout.p if input_dropout is None else input_dropout)
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.core = self.build_core(embedding_size)
        self.decoder = nn.Linear(output_size(self.core), vocab_size)
        # Small weights start the model near the uniform distribution, also where the embedding is the decoder.
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tie_weights:
            self.decoder.weight = self.embedding.weight
        # Plain tensors, so neither in state_dict nor in a checkpoint.
        self._carried: dict[str, State] = {}

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return scores of the next token at every position, and the core's state.

        No control flow depends on data, so the model can be traced and exported.

        Args:
            tokens: Ids, shape ``(batch, time)``.
            state: The core's state before the first token; None for zeros.

        Returns:
            Logits of shape ``(batch, time, vocab_size)`` and the core's state after the last token: of a convolutional
            core the embeddings its next outputs depend on, ``(batch, n, embedding_size)``.
        """
        inputs = self.input_dropout(self.embedding(tokens))
        if isinstance(self.core, ConvolutionalNet):
            assert not isinstance(state, tuple)
            output = self.core(inputs, state)
            seen = inputs if state is None else torch.cat((state, inputs), 1)
            state = seen[:, max(0, seen.size(1) - self.core.receptive_field + 1) :]
        else:
            output, state = self.core(inputs, state)
        logits: Tensor = self.decoder(self.dropout(output))
        return logits, state

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch ``(inputs, targets)``."""
        nll, count = self._score("train", batch, batch_idx)
        loss = nll / count
        self.log("train_loss", loss, prog_bar=True, batch_size=count)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and perplexity."""
        self._evaluate("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and perplexity."""
        self._evaluate("test", batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Tensor | Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits of a batch of inputs, with or without targets."""
        return self._advance("predict", batch if isinstance(batch, Tensor) else batch[0], batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state carried in training, from which a run stopped inside an epoch goes on."""
        super().on_save_checkpoint(checkpoint)
        if "train" in self._carried:
            checkpoint["carried_state"] = pack(self.core, self._carried["train"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the carried state up again where a trainer resumes; a model loaded by itself starts afresh."""
        try:
            device = self.trainer.strategy.root_device
        except RuntimeError:  # no trainer
            return
        if "carried_state" in checkpoint:
            packed = move_data_to_device(checkpoint["carried_state"], device)
            self._carried["train"] = unpack(self.core, packed)

    def teardown(self, stage: str) -> None:
        """Drop the carried state, which means nothing after the run."""
        self._carried.clear()

    def _advance(self, stage: str, tokens: Tensor, batch_idx: int) -> Tensor:
        """Return the logits of the next piece of a stage and carry the state on."""
        # Each stage has its own state, so validation in the middle of an epoch does not disturb training. Data loaders
        # of one stage come one after the other, each with a batch 0.
        state = self._carried.get(stage) if batch_idx > 0 else None
        batch_dim = 0 if isinstance(self.core, ConvolutionalNet) else 1
        if state is not None and batch_size(state, batch_dim) != tokens.size(0):
            state = None
        logits: Tensor
        logits, after = self(tokens, state)
        # Under autocast the core may answer in half precision; carried on, a state has the dtype that zeros would have.
        self._carried[stage] = detach(after, self.embedding.weight.dtype)
        return logits

    def _score(self, stage: str, batch: Batch, batch_idx: int) -> tuple[Tensor, int]:
        """Return the summed negative log-likelihood of a batch and its number of tokens."""
        inputs, targets = batch
        logits = self._advance(stage, inputs, batch_idx)
        # A sum over hundreds of tokens needs more digits than half precision has.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return nll, targets.numel()

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int, dataloader_idx: int) -> None:
        nll, count = self._score(stage, batch, batch_idx)
        name, measure = self.measure
        self.log(f"{stage}_loss", nll / count, batch_size=count, sync_dist=True)
        self.log_over_split(f"{stage}_{name}", measure, dataloader_idx, nll, count)

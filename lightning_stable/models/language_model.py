"""A recurrent language model that carries its state along a text."""

from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_stable import checks
from lightning_stable.feedforward import ConvolutionalNet
from lightning_stable.metrics import BitsPerCharacter, MicroAverage, Perplexity
from lightning_stable.models.cores import build_core, output_size, receptive_field
from lightning_stable.truncation import pack_state, unpack_state

State = Tensor | tuple[Tensor, ...]
Batch = tuple[Tensor, Tensor]


def detach(state: State, dtype: torch.dtype) -> State:
    """Cut a state from its history and give it a dtype."""
    if isinstance(state, tuple):
        return tuple(part.detach().to(dtype) for part in state)
    return state.detach().to(dtype)


def batch_size(state: State, dim: int = 1) -> int:
    """Return the batch size of a state whose parts have shape ``(layers, batch, units)``."""
    return (state[0] if isinstance(state, tuple) else state).size(dim)


class LanguageModel(LightningModule):
    """Predicts the next token: embedding, dropout, core, dropout, linear decoder.

    The batches of a data set are taken as consecutive pieces of the same columns, as
    :class:`~lightning_stable.datamodules.stream.ColumnStream` yields them: the state after one batch, cut from its
    history, is the state before the next (truncated backpropagation through time). It starts from zeros at the first
    batch of every epoch and data loader, separately for each stage, and when the batch size changes.

    Logs ``train_loss`` per step and ``val_loss``, ``val_perplexity``, ``test_loss``, ``test_perplexity`` per epoch, in
    nats per token; the latter four average over tokens, not over batches. A model of characters logs bits per
    character, ``val_bpc`` and ``test_bpc``, in place of the perplexities.

    A convolutional core carries the last inputs of its receptive field along instead of a state.

    Args:
        vocab_size: number of token ids.
        cell: ``"rnn"``, ``"irnn"``, ``"ugrnn"``, ``"gru"``, ``"lstm"`` or ``"intersection"``.
        core: None for a recurrent core; or ``"tcn"``, ``"gated-conv"``, ``"wavenet"``.
        embedding_size: features per token.
        hidden_size: units per layer.
        num_layers: number of layers.
        dropout: dropout between the layers (inside a convolutional core) and before the decoder.
        input_dropout: dropout after the embedding; as ``dropout`` if None. A certificate that covers training must
            hold for every dropout mask, so for a stable gated model 0 is the better choice.
        tie_weights: let the decoder share the weight of the embedding.
        window: None for a recurrent model; k for the truncated, feed-forward one, in which a prediction depends on
            the last k tokens only, also across the batches of a column.
        kernel_size: of a convolutional core; None for its default.
        level: what a token is, ``"word"`` or ``"character"``: the unit in which the loss is logged.
        learning_rate: of the default optimizer, Adam.

    Raises:
        MisconfigurationException: naming the argument that has a wrong type or range.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        cell: str = "lstm",
        core: str | None = None,
        embedding_size: int = 200,
        hidden_size: int = 200,
        num_layers: int = 1,
        dropout: float = 0.2,
        input_dropout: float | None = None,
        tie_weights: bool = False,
        window: int | None = None,
        kernel_size: int | None = None,
        level: Literal["word", "character"] = "word",
        learning_rate: float = 2e-3,
    ) -> None:
        super().__init__()
        checks.integer("vocab_size", vocab_size)
        checks.integer("embedding_size", embedding_size)
        input_dropout = dropout if input_dropout is None else input_dropout
        checks.number("dropout", dropout, "[0, 1)")
        checks.number("input_dropout", input_dropout, "[0, 1)")
        checks.number("learning_rate", learning_rate, "(0, inf)")
        checks.choice("level", level, ("word", "character"))
        if tie_weights and embedding_size != hidden_size:
            raise MisconfigurationException(
                "`tie_weights` shares one matrix, so `embedding_size` and `hidden_size` must be equal. "
                f"Got {embedding_size} and {hidden_size}."
            )
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.core = build_core(
            embedding_size,
            hidden_size,
            cell=cell,
            core=core,
            num_layers=num_layers,
            dropout=dropout,
            window=window,
            kernel_size=kernel_size,
        )
        self.decoder = nn.Linear(output_size(self.core), vocab_size)
        self.input_dropout = nn.Dropout(input_dropout)
        self.dropout = nn.Dropout(dropout)
        # Small weights start the model near the uniform distribution, also where the embedding is the decoder.
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tie_weights:
            self.decoder.weight = self.embedding.weight
        # One per stage and data loader, made when first needed.
        self.averages = nn.ModuleDict()
        self.measure: tuple[str, type[MicroAverage]] = (
            ("perplexity", Perplexity) if level == "word" else ("bpc", BitsPerCharacter)
        )
        # Plain tensors, so neither in state_dict nor in a checkpoint.
        self._carried: dict[str, State] = {}

    @property
    def receptive_field(self) -> int | None:
        """How many tokens a prediction depends on; None if on all."""
        return receptive_field(self.core)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Score the next token at every position.

        Free of control flow that depends on data, so that it can be traced and exported.

        Args:
            tokens: ids, shape ``(batch, time)``.
            state: the core's state before the first token; zeros by default.

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state carried in training, from which a run stopped inside an epoch goes on."""
        if "train" in self._carried:
            checkpoint["carried_state"] = pack_state(self._carried["train"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the carried state up again where a trainer resumes; a model loaded by itself starts afresh."""
        try:
            device = self.trainer.strategy.root_device
        except RuntimeError:  # no trainer
            return
        if "carried_state" in checkpoint:
            packed = move_data_to_device(checkpoint["carried_state"], device)
            self._carried["train"] = unpack_state(packed, self.core)

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
        key = f"{stage}_{dataloader_idx}"
        if key not in self.averages:
            self.averages[key] = measure().to(self.device)
        average = cast(MicroAverage, self.averages[key])
        average.update(nll, count)
        self.log(f"{stage}_loss", nll / count, batch_size=count, sync_dist=True)
        self.log(f"{stage}_{name}", average, metric_attribute=f"averages.{key}", prog_bar=True)

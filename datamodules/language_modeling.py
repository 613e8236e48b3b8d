"""From three texts to batches of consecutive tokens: what all language modelling data modules share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_stable import checks
from lightning_stable.datamodules.stream import ColumnStream
from lightning_stable.datamodules.unigram import unigram_perplexity
from lightning_stable.datamodules.vocabulary import DictVocabulary, Vocabulary

END_OF_LINE = "<eos>"
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Tokenizer = Callable[[str], Sequence[str]]


def tokenize(lines: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """Return the tokens of all lines, each line (a blank one too) closed by ``<eos>``.

    Raises:
        ValueError: if the tokenizer returns anything but a sequence of strings.
    """
    tokens: list[str] = []
    for line in lines:
        words = tokenizer(line)
        if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(w, str) for w in words):
            raise ValueError(f"`tokenizer` must return a list of strings. Got {words!r} for the line {line!r}.")
        tokens += [*words, END_OF_LINE]
    return tokens


def encode(tokens: list[str], vocab: Vocabulary) -> Tensor:
    """Return the ids of the tokens, shape ``(tokens,)``.

    Raises:
        ValueError: if the vocabulary neither holds a token nor maps it to an unknown token.
    """
    try:
        return torch.tensor(vocab(tokens), dtype=torch.long)
    except (LookupError, RuntimeError) as error:  # a dict raises the first, torchtext the second
        missing = sorted(set(tokens) - set(vocab.get_itos()))
        raise ValueError(
            "`vocab` has no unknown token for words it does not hold; give it one (in torchtext: "
            f"`vocab.set_default_index(vocab['<unk>'])`) or add the words. Got {missing[:5]}."
        ) from error


class LanguageModelingDataModule(LightningDataModule, ABC):
    """Streams three texts in columns; a subclass says where the lines of a split come from.

    Each loader is a :class:`ColumnStream` of batches ``(inputs, targets)``, both of shape ``(batch, chunk_length)``,
    that continue one another, so a model can carry its state; see there which tokens are scored. Under a distributed
    strategy every device reads its own ``batch_size`` columns of ``world_size * batch_size``.

    Args:
        tokenizer: turns a line into its tokens; ``<eos>`` is added after each line.
        vocab: a ready vocabulary; by default one is built in ``setup``.
        vocab_from: build the vocabulary from the ``"train"`` split or from ``"all"`` three.
        min_frequency: rarer tokens are left out of a vocabulary that is built.
        batch_size: columns per device in training.
        eval_batch_size: columns per device in validation and test.
        chunk_length: time steps per batch.
        vary_length: let the batches of training vary around this length; see :class:`ColumnStream`.
        seed: seed of these lengths.

    Raises:
        ValueError: naming the argument that has a wrong type or range.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        vocab: Vocabulary | None = None,
        vocab_from: Literal["train", "all"] = "all",
        min_frequency: int = 1,
        batch_size: int = 20,
        eval_batch_size: int = 10,
        chunk_length: int = 35,
        vary_length: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(tokenizer):
            raise ValueError(f"`tokenizer` must be a callable from a line to its tokens. Got {tokenizer!r}.")
        if vocab is not None and not isinstance(vocab, Vocabulary):
            raise ValueError(f"`vocab` must have __call__, __len__ and get_itos. Got {type(vocab).__name__}.")
        if vocab_from not in ("train", "all"):
            raise ValueError(f"`vocab_from` must be 'train' or 'all'. Got {vocab_from!r}.")
        checks.integer("min_frequency", min_frequency)
        checks.integer("batch_size", batch_size)
        checks.integer("eval_batch_size", eval_batch_size)
        checks.integer("chunk_length", chunk_length)
        checks.boolean("vary_length", vary_length)
        checks.seed("seed", seed)
        self.tokenizer = tokenizer
        self.vocab_from = vocab_from
        self.min_frequency = min_frequency
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.chunk_length = chunk_length
        self.vary_length = vary_length
        self.seed = seed
        self._vocab = vocab
        self._streams: dict[Split, Tensor] = {}

    @abstractmethod
    def lines(self, split: Split) -> Iterable[str]:
        """Return the text of a split line by line, without line ends."""

    @property
    def vocab(self) -> Vocabulary:
        """The vocabulary, given or built.

        Raises:
            ValueError: if it is to be built and ``setup`` has not run.
        """
        if self._vocab is None:
            raise ValueError("`vocab` is built by `setup()`; call that first. Got no vocabulary yet.")
        return self._vocab

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.vocab)

    def build_vocab(self, tokens: Iterable[str]) -> Vocabulary:
        """Return the vocabulary of the text it is built from; ``setup`` calls this unless one was given."""
        return DictVocabulary.build(tokens, min_frequency=self.min_frequency, specials=[END_OF_LINE])

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenize and encode all splits, once; every stage needs the same vocabulary.

        Raises:
            ValueError: if a given vocabulary lacks ``<eos>`` or an unknown token it needs.
        """
        if self._streams:
            return
        tokens = {split: tokenize(self.lines(split), self.tokenizer) for split in SPLITS}
        if self._vocab is None:
            counted = SPLITS if self.vocab_from == "all" else SPLITS[:1]
            self._vocab = self.build_vocab(token for split in counted for token in tokens[split])
        elif END_OF_LINE not in self._vocab.get_itos():
            # An unknown token would swallow it silently and every line end would be scored as <unk>.
            raise ValueError(f"`vocab` must hold {END_OF_LINE!r}, which ends every line; add it. Got none.")
        self._streams = {split: encode(tokens[split], self._vocab) for split in SPLITS}

    def stream(self, split: Split) -> Tensor:
        """Return the token ids of a split, shape ``(tokens,)``, in reading order.

        Raises:
            ValueError: if there is no such split or ``setup`` has not run.
        """
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {SPLITS}. Got {split!r}.")
        if not self._streams:
            raise ValueError("The text is read by `setup()`; call that first. Got no text yet.")
        return self._streams[split]

    def unigram_perplexity(self, split: Split = "test") -> float:
        """Perplexity on a split of the token frequencies of the training split: what a model has to beat."""
        return unigram_perplexity(self.stream("train"), self.stream(split), len(self.vocab))

    # The streams themselves are the loaders: the text lies in memory, so there is nothing for DataLoader workers to
    # do, and Lightning leaves an iterable that is no DataLoader without a DistributedSampler.

    def train_dataloader(self) -> ColumnStream:
        """Return the batches of the training split."""
        return self._columns("train", self.batch_size, vary_length=self.vary_length)

    def val_dataloader(self) -> ColumnStream:
        """Return the batches of the validation split."""
        return self._columns("valid", self.eval_batch_size)

    def test_dataloader(self) -> ColumnStream:
        """Return the batches of the test split."""
        return self._columns("test", self.eval_batch_size)

    def _columns(self, split: Split, batch_size: int, *, vary_length: bool = False) -> ColumnStream:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        try:
            return ColumnStream(
                self.stream(split),
                batch_size,
                self.chunk_length,
                rank=rank,
                world_size=world_size,
                vary_length=vary_length,
                seed=self.seed,
            )
        except ValueError as error:
            raise ValueError(f"The {split} split cannot be batched. {error}") from error

"""From three texts to batches of consecutive tokens: what all language modelling data modules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_stable import checks
from lightning_stable.bases import LightningDataModule
from lightning_stable.datamodules.processes import processes
from lightning_stable.datamodules.splits import SPLITS, Split, of_split
from lightning_stable.datamodules.stream import ColumnStream
from lightning_stable.datamodules.unigram import unigram_perplexity
from lightning_stable.datamodules.vocabulary import DictVocabulary, Vocabulary

END_OF_LINE = "<eos>"
Tokenizer = Callable[[str], Sequence[str]]


def split_words(line: str) -> list[str]:
    """Return the words of a line, cut at white space."""
    return line.split()


def tokenize(lines: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """Return the tokens of all lines; ``<eos>`` closes each line, blank ones included.

    Raises:
        TypeError: If the tokenizer returns anything but a sequence of strings.
    """
    tokens: list[str] = []
    for line in lines:
        words = tokenizer(line)
        if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(w, str) for w in words):
            raise TypeError(f"`tokenizer` must return a list of strings. Got {words!r} for the line {line!r}.")
        tokens += [*words, END_OF_LINE]
    return tokens


def encode(tokens: list[str], vocab: Vocabulary) -> Tensor:
    """Return the ids of the tokens, shape ``(tokens,)``.

    Raises:
        ValueError: If the vocabulary neither holds a token nor maps it to an unknown token.
    """
    try:
        return torch.tensor(vocab(tokens), dtype=torch.long)
    except (LookupError, RuntimeError) as error:  # a dict raises the first, torchtext the second
        missing = sorted(set(tokens) - set(vocab.get_itos()))
        raise ValueError(
            "`vocab` must hold every word or have an unknown token; add one (in torchtext: "
            f"`vocab.set_default_index(vocab['<unk>'])`) or add the words. Got none for {missing[:5]}."
        ) from error


class LanguageModelingDataModule(LightningDataModule, ABC):
    """Streams three texts in columns; a subclass says where the lines of a split come from.

    Each loader is a :class:`ColumnStream` of batches ``(inputs, targets)``, both of shape ``(batch, chunk_length)``,
    that continue one another, so a model can carry its state; see there which tokens are scored. Under a distributed
    strategy every device reads its own ``batch_size`` columns of ``world_size * batch_size``.

    Args:
        tokenizer: Turns a line into its tokens; ``<eos>`` is added after each line.
        vocab: A ready vocabulary, such as a ``torchtext.vocab.Vocab``; None builds one in ``setup``.
        vocab_from: Build the vocabulary from the ``"train"`` split or from ``"all"`` three.
        min_frequency: Tokens that are rarer are left out of a vocabulary that is built.
        batch_size: Columns per device in training.
        eval_batch_size: Columns per device in validation and test.
        chunk_length: Time steps per batch.
        vary_length: Let the lengths of the training batches vary around ``chunk_length``; see :class:`ColumnStream`.
        seed: Seed of these lengths.

    Raises:
        TypeError: If an argument, which the message names, has a wrong type.
        ValueError: If an argument, which the message names, is out of its range.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer = split_words,
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
            raise TypeError(f"`tokenizer` must be a callable from a line to its tokens. Got {tokenizer!r}.")
        if vocab is not None and not isinstance(vocab, Vocabulary):
            raise TypeError(f"`vocab` must have __call__, __len__ and get_itos. Got {vocab!r}.")
        self.tokenizer = tokenizer
        self.vocab_from = checks.choice("vocab_from", vocab_from, ("train", "all"))
        self.min_frequency = checks.integer("min_frequency", min_frequency)
        self.batch_size = checks.integer("batch_size", batch_size)
        self.eval_batch_size = checks.integer("eval_batch_size", eval_batch_size)
        self.chunk_length = checks.integer("chunk_length", chunk_length)
        self.vary_length = checks.boolean("vary_length", vary_length)
        self.seed = checks.seed("seed", seed)
        self._vocab = vocab
        self._streams: dict[Split, Tensor] = {}

    @abstractmethod
    def lines(self, split: Split) -> Iterable[str]:
        """Return the text of a split line by line, without line ends."""

    @property
    def vocab(self) -> Vocabulary:
        """The vocabulary, passed or built.

        Raises:
            ValueError: If it is to be built and ``setup`` has not run.
        """
        if self._vocab is None:
            raise ValueError("`vocab` is built by `setup()`, which must be called first. Got no vocabulary yet.")
        return self._vocab

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return len(self.vocab)

    def build_vocab(self, tokens: Iterable[str]) -> Vocabulary:
        """Return the vocabulary of the text it is built from; ``setup`` calls this unless one was passed."""
        return DictVocabulary.build(tokens, min_frequency=self.min_frequency, specials=[END_OF_LINE])

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenize and encode all splits, once; every stage needs the same vocabulary.

        Raises:
            ValueError: If the vocabulary that was passed lacks ``<eos>`` or an unknown token it needs.
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
            ValueError: If there is no such split or ``setup`` has not run.
        """
        return of_split(self._streams, split, "The text is read")

    def unigram_perplexity(self, split: Split = "test") -> float:
        """Return the perplexity on a split of the token frequencies of training, which a model has to beat."""
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
        stream = self.stream(split)
        rank, world_size = processes(self)
        try:
            return ColumnStream(
                stream,
                batch_size,
                self.chunk_length,
                rank=rank,
                world_size=world_size,
                vary_length=vary_length,
                seed=self.seed,
            )
        except ValueError as error:
            raise ValueError(f"The {split} split cannot be batched. {error}") from error

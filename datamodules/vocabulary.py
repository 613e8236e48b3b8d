"""Vocabularies: what the data modules ask of one, and a plain dictionary that fulfils it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from lightning_stable import checks

UNKNOWN = "<unk>"


@runtime_checkable
class Vocabulary(Protocol):
    """Anything that turns tokens into ids; a ``torchtext.vocab.Vocab`` is one."""

    def __call__(self, tokens: list[str]) -> list[int]:
        """Return one id per token."""
        ...

    def __len__(self) -> int:
        """Return the number of ids."""
        ...

    def get_itos(self) -> list[str]:
        """Return the tokens in the order of their ids."""
        ...


class DictVocabulary:
    """A vocabulary held in a dictionary; tokens it does not know get the id of ``<unk>``.

    Args:
        tokens: The tokens in the order of their ids, ``<unk>`` among them.

    Raises:
        TypeError: If ``tokens`` is not a sequence of tokens.
        ValueError: If ``<unk>`` is missing or a token occurs twice.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._itos = checks.strings("tokens", tokens)
        self._stoi = {token: index for index, token in enumerate(self._itos)}
        if UNKNOWN not in self._stoi:
            raise ValueError(f"`tokens` must hold the unknown token {UNKNOWN!r}; add it. Got {len(self._itos)} others.")
        if len(self._stoi) < len(self._itos):
            twice = [token for token, count in Counter(self._itos).items() if count > 1]
            raise ValueError(f"`tokens` must be distinct; remove the repetitions. Got {twice[:5]} more than once.")

    @classmethod
    def build(cls, tokens: Iterable[str], *, min_frequency: int = 1, specials: Sequence[str] = ()) -> DictVocabulary:
        """Collect the tokens that occur at least ``min_frequency`` times.

        The order depends on nothing but the counts: ``<unk>``, the specials, then the most frequent token first and
        equally frequent ones alphabetically.

        Args:
            tokens: A text as tokens.
            min_frequency: Tokens that are rarer are left out and so become ``<unk>``.
            specials: Tokens kept whatever their frequency.

        Raises:
            TypeError: If ``min_frequency`` is not an integer.
            ValueError: If it is not positive.
        """
        min_frequency = checks.integer("min_frequency", min_frequency)
        counts = Counter(tokens)
        always = dict.fromkeys([UNKNOWN, *specials])
        frequent = [token for token, count in counts.items() if count >= min_frequency and token not in always]
        return cls([*always, *sorted(frequent, key=lambda token: (-counts[token], token))])

    def __call__(self, tokens: list[str]) -> list[int]:
        """Return one id per token."""
        unknown = self._stoi[UNKNOWN]
        return [self._stoi.get(token, unknown) for token in tokens]

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._itos)

    def get_itos(self) -> list[str]:
        """Return a list of the tokens in the order of their ids."""
        return list(self._itos)


class Alphabet:
    """A vocabulary of the symbols of a text and no other: it has no unknown token.

    Args:
        symbols: The symbols in the order of their ids.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self._stoi = {symbol: index for index, symbol in enumerate(symbols)}

    def __call__(self, tokens: list[str]) -> list[int]:
        """Return one id per symbol."""
        return [self._stoi[token] for token in tokens]

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._stoi)

    def get_itos(self) -> list[str]:
        """Return the symbols in the order of their ids."""
        return list(self._stoi)

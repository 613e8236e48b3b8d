"""Real English without a download: the language reference that every CPython carries for ``help()``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Literal

from lightning_stable import checks
from lightning_stable.datamodules.language_modeling import LanguageModelingDataModule
from lightning_stable.datamodules.splits import Split

# Ten consecutive paragraphs keep their context together, and a hundred of them hold one block of each evaluation split.
BLOCK = 10
CYCLE = 10

_BLANK_LINE = re.compile(r"\n\s*\n")
# Rulings of headings and tables: trivially predictable, and a thousand tokens long where tables are wide.
_RULING = re.compile(r"[-+=|*~^]{4,}")
_WORD_OR_SYMBOL = re.compile(r"\w+|[^\w\s]")


def words_and_symbols(line: str) -> list[str]:
    """Return the words of a line in lower case and every other visible character by itself."""
    return _WORD_OR_SYMBOL.findall(line.lower())


LEVELS: dict[str, Callable[[str], list[str]]] = {"word": words_and_symbols, "character": list}


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, each on one line, without rulings."""
    lines = (" ".join(_RULING.sub(" ", block).split()) for block in _BLANK_LINE.split(text))
    return [line for line in lines if line]


def split_paragraphs(topics: Mapping[str, str]) -> dict[Split, list[str]]:
    """Divide the topics, in alphabetical order, so that no paragraph of an evaluation split is seen before.

    The topics quote each other: about a fifth of all tokens stand in a paragraph that occurred earlier. Of every
    hundred paragraphs ten go to validation, ten to the test and the others to training; then each evaluation split
    keeps only paragraphs that no split before it holds, and each of them once.

    Args:
        topics: Texts by name.
    """
    everything = chain.from_iterable(paragraphs(topics[name]) for name in sorted(topics))
    splits: dict[Split, list[str]] = {"train": [], "valid": [], "test": []}
    evaluation: dict[int, Split] = {CYCLE - 2: "valid", CYCLE - 1: "test"}
    for index, paragraph in enumerate(everything):
        splits[evaluation.get(index // BLOCK % CYCLE, "train")].append(paragraph)

    # Compared as the words a model sees: a difference in case or spacing is none.
    seen = {tuple(words_and_symbols(paragraph)) for paragraph in splits["train"]}
    for split in evaluation.values():
        keyed = {tuple(words_and_symbols(paragraph)): paragraph for paragraph in splits[split]}
        new = {key: paragraph for key, paragraph in keyed.items() if key not in seen}
        splits[split] = list(new.values())
        seen.update(new)
    return splits


class PythonDocsDataModule(LanguageModelingDataModule):
    """The Python language reference as a small language modelling task, from ``pydoc_data.topics``.

    About 100,000 words and symbols; one paragraph is one line. The text is that of the running Python, so figures
    compare within one Python version.

    Args:
        level: Predict ``"word"`` (lower case, symbols apart) or ``"character"``.
        min_frequency: Tokens that are rarer in the training split become ``<unk>``; with the default also in training,
            so that the model learns how often one comes.
        kwargs: The other arguments of :class:`~lightning_stable.datamodules.LanguageModelingDataModule`, but for
            ``tokenizer`` and ``vocab_from``, which belong to the task.
    """

    def __init__(self, *, level: Literal["word", "character"] = "word", min_frequency: int = 3, **kwargs: Any) -> None:
        checks.choice("level", level, list(LEVELS))
        super().__init__(tokenizer=LEVELS[level], vocab_from="train", min_frequency=min_frequency, **kwargs)

    def lines(self, split: Split) -> Iterable[str]:
        """Return the paragraphs of a split."""
        from pydoc_data.topics import topics  # half a megabyte that nothing else needs

        return split_paragraphs(topics)[split]

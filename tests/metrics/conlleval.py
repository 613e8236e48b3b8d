"""The counts of conlleval, from a description of its rules: one pass over the tags, no chunk is ever extracted."""

from collections.abc import Iterable

Tags = list[str]


def split(tag: str) -> tuple[str, str]:
    kind, _, name = tag.partition("-")
    return kind, name


def begins(previous: str, tag: str) -> bool:
    """Whether a chunk begins with this tag."""
    kind, name = split(tag)
    return kind == "B" or (kind == "I" and (previous == "O" or split(previous)[1] != name))


def ends(previous: str, tag: str) -> bool:
    """Whether a chunk ended with the previous tag."""
    return previous != "O" and (tag == "O" or begins(previous, tag))


def conlleval(pairs: Iterable[tuple[Tags, Tags]]) -> tuple[int, int, int]:
    """Correct, predicted and gold chunks in pairs of predicted and gold tags."""
    correct = predicted = gold = 0
    for pair in pairs:
        before = ("O", "O")
        agree = False  # both are inside a chunk, of one type, that began at one tag
        for now in [*zip(*pair, strict=True), ("O", "O")]:
            over = [ends(*step) for step in zip(before, now, strict=True)]
            correct += agree and all(over)
            agree = agree and not any(over)
            new = [begins(*step) for step in zip(before, now, strict=True)]
            predicted, gold = predicted + new[0], gold + new[1]
            agree = agree or (all(new) and split(now[0])[1] == split(now[1])[1])
            before = now
    return correct, predicted, gold


def f1(counts: tuple[int, int, int]) -> float:
    correct, predicted, gold = counts
    precision, recall = (correct / n if n else 0.0 for n in (predicted, gold))
    return 2 * precision * recall / (precision + recall) if correct else 0.0

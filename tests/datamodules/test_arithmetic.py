from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_stable.datamodules import ArithmeticDataModule

SYMBOLS = "0123456789+=_"


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 17), st.integers(0, 99))
def test_sums_are_right(digits: int, seed: int) -> None:
    data = ArithmeticDataModule(digits=digits, train_size=5, valid_size=1, test_size=1, seed=seed)
    data.setup()
    for question, answer in zip(*data.tensors("train"), strict=True):
        asked, said = ("".join(SYMBOLS[symbol] for symbol in part.tolist()) for part in (question, answer))
        first, second = asked[: 2 * digits + 1].split("+")
        assert len(first) == len(second) == digits
        assert asked == f"{first}+{second}={'_' * (digits + 1)}"
        total = int(first[::-1]) + int(second[::-1])
        assert said == "_" * (2 * digits + 2) + f"{total:0{digits + 1}d}"[::-1]

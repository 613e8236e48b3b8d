"""The real torchtext, in an environment of its own: ``make test-torchtext``."""

import random
from pathlib import Path

import lightning as L
import pytest
from torch import nn

from lightning_stable import certify
from lightning_stable.callbacks import StabilityProjectionCallback
from lightning_stable.datamodules import TextDataModule, Vocabulary, WikiText2DataModule
from lightning_stable.models import LanguageModel

data_utils = pytest.importorskip("torchtext.data.utils")
vocab_module = pytest.importorskip("torchtext.vocab")

WORDS = [
    "The",
    "quick",
    "brown",
    "fox",
    ",",
    "it",
    "seems",
    ",",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    ".",
    "Don't",
    "(",
    "ever",
    ")",
    "ask",
    "why",
    "!",
]


def write(folder: Path) -> Path:
    generator = random.Random(0)
    for split, lines in (("train", 300), ("valid", 60), ("test", 60)):
        text = "\n".join(" ".join(generator.choices(WORDS, k=12)) for _ in range(lines))
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", [TextDataModule, WikiText2DataModule])
def test_its_tokenizer_and_vocabulary_in_a_run(kind: type[TextDataModule], tmp_path: Path) -> None:
    folder, tokenizer = write(tmp_path), data_utils.get_tokenizer("basic_english")
    lines = (folder / "train.txt").read_text(encoding="utf-8").splitlines()
    vocab = vocab_module.build_vocab_from_iterator(map(tokenizer, lines), specials=["<unk>", "<eos>"])
    vocab.set_default_index(vocab["<unk>"])
    assert isinstance(vocab, Vocabulary)

    data = kind(folder, tokenizer=tokenizer, vocab=vocab, batch_size=4, eval_batch_size=2, chunk_length=10)
    data.prepare_data()
    data.setup()
    assert data.vocab is vocab
    first = [*tokenizer(lines[0]), "<eos>"]
    assert vocab.lookup_tokens(data.stream("train")[: len(first)].tolist()) == first

    model = LanguageModel(len(data.vocab), embedding_size=8, hidden_size=8, input_dropout=0.0, learning_rate=0.03)
    run = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StabilityProjectionCallback(0.9)],
    )
    run.fit(model, datamodule=data)
    assert isinstance(model.core, nn.LSTM)
    assert certify(model).rate <= 0.9
    (metrics,) = run.test(model, datamodule=data, verbose=False)
    assert metrics["test_perplexity"] < 0.9 * len(data.vocab)

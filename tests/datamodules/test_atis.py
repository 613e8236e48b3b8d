import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stable.datamodules import ATISDataModule, PaddedBatch

Corpus = list[tuple[str, str, str]]
TRAIN: Corpus = [
    ("Flights from Boston at 838 am", "O O B-from O B-time I-time", "atis_flight"),
    ("to new york", "O B-to I-to", "atis_flight#atis_airfare"),
    ("boston", "B-from", "atis_city"),
]
VALID: Corpus = [("from denver at 1110", "O B-from O B-time", "atis_flight")]
TEST: Corpus = [("to reno at 212 pm", "O B-stop O B-time I-time", "atis_flight"), ("meals", "B-meal", "atis_meal")]
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}
NAMES = {"train": "atis-2.train.iob", "valid": "atis-2.dev.iob", "test": "atis.test.iob"}
FORMS = ("plain", "intent", "intent after the tags", "intent in a column", "bare")


def iob(corpus: Corpus, form: str = "plain") -> str:
    ends = {
        "plain": "BOS {} EOS\tO {} O",
        "intent": "BOS {} EOS\tO {} {}",
        "intent after the tags": "BOS {} EOS\tO {} O {}",
        "intent in a column": "BOS {} EOS\tO {} O\t{}",
        "bare": "{}\t{}",
    }
    return "".join(ends[form].format(*utterance) + "\n" for utterance in corpus)


def write(folder: Path, form: str = "plain", names: dict[str, str] = NAMES) -> Path:
    for split, name in names.items():
        (folder / name).write_text(iob(SPLITS[split], form), encoding="utf-8")
    return folder


def write_csv(folder: Path, split: str, corpus: Corpus, name: str | None = None) -> None:
    with (folder / f"{name or split}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "intent", "text", "slots"])
        writer.writerows((index, intent, text, slots) for index, (text, slots, intent) in enumerate(corpus))


def ready(folder: Path, **options: Any) -> ATISDataModule:
    data = ATISDataModule(folder, **options)
    data.prepare_data()
    data.setup()
    return data


def decoded(data: ATISDataModule, split: Any) -> list[tuple[list[str], list[str]]]:
    words = data.vocab.get_itos()
    return [
        ([words[index] for index in inputs], [data.labels[index] for index in targets])
        for inputs, targets in data.sequences(split)
    ]


EXPECTED = {
    "train": [
        ("flights from boston at 000 am", "O O B-from O B-time I-time"),
        ("to new york", "O B-to I-to"),
        ("boston", "B-from"),
    ],
    "valid": [("from <unk> at <unk>", "O B-from O B-time")],
    "test": [("to <unk> at 000 <unk>", "O B-stop O B-time I-time"), ("<unk>", "B-meal")],
}


def check(data: ATISDataModule) -> None:
    for split, expected in EXPECTED.items():
        assert decoded(data, split) == [(words.split(), tags.split()) for words, tags in expected]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        {"train": "train.iob", "valid": "dev.iob", "test": "test.iob"},
        {"train": "train.iob", "valid": "valid.iob", "test": "test.iob"},
        {
            "train": "atis-2.train.w-intent.iob",
            "valid": "atis-2.dev.w-intent.iob",
            "test": "atis.test.w-intent.iob",
        },
    ],
)
def test_iob_with_and_without_intents(tmp_path: Path, form: str, names: dict[str, str]) -> None:
    check(ready(write(tmp_path, form, names)))


@pytest.mark.parametrize("valid", ["dev", "valid"])
def test_csv(tmp_path: Path, valid: str) -> None:
    for split, corpus in SPLITS.items():
        write_csv(tmp_path, split, corpus, valid if split == "valid" else None)
    check(ready(tmp_path))


def test_csv_with_ends_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    for split, corpus in SPLITS.items():
        ends = [(f"BOS {text} EOS", f"O {tags} O", f"a, b\n{intent}") for text, tags, intent in corpus]
        write_csv(tmp_path, split, ends)
        path = tmp_path / f"{split}.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    check(ready(tmp_path))


def test_blank_lines_and_carriage_returns_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"\r\n" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    check(ready(tmp_path))


def test_labels_of_training_come_first_and_unseen_ones_have_ids(tmp_path: Path) -> None:
    data = ready(write(tmp_path))
    assert data.labels == ["O", "B-from", "B-time", "B-to", "I-time", "I-to", "B-meal", "B-stop"]
    assert data.num_labels == 8
    known = max(int(targets.max()) for _, targets in data.sequences("train"))
    assert known == 5 < int(data.sequences("test")[0][1].max())


def test_vocabulary_is_that_of_training(tmp_path: Path) -> None:
    words = {"<unk>", "flights", "from", "boston", "at", "000", "am", "to", "new", "york"}
    write(tmp_path)
    assert set(ready(tmp_path).vocab.get_itos()) == words
    assert set(ready(tmp_path, digits=False).vocab.get_itos()) == words - {"000"} | {"838"}
    assert ready(tmp_path, min_frequency=2).vocab.get_itos() == ["<unk>", "boston"]


@pytest.mark.parametrize("kind", ["iob", "csv"])
def test_without_a_validation_file_every_tenth_utterance_validates(tmp_path: Path, kind: str) -> None:
    train: Corpus = [(f"w{'x' * index}", "O", "atis_flight") for index in range(25)]
    if kind == "csv":
        write_csv(tmp_path, "train", train)
        write_csv(tmp_path, "test", TEST)
    else:
        (tmp_path / "train.iob").write_text(iob(train), encoding="utf-8")
        (tmp_path / "test.iob").write_text(iob(TEST), encoding="utf-8")
    data = ready(tmp_path)
    assert data.sizes == {"train": 23, "valid": 2, "test": 2}
    assert data.vocab.get_itos() == ["<unk>", *(text for i, (text, _, _) in enumerate(train) if i not in (9, 19))]


def test_batches(tmp_path: Path) -> None:
    data = ready(write(tmp_path), batch_size=2)
    batch = next(iter(data.test_dataloader()))
    assert isinstance(batch, PaddedBatch)
    assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == (2, 5)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.lengths.tolist() == [5, 1]
    assert (batch.targets == -100).tolist() == (~batch.mask).tolist()
    assert sorted(length for batch in data.train_dataloader() for length in batch.lengths.tolist()) == [1, 3, 6]
    short_first = ready(tmp_path, bucket=True, batch_size=1).test_dataloader()
    assert [batch.lengths.item() for batch in short_first] == [1, 5]


def test_setup_reads_once(tmp_path: Path) -> None:
    data = ready(write(tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    data.setup("test")
    check(data)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("BOS a b EOS\tO O O", "Got 4 words and 3 tags"),
        ("BOS a b EOS\tO O O O O", "Got 4 words and 5 tags"),
        ("BOS a b EOS\tO O atis_flight", "Got 4 words and 3 tags"),
        ("BOS a b EOS O O O O", "Got 8 words and 0 tags"),
        ("\tO O", "Got 2 words and 0 tags"),
        ("BOS EOS\tO O", "Got none"),
        ("BOS a b EOS\tO NN O O", "Tags must be O, B-slot or I-slot. Got 'NN'"),
    ],
)
def test_wrong_line_of_iob(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path)
    with (tmp_path / "atis.test.iob").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"{message} in .*atis\.test\.iob, line 4\."):
        ready(tmp_path)


def test_wrong_line_of_csv(tmp_path: Path) -> None:
    for split, corpus in SPLITS.items():
        write_csv(tmp_path, split, corpus)
    with (tmp_path / "valid.csv").open("a", encoding="utf-8") as file:
        file.write("7,atis_flight,to denver,O B-to I-to\n")
    with pytest.raises(ValueError, match=r"Got 2 words and 3 tags in .*valid\.csv, line 3\."):
        ready(tmp_path)
    (tmp_path / "valid.csv").write_text("id,intent,words,slots\n1,a,b,O\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"valid\.csv' must have the columns text and slots.*\['text'\]"):
        ready(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_file(tmp_path: Path, split: str) -> None:
    (write(tmp_path) / NAMES[split]).unlink()
    with pytest.raises(ValueError, match=rf"`data_dir` must hold the {split} split; put it there as {NAMES[split]}"):
        ready(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold the train split.*nowhere.*no such folder"):
        ready(tmp_path / "nowhere")


@pytest.mark.parametrize("split", list(NAMES))
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file(tmp_path: Path, split: str, text: str) -> None:
    (write(tmp_path) / NAMES[split]).write_text(text)
    with pytest.raises(ValueError, match=NAMES[split]):
        ready(tmp_path)


def test_too_few_utterances_to_hold_some_out(tmp_path: Path) -> None:
    (write(tmp_path) / "atis-2.dev.iob").unlink()
    with pytest.raises(ValueError, match=r"must hold atis-2\.dev\.iob, or at least 10 training utterances.*Got 3"):
        ready(tmp_path)


def per_word(corpus: Corpus, form: str) -> str:
    forms = {
        "two columns": "{} {}\n",
        "tabs": "{}\t{}\n",
        "part of speech": "{} NN {}\n",
        "intent": "{}\t{}\tatis_flight\n",
        "BOS and EOS": "{} {}\n",
    }
    blocks = []
    for text, slots, _ in corpus:
        pairs = list(zip(text.split(), slots.split(), strict=True))
        pairs = [("BOS", "O"), *pairs, ("EOS", "O")] if form == "BOS and EOS" else pairs
        blocks.append("".join(forms[form].format(*pair) for pair in pairs))
    return "\n".join(blocks) + "\n"


@pytest.mark.parametrize("form", ["two columns", "tabs", "part of speech", "intent", "BOS and EOS"])
def test_a_word_per_line(tmp_path: Path, form: str) -> None:
    for split, name in NAMES.items():
        (tmp_path / name).write_text(per_word(SPLITS[split], form), encoding="utf-8")
    check(ready(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from O\nboston B-from\n\nto O NN\n", r"same 2 or 3 columns .* Got 3 after lines with 2 in .*, line 4\."),
        ("from O\nboston\n\n", r"same 2 or 3 columns .* Got 1 after lines with 2 in .*, line 2\."),
        ("a NN O X\nb O\n\n", r"Got 2 after lines with 4 in .*, line 2\.|Got 4 .* line 1\."),
        ("from O\n\nboston NN\n\n", r"Tags must be .* Got 'NN' in .*, line 3\."),
        ("from O B-x\n\nboston B-y NN\n\nto NN O\n", r"Tags must be .* Got 'NN' in .*, line 3\."),
        ("from O\nboston B-from\nto O", r"blank line after each utterance.* Got 3 lines .*, line 3\."),
    ],
)
def test_words_that_fit_no_layout(tmp_path: Path, text: str, message: str) -> None:
    (write(tmp_path) / "atis.test.iob").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ready(tmp_path)


def test_one_line_is_one_utterance_either_way(tmp_path: Path) -> None:
    (write(tmp_path) / "atis.test.iob").write_text("boston\tB-from\n", encoding="utf-8")
    assert decoded(ready(tmp_path), "test") == [(["boston"], ["B-from"])]

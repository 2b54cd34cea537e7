from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import nt_models
from nt_core import BlockGraph, DataError, GraphBuilder, NeuroTrailsError, Tokens
from nt_core.errors import NeuroTrailsWarning
from nt_core.training import Batches, Data, Text
from nt_lab.data import load, load_test
from nt_lab.data.order import buffered
from nt_lab.data.stream import Stream, is_held_out, pack
from nt_lab.data.text import Sequences, split_text
from nt_lab.data.tokenizer import open_tokenizer

LENGTH = 8
GRAPH = nt_models.llama(blocks=2, width=8, hidden=8, heads=2, vocabulary=256, length=LENGTH)
VERSE = "Full fathom five thy father lies; of his bones are coral made.\n"


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A text of 630 bytes."""
    (tmp_path / "verse.txt").write_text(VERSE * 10)
    return f"text:{tmp_path / 'verse.txt'}"


@pytest.fixture
def lines(tmp_path: Path) -> str:
    """A folder of 40 documents, each of its own number only."""
    folder = tmp_path / "lines"
    folder.mkdir()
    documents = [{"text": f"{number:02} " * 10} for number in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    return str(folder)


@pytest.fixture
def bpe(tmp_path: Path) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([VERSE], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def windows(batches: Batches, epoch: int = 0, batch_size: int = 3) -> list[bytes]:
    """Return each sequence with the token that follows, having checked that labels follow inputs."""
    found = []
    for inputs, labels in batches.epoch(epoch, batch_size):
        assert inputs.dtype == labels.dtype == np.int64
        assert inputs.shape == labels.shape
        np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
        found += [bytes([*row, last]) for row, last in zip(inputs, labels[:, -1], strict=True)]
    return found


def complaint(source: str, graph: BlockGraph = GRAPH, *, stream_epoch: int | None = 4, **text: Any) -> str:
    with pytest.raises(NeuroTrailsError) as caught:
        load(Data(source=source, text=Text(**text)), graph, seed=0, stream_epoch=stream_epoch)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_bytes_become_sequences_and_the_end_is_held_out(text: str) -> None:
    split = load(Data(source=text, text=Text(held_out=0.2)), GRAPH, seed=0)
    whole = (VERSE * 10).encode()
    count = (len(whole) - 1) // LENGTH
    expected = [whole[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(count)]
    assert (len(split.train), len(split.test)) == (62, 16)
    assert windows(split.test) == expected[62:]
    assert sorted(windows(split.train, 1)) == sorted(expected[:62])
    assert windows(load_test(Data(source=text, text=Text(held_out=0.2)), GRAPH, None)) == expected[62:]


def test_each_epoch_has_an_order_of_its_own_keyed_by_the_seed(text: str) -> None:
    first, again, other = (load(Data(source=text), GRAPH, seed).train for seed in (0, 0, 1))
    assert windows(first, 1) == windows(again, 1) != windows(first, 2)
    assert windows(first, 1) != windows(other, 1)


@given(st.integers(0, 300), st.integers(1, 20), st.floats(0.01, 1.0))
def test_no_token_is_lost_but_the_rest_at_the_end(count: int, length: int, share: float) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    if count <= length:
        with pytest.raises(DataError, match="expected at least"):
            split_text(tokens, length, share, "here")
        return
    train, test = split_text(tokens, length, share, "here")
    assert len(test) >= 1
    assert len(train) + len(test) == (count - 1) // length
    labels = np.concatenate([labels for part in (train, test) for _, labels in part.epoch(0, 4)])
    np.testing.assert_array_equal(labels.ravel(), tokens[1 : (count - 1) // length * length + 1])


def test_a_folder_is_read_in_the_order_of_names_and_any_bytes_will_do(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" * 20)
    (tmp_path / "a.txt").write_bytes(b"no newline at the end")
    (tmp_path / "c.md").write_text("not read")
    data = Data(source=f"text:{tmp_path}", text=Text(held_out=1.0))
    found = windows(load_test(data, GRAPH, None))
    assert b"".join(w[:LENGTH] for w in found).startswith(b"no newline at the end\n\xff\xfe")


def test_a_tokenizer_json_ends_each_document(text: str, bpe: str, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(bpe)
    assert tokenizer.size == 280
    tokens = tokenizer.encode(VERSE.encode(), "here")
    assert tokens.dtype == np.uint16
    assert tokens[-1] == 0
    assert len(tokens) < len(VERSE)
    assert Tokenizer.from_file(bpe).decode(tokens[:-1].tolist()) == VERSE
    assert len(tokenizer.encode(b"", "here")) == 0
    graph = nt_models.llama(blocks=1, width=8, hidden=8, heads=2, vocabulary=280, length=LENGTH)
    split = load(Data(source=text, text=Text(tokenizer=bpe)), graph, seed=0)
    assert max(inputs.max() for inputs, _ in split.train.epoch(1, 100)) >= 256


def test_other_names_go_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        eos_token_id = 2

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1, "</s>": 2}

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            assert options == {"add_special_tokens": False, "verbose": False}
            return {"input_ids": ["ab".index(letter) for letter in text]}

    found = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(
            from_pretrained=lambda name, trust_remote_code: trust_remote_code or Loaded()
        )
    )
    monkeypatch.setitem(sys.modules, "transformers", found)
    tokenizer = open_tokenizer("somebody/letters")
    assert (tokenizer.size, tokenizer.encode(b"abba", "here").tolist()) == (3, [0, 1, 1, 0, 2])


def save_words(path: Path, *, end: str, **settings: Any) -> str:
    """Save a tokenizer of words that asks for padding or truncation."""
    words = {"<pad>": 0, "a": 1, "b": 2, end: 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if "pad_to" in settings:
        tokenizer.enable_padding(length=settings["pad_to"], pad_id=0, pad_token="<pad>")
    if "most" in settings:
        tokenizer.enable_truncation(settings["most"])
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize(
    "settings", [{}, {"pad_to": 16}, {"most": 2}, {"pad_to": 5, "most": 3}, {"pad_to": None}]
)
def test_a_tokenizer_that_pads_or_truncates_does_neither_here(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path = save_words(tmp_path / "tokenizer.json", end="</s>", **settings)
    assert open_tokenizer(path).encode(b"a b a b", "here").tolist() == [1, 2, 1, 2, 3]
    assert open_tokenizer(path).encode(b"", "here").tolist() == []


def test_documents_without_an_end_of_text_are_said_and_one_can_be_named(tmp_path: Path, text: str) -> None:
    path = save_words(tmp_path / "tokenizer.json", end="[SEP]")
    with pytest.warns(NeuroTrailsWarning, match=r"names no end of text.*--set data\.text\.end_of_text=TOKEN"):
        assert open_tokenizer(path).encode(b"a b", "here").tolist() == [1, 2]
    assert open_tokenizer(path, "[SEP]").encode(b"a b", "here").tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"data\.text\.end_of_text: .* has no token '\[sep\]'; known: "):
        open_tokenizer(path, "[sep]")
    assert "expected none for 'bytes', whose documents end in a newline" in complaint(
        text, end_of_text="[SEP]"
    )


def test_tokenizers_have_a_public_path() -> None:
    from nt_lab import tokenizer

    assert tokenizer.open_tokenizer is open_tokenizer


@pytest.mark.parametrize(("name", "package"), [("tokenizer.json", "tokenizers"), ("gpt2", "transformers")])
def test_a_package_that_is_missing_is_named(
    name: str, package: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    message = complaint(text, tokenizer=name)
    assert f"data.text.tokenizer: {name!r} needs the package {package}: pip install {package}" in message


def test_texts_that_do_not_fit(text: str, bpe: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("1234567")
    (tmp_path / "one.txt").write_text("12345678\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 9)
    (tmp_path / "none").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    where = f"text:{tmp_path}"
    assert "expected at least 9 tokens" in complaint(f"{where}/empty.txt")
    assert "but it is empty" in complaint(f"{where}/empty.txt")
    assert "expected at least 9 tokens" in complaint(f"{where}/short.txt")
    assert "found 8; give a longer text" in complaint(f"{where}/short.txt")
    assert "all of them held out" in complaint(f"{where}/one.txt")
    assert "no such file" in complaint(f"{where}/nothing.txt")
    assert "no such file" in complaint("text:")
    assert "expected .txt files in the folder, found none" in complaint(f"{where}/none")
    assert "data.text.held_out=0 leaves nothing to test on" in complaint(text, held_out=0)
    wide = nt_models.llama(blocks=1, width=8, hidden=8, heads=2, vocabulary=300, length=LENGTH)
    assert "latin.txt: not UTF-8 at byte 3" in complaint(f"{where}/latin.txt", wide, tokenizer=bpe)
    assert "not a tokenizer.json" in complaint(text, tokenizer=str(tmp_path / "bad.json"))
    assert "no file 'missing.json'" in complaint(text, tokenizer="missing.json")


def test_a_tokenizer_with_more_tokens_than_the_vocabulary(text: str, bpe: str) -> None:
    message = complaint(text, tokenizer=bpe)
    assert "has 280 tokens, the graph's vocabulary 256; --set graph.vocabulary=280 would fit" in message
    narrow = nt_models.llama(blocks=1, width=8, hidden=8, heads=2, vocabulary=100, length=LENGTH)
    assert "'bytes' has 256 tokens, the graph's vocabulary 100" in complaint(text, narrow)


def test_graphs_that_do_not_fit(text: str) -> None:
    net = GraphBuilder(Tokens(length=4, vocabulary=256))
    with net.classifier() as b:
        b.out = b.linear(b.flatten(b.embedding(b.inp, 256, 2)), 3)
    assert "expected an output for each of 4 tokens, found shape (3,)" in complaint(text, net.build())
    assert "'digits' are images, but the graph reads tokens" in complaint("digits")
    pictures = nt_models.mlp(inputs=(1, 8, 8), classes=10)
    assert "is text, but the graph does not read tokens" in complaint(text, pictures)


# Streams


def documents_in(found: list[bytes]) -> set[int]:
    """Return which documents windows have a whole number of."""
    return {
        int(word) for window in found for word in window[1:-1].split(b" ")[1:-1] if word.strip().isdigit()
    }


def test_a_stream_goes_on_from_epoch_to_epoch_and_never_ends(lines: str) -> None:
    data = Data(source=lines, text=Text(shuffle_buffer=5, held_out=0.25))
    stream = load(data, GRAPH, seed=0, stream_epoch=100).train
    assert len(stream) == 100
    epochs = [windows(stream, number) for number in (1, 2, 3)]
    assert [len(epoch) for epoch in epochs] == [100, 100, 100]
    per_pass = 30 * 31 // LENGTH
    seen = list(itertools.chain(*epochs))
    assert sorted(seen[:per_pass]) == sorted(seen[per_pass : 2 * per_pass])
    assert seen[:per_pass] != seen[per_pass : 2 * per_pass]
    assert windows(stream, 1) == epochs[0]
    assert windows(load(data, GRAPH, seed=1, stream_epoch=100).train, 1) != epochs[0]


def test_documents_held_out_are_not_trained_on(lines: str) -> None:
    data = Data(source=lines, text=Text(held_out=0.25))
    split = load(data, GRAPH, seed=0, stream_epoch=300)
    tested, trained = documents_in(windows(split.test)), documents_in(windows(split.train, 1))
    assert tested == set(range(3, 40, 4))
    assert trained == set(range(40)) - tested
    assert windows(load_test(data, GRAPH, None)) == windows(split.test)
    few = load_test(data.replace(text=Text(held_out=0.25, test_sequences=3)), GRAPH, None)
    assert windows(few) == windows(split.test)[:3]


@given(st.floats(0.0, 1.0), st.integers(1, 1000))
def test_as_many_documents_are_held_out_as_the_share_says(share: float, count: int) -> None:
    assert abs(sum(is_held_out(number, share) for number in range(count)) - share * count) < 1 + 1e-9


@given(st.lists(st.integers()), st.integers(1, 9), st.integers(0, 9))
def test_a_shuffle_buffer_loses_nothing_and_looks_no_further_than_its_size(
    items: list[int], size: int, seed: int
) -> None:
    read: list[int] = []

    def reading() -> Iterator[int]:
        for item in items:
            read.append(item)
            yield item

    given = []
    for item in buffered(reading(), size, seed, epoch=1):
        given.append(item)
        assert len(read) <= len(given) + size
    assert sorted(given) == sorted(items)


@given(st.lists(st.binary(max_size=30)), st.integers(1, 9))
def test_packing_cuts_the_documents_in_one_piece(documents: list[bytes], length: int) -> None:
    tokenizer = open_tokenizer("bytes")
    whole = b"".join(tokenizer.encode(each, "here").tobytes() for each in documents)
    found = [window.tobytes() for window in pack(documents, tokenizer, length)]
    in_memory = Sequences(tokens=np.frombuffer(whole, np.uint8), length=length)
    assert found == windows(in_memory)


def test_other_kinds_of_streams(tmp_path: Path, lines: str) -> None:
    rows = [json.loads(line)["text"] for line in (Path(lines) / "train.jsonl").read_text().splitlines()]
    expected = windows(load_test(Data(source=lines), GRAPH, None))
    named = Dataset.from_dict({"content": rows})
    (tmp_path / "parquet").mkdir()
    named.to_parquet(tmp_path / "parquet" / "train.parquet")
    DatasetDict(train=named).save_to_disk(tmp_path / "saved")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "train.txt").write_text("\n".join(rows))
    for kind, column in (("parquet", "content"), ("saved", "content"), ("plain", "text")):
        data = Data(source=str(tmp_path / kind), text=Text(column=column))
        assert windows(load_test(data, GRAPH, None)) == expected, kind


def test_examples_without_text_are_left_out_said_and_counted(tmp_path: Path) -> None:
    lines = [None if number % 3 == 0 else f"{number:02} " * 10 for number in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    data = Data(source=str(tmp_path), text=Text(held_out=0.25))
    with pytest.warns(NeuroTrailsWarning, match=r"example 0: no text \(null\); such examples") as caught:
        split = load(data, GRAPH, seed=0, stream_epoch=200)
    trained = documents_in(windows(split.train, 1) + windows(split.train, 2))
    assert len(caught) == 1
    assert isinstance(split.train, Stream)
    assert split.train.nulls.count == 14
    tested = documents_in(windows(split.test))
    assert not trained & tested
    assert trained | tested == {number for number in range(40) if number % 3}


@pytest.mark.parametrize("name", ["input.txt", "notes.md", "corpus.jsonl"])
def test_a_file_is_not_looked_for_on_a_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("looked for on a hub")

    monkeypatch.setattr("nt_lab.data.stream.datasets.load_dataset", fail)
    monkeypatch.chdir(tmp_path)
    assert f"no folder {name!r} is there" in complaint(name)
    assert f"'text:{name}'" in complaint(name)
    Path(name).write_text("words")
    assert f"{name!r} is a file; give" in complaint(name)
    assert f"'text:{name}' for a text that a language model reads" in complaint(name)
    assert f"'text:{name}'" in complaint(name, nt_models.mlp(inputs=(1, 8, 8), classes=10))


def test_a_split_of_its_own_to_test_on(lines: str) -> None:
    path = Path(lines) / "validation.jsonl"
    path.write_text(json.dumps({"text": "tested on this alone"}))
    data = Data(source=lines, test="validation", text=Text(held_out=0))
    split = load(data, GRAPH, seed=0, stream_epoch=300)
    assert windows(split.test) == [b"tested on", b"n this al"]
    assert documents_in(windows(split.train, 1)) == set(range(40))


def test_streams_that_do_not_fit(lines: str, tmp_path: Path) -> None:
    assert "is a stream, which has no epochs" in complaint(lines, stream_epoch=None)
    assert "--steps 1000" in complaint(lines, stream_epoch=None)
    assert "has no column 'txt'; did you mean 'text'?" in complaint(lines, column="txt")
    assert "no documents to train on" in complaint(lines, held_out=1.0)
    assert "data.test: no split 'test'" in complaint(lines, held_out=0)
    assert "shorter than a sequence of 2000 tokens" in complaint(
        lines, nt_models.llama(blocks=1, width=8, hidden=8, heads=2, vocabulary=256, length=2000)
    )
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "train.jsonl").write_text('{"text": 1}\n')
    assert "example 0: column 'text': expected text, found int" in complaint(str(tmp_path / "numbers"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1 not really")
    assert "cannot be loaded" in complaint(str(tmp_path / "damaged"))
    assert "cannot be loaded" in complaint(str(tmp_path / "nothing" / "at" / "all"))


def test_a_stream_that_fails_half_way_is_one_error(lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"text": VERSE}
        raise ConnectionError("the line is cut")

    splits: dict[str, Any] = {"train": SimpleNamespace(__iter__=None)}
    splits["train"] = type("Broken", (), {"__iter__": lambda self: broken()})()
    monkeypatch.setattr("nt_lab.data.stream.datasets.load_dataset", lambda *_, **__: splits)
    assert "cannot be loaded: the line is cut" in complaint("somebody/corpus")


# Whole runs


def spec_of(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "preset: neurotrails_lm\n"
        "graph: {name: llama, blocks: 2, width: 8, hidden: 8, heads: 2, vocabulary: 256, length: 8}\n"
        "topology: {interval: 2}\n"
        "training: {optimizer: {kind: adamw, lr: 0.01}, batch_size: 8,"
        " learning_rate: {schedule: cosine, warmup: 0.1, final: 0.1}}\n"
    )
    return str(path)


def run_nt(*arguments: str) -> Any:
    from typer.testing import CliRunner

    from nt_lab.cli.main import app

    return CliRunner().invoke(app, [*arguments], catch_exceptions=False, env={"COLUMNS": "80"})


def test_a_language_model_is_trained_and_measured_by_perplexity(tmp_path: Path, text: str) -> None:
    folder = str(tmp_path / "run")
    result = run_nt("train", spec_of(tmp_path), "--data", text, "--epochs", "2", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "perpl." in result.stdout
    assert "accuracy" not in result.stdout + result.stderr
    assert "perplexity" in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80 + len(folder)
    record = json.loads((tmp_path / "run" / "config.json").read_text())["record"]
    assert record["data"]["unit"] == "tokens"
    assert (record["data"]["train_examples"], record["data"]["test_examples"]) == (70, 8)
    assert record["metrics"]["count"] == 8 * LENGTH
    assert record["epochs"] == 2
    found = json.loads(run_nt("evaluate", folder, "--json").stdout)
    assert found["nll"] == pytest.approx(record["metrics"]["nll"])
    np.testing.assert_allclose(found["member_perplexity"], np.exp(found["member_nll"]))
    assert found["perplexity"] < 256
    assert "64 tokens" in run_nt("evaluate", folder).stdout
    rows = json.loads(run_nt("compare", folder, "--json").stdout)
    assert rows[0]["unit"] == "tokens"
    assert len(rows[0]["member_perplexity"]) == 3
    history = (tmp_path / "run" / "history.jsonl").read_text()
    assert "perplexity" in history
    again = run_nt("train", f"{folder}/spec.yaml", "--out", str(tmp_path / "again"), "--json")
    assert json.loads(again.stdout)["nll"] == rows[0]["nll"]


def test_a_stream_is_trained_on_by_steps_and_tested_ten_times(tmp_path: Path, lines: str) -> None:
    folder = tmp_path / "run"
    asked = ("train", spec_of(tmp_path), "--data", lines, "--out", str(folder))
    assert "has no epochs" in " ".join(run_nt(*asked, "--epochs", "1").stderr.replace("│", "").split())
    result = run_nt(*asked, "--steps", "19", "--set", "training.precision=bfloat16")
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "config.json").read_text())["record"]
    assert (record["steps"], record["examples"], record["epochs"]) == (19, 19 * 8, None)
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert len([event for event in events if event["event"] == "epoch"]) == 10


def test_sequences_longer_than_the_model_s_and_tokens_beyond_its_vocabulary() -> None:
    import nt_torch
    from nt_core import PRESETS

    model = nt_torch.compile(PRESETS["single"](GRAPH))
    with pytest.raises(DataError, match=r"input: expected shape \(batch, 8\), found \(1, 9\)"):
        nt_torch.predict(model, np.zeros((1, 9), np.int64))
    with pytest.raises(DataError, match="input: expected tokens from 0 to 255, found 3 to 256"):
        nt_torch.predict(model, np.full((1, 8), 256) - np.eye(1, 8, dtype=np.int64) * 253)

"""Training and test data of language models: text in memory, or a stream."""

from __future__ import annotations

from dataclasses import replace

from nt_core.errors import DataError
from nt_core.graph import BlockGraph, Tokens
from nt_core.training import Batches, Data
from nt_lab.data.sources import DIGITS
from nt_lab.data.stream import held_out_sequences, open_splits, open_stream
from nt_lab.data.text import PREFIX, Sequences, read_text, split_text
from nt_lab.data.tokenizer import SETTING, Tokenizer, open_tokenizer


def load_text(
    data: Data, graph: BlockGraph, seed: int, stream_epoch: int | None
) -> tuple[Batches, Sequences]:
    """Load the training data and the test data; see :func:`nt_lab.data.splits.load`."""
    tokenizer, length = _tokenizer_and_length(data, graph)
    if data.source.startswith(PREFIX):
        train, test = split_text(
            read_text(data.source, tokenizer), length, data.text.held_out, f"data {data.source!r}"
        )
        if not len(train):
            raise DataError(
                f"data {data.source!r}: {len(test)} sequences of {length} tokens, all of them held out; "
                "expected one more to train on; give a longer text, or lower "
                f"data.text.held_out={data.text.held_out:g}"
            )
        return replace(train, shuffle_seed=seed), test
    if stream_epoch is None:
        raise DataError(
            f"data.source: {data.source!r} is a stream, which has no epochs; say how long with plan.steps, "
            "--steps 1000 say"
        )
    return open_stream(data, tokenizer, length, seed, stream_epoch)


def load_test_text(data: Data, graph: BlockGraph) -> Sequences:
    """Load the test data alone; see :func:`nt_lab.data.splits.load_test`."""
    tokenizer, length = _tokenizer_and_length(data, graph)
    if data.source.startswith(PREFIX):
        tokens = read_text(data.source, tokenizer)
        return split_text(tokens, length, data.text.held_out, f"data {data.source!r}")[1]
    return held_out_sequences(open_splits(data), data, tokenizer, length)


def _tokenizer_and_length(data: Data, graph: BlockGraph) -> tuple[Tokenizer, int]:
    """Return the tokenizer and the length of sequences, after a check that both fit the graph."""
    assert isinstance(graph.input, Tokens)
    length, outputs = graph.input.length, graph.output_shape
    if data.source == DIGITS:
        raise DataError(
            f"data.source: {DIGITS!r} are images, but the graph reads tokens; give --data text:PATH, a "
            "folder or a dataset's name on the hub"
        )
    if len(outputs) != 2 or outputs[0] != length:
        raise DataError(
            f"graph: expected an output for each of {length} tokens, found shape {outputs}; use a language "
            "model, llama_tiny say"
        )
    tokenizer = open_tokenizer(data.text.tokenizer, data.text.end_of_text)
    vocabulary = min(graph.input.vocabulary, outputs[1])
    if tokenizer.size > vocabulary:
        raise DataError(
            f"{SETTING}: {data.text.tokenizer!r} has {tokenizer.size} tokens, the graph's vocabulary "
            f"{vocabulary}; --set graph.vocabulary={tokenizer.size} would fit"
        )
    return tokenizer, length

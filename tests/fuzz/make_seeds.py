"""Write the seeds anew: ``python tests/fuzz/make_seeds.py``. Needed when a format changes; findings stay."""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import zlib
from io import BytesIO
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature

import nt_cpu
import nt_models
from nt_core import (
    PRESETS,
    BlockGraph,
    EnsembleSpec,
    GraphBuilder,
    Image,
    MultiHead,
    Static,
    initial_masks,
    initial_values,
)
from nt_core.checkpoint import CONFIG, Checkpoint, save_checkpoint
from nt_core.files import TENSORS
from nt_core.spec import read_spec
from nt_core.states import State
from nt_core.states.file import write_state
from nt_models.huggingface.folder import save_llama
from nt_models.tiny import TINY
from tests.fuzz.programs import FLOATS, listing, program_of, tensors_of
from tests.fuzz.readers import split_safetensors

COST = {
    "weights": {"active": 5},
    "flops": {"inference": 20, "training_step": 60.0},
    "relative_to_single_dense": dict.fromkeys(
        ("weights_active", "flops_inference", "flops_training_step"), 0.5
    ),
}
MLP = nt_models.mlp(inputs=6, hidden=(5, 4), classes=3)


def write(reader: str, name: str, *parts: bytes) -> None:
    folder = HERE / "seeds" / reader
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\0".join(parts))


def trained(graph: object, structure: object = None) -> Checkpoint:
    spec = EnsembleSpec(
        graph=graph, structure=structure or MultiHead(split=1, heads=2), topology=Static(sparsity=0.5)
    )
    values, masks = dict(initial_values(spec.layout, 0)), dict(initial_masks(spec.topology, spec.layout, 0))
    values |= {name: np.where(mask.dense(), values[name], 0) for name, mask in masks.items()}
    metrics = {"accuracy": 0.9, "nll": 0.3, "perplexity": 1.35, "ece": 0.02, "disagreement": 0.1}
    record = {"name": "a", "metrics": metrics, "cost": COST, "examples": 9, "seconds": 2.0, "run": {}}
    return Checkpoint(spec=spec, values=values, masks=masks, record=record)


def images() -> BlockGraph:
    net = GraphBuilder(Image(channels=2, height=8, width=8))
    with net.stem() as b:
        b.out = b.relu(b.norm(b.conv(b.inp, 3, kernel=3, pad=1)))
    with net.block("pool") as b:
        b.out = b.relu(b.conv(b.max_pool(b.inp, kernel=2, stride=2), 4, kernel=3, stride=2, pad=1))
    with net.classifier() as b:
        b.out = b.linear(b.global_avg_pool(b.inp), 3)
    return net.build()


def specs() -> None:
    for name in ("single", "neurotrails", "gmp", "mimo", "batch_ensemble", "edst"):
        if name in PRESETS:
            run = read_spec(name, nt_models.ARCHITECTURES)
            write("spec_yaml", f"{name}.yaml", run.to_yaml().encode())
            write("spec_json", f"{name}.json", json.dumps(run.to_dict()).encode())
    large = b"preset: rigl\ngraph: {name: mlp, inputs: 4, hidden: [1000000000], classes: 2}"
    write("spec_yaml", "width_of_a_billion_can_be_costed.yaml", large)
    whole = {"preset": "rigl", "graph": MLP.to_dict()}
    write("spec_json", "whole_graph.json", json.dumps(whole).encode())
    write(
        "spec_yaml", "short.yaml", b"preset: neurotrails\nstructure: {heads: 2}\ntopology: {sparsity: 5e-1}\n"
    )


def models(scratch: Path) -> None:
    graphs = {"mlp": MLP, "images": images(), "vit": TINY["vit"](), "llama": TINY["llama"]()}
    for name, graph in graphs.items():
        saved = trained(graph)
        save_checkpoint(scratch / name, saved)
        header, body = split_safetensors((scratch / name / TENSORS).read_bytes())
        if name == "mlp":
            write("tensors", "checkpoint", header, body)
        if name in ("mlp", "images"):
            write("checkpoint", name, (scratch / name / CONFIG).read_bytes(), header, body)
        nt_cpu.pack(nt_cpu.compile(saved, batch=2), scratch / f"{name}.nt")
        content = (scratch / f"{name}.nt").read_bytes()
        size = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + size])["__metadata__"]["packed"].encode()
        header, body = split_safetensors(content)
        write("packed", name, about, header, body)
    state = State(
        step=3,
        training={"seed": 0},
        content={"w": np.arange(5.0), "n": [1, None, np.eye(2)]},
        beside={"x": 1},
    )
    write_state(scratch / "state", state)
    content = (scratch / "state").read_bytes()
    size = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + size])["__metadata__"]["neurotrails_state"].encode()
    write("state", "state", about, *split_safetensors(content))
    llama = nt_models.ARCHITECTURES["llama"](blocks=1, width=8, hidden=8, heads=2, vocabulary=9, length=4)
    save_llama(scratch / "pretrained", trained(llama, MultiHead(split=0, heads=1)))
    parts = split_safetensors((scratch / "pretrained" / TENSORS).read_bytes())
    write("huggingface", "llama", (scratch / "pretrained" / CONFIG).read_bytes(), *parts)


def data(scratch: Path) -> None:
    pictures = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP"):
        content = BytesIO()
        pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        PIL.Image.fromarray(pixels).save(content, kind)
        pictures[kind] = content.getvalue()
        write("image", kind.lower(), content.getvalue())
    write("image", "bomb_declared_20000.png", bomb(20000, 20000))
    write("image", "bomb_declared_9000.png", bomb(9000, 9000))
    write(
        "image",
        "starts_ghostscript.eps",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    )
    features = Features(img=ImageFeature(), label=ClassLabel(num_classes=4))
    rows = {"img": [{"bytes": pictures["PNG"], "path": None}] * 3, "label": [0, 1, 3]}
    Dataset.from_dict(rows, features).to_parquet(scratch / "a.parquet")
    write("parquet", "images", (scratch / "a.parquet").read_bytes())
    rows["img"] = [{"bytes": None, "path": "https://example.invalid/a.png"}] * 3
    pq.write_table(Dataset.from_dict(rows, features).data.table, scratch / "b.parquet")
    write("parquet", "image_at_an_address", (scratch / "b.parquet").read_bytes())
    record = {"event": "epoch", "epoch": 1, "step": 2, "loss": 0.5, "accuracy": None}
    write("history", "epochs", (json.dumps(record) + "\n").encode() * 3)
    write("text", "words", "To be, or not to be – that is the question.\n".encode())
    write("text", "any_bytes", bytes(range(256)))


def bomb(width: int, height: int, pixels: bytes = b"x") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        sum_ = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", sum_)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tokenizers() -> None:
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    for name, model in {
        "words": {"type": "WordLevel", "vocab": {"to": 0, "be": 1, "?": 2}, "unk_token": "?"},
        "bpe": {"type": "BPE", "vocab": {"t": 0, "o": 1, "to": 2}, "merges": [["t", "o"]]},
        "broke_no_tokens": {"type": "WordLevel", "vocab": {}, "unk_token": "?"},
        "broke_unknown_token_is_unknown": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"},
    }.items():
        content = {"version": "1.0", "added_tokens": [], **empty, "model": model}
        write("tokenizer", name, json.dumps(content).encode())


def forged(scratch: Path) -> None:
    """What says one thing and holds another, checksums put right."""
    about, header, body = (HERE / "seeds" / "packed" / "mlp").read_bytes().split(b"\0", 2)
    words = json.loads(header)["code"]["shape"][0]
    as_bytes = json.loads(header)
    as_bytes["code"] |= {"dtype": "U8", "shape": [8 * words]}
    write("packed", "broke_code_of_bytes_is_read_beyond_its_end", about, json.dumps(as_bytes).encode(), body)
    as_matrix = json.loads(header)
    as_matrix["code"] |= {"shape": [1, words]}
    write("packed", "broke_code_is_a_matrix", about, json.dumps(as_matrix).encode(), body)
    smaller = EnsembleSpec(graph=nt_models.mlp(inputs=2, hidden=(5, 4), classes=1)).to_dict()
    other = json.dumps({**json.loads(about), "spec": smaller}).encode()
    write("packed", "broke_program_writes_beyond_the_arrays_of_its_spec", other, header, body)
    begin = json.loads(header)["code"]["data_offsets"][0] + 3 * 8
    needy = body[:begin] + (1 << 40).to_bytes(8, "little") + body[begin + 8 :]
    write("packed", "broke_working_memory_of_terabytes", about, header, needy)
    silent, uneven = (listing(program_of(header, body)) for _ in range(2))
    silent.ops.pop()
    uneven.head[FLOATS] += 1
    write("packed", "broke_last_member_gets_no_output", about, *tensors_of(silent.program()))
    write("packed", "broke_working_memory_of_no_whole_lines", about, *tensors_of(uneven.program()))
    config = json.loads((scratch / "mlp" / CONFIG).read_text())
    huge = EnsembleSpec(graph=nt_models.mlp(inputs=10**6, hidden=(10**8,), classes=2)).to_dict()
    config |= {"spec": huge, "masked": []}
    write("checkpoint", "broke_network_of_terabytes", json.dumps(config).encode(), b"{}", b"")
    config = json.loads((scratch / "mlp" / CONFIG).read_text())
    _, header, body = (HERE / "seeds" / "checkpoint" / "mlp").read_bytes().split(b"\0", 2)
    for name, change in {"masked_is_a_number": {"masked": 3}, "record_is_a_list": {"record": []}}.items():
        write("checkpoint", f"broke_{name}", json.dumps(config | change).encode(), header, body)
    other_dtype = header.replace(b'"F32"', b'"I32"')
    write("checkpoint", "broke_weights_are_integers", json.dumps(config).encode(), other_dtype, body)
    about, header, body = (HERE / "seeds" / "state" / "state").read_bytes().split(b"\0", 2)
    write("state", "broke_content_names_no_array", about.replace(b'"/w"', b'"/v"'), header, body)
    write("state", "broke_step_is_text", about.replace(b'"step": 3', b'"step": "3"'), header, body)
    write(
        "state",
        "broke_dtype_that_numpy_lacks",
        about,
        b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}',
        bytes(4),
    )


def broken() -> None:
    """What once broke a reader, written down by hand."""
    deep = b"[" * 500 + b"]" * 500
    for name, content in {
        "tag_timestamp": b"name: !!timestamp x",
        "tag_bool": b"name: !!bool x",
        "tag_int_empty": b'seed: !!int ""',
        "tag_python_object": b'name: !!python/object/apply:os.system ["true"]',
        "base_60_takes_seconds": b"preset: single\nseed: 1" + b":1" * 3000,
        "base_60_float": b"preset: single\nseed: 1" + b":1" * 300 + b".5",
        "hexadecimal_too_long_to_print": b"preset: single\nseed: -0x" + b"f" * 5000,
        "width_too_large_for_a_float": b"preset: rigl\ngraph: {name: mlp, inputs: 4, hidden: [0x"
        + b"f" * 300
        + b"], classes: 2}",
        "heads_of_too_many_ops": b"graph: {name: wide_resnet, depth: 604, width: 1}\n"
        b"structure: {kind: independent, count: 4096}",
        "key_called_self": b"preset: single\nself: 1",
        "key_is_a_list": b"preset: single\n? [a]\n: 1",
        "name_with_nul": b'preset: single\nname: "a\\0b"',
        "surrogate": b'preset: single\nname: "\\ud800"',
        "nested": b"preset: single\nname: " + deep,
    }.items():
        write("spec_yaml", f"broke_{name}", content)
    for name, content in {
        "doubled_key": b'{"preset": "single", "preset": "rigl"}',
        "nested": b'{"preset": "single", "name": ' + deep + b"}",
        "many_doubled_keys": b"{" + b'"a":1,' * 2000 + b'"b":1}',
    }.items():
        write("spec_json", f"broke_{name}", content)
    for name, content in {
        "line_is_no_json": b'{"event": "epoch"}\n{\n{"event": "epoch"}\n',
        "not_utf8": b"\xff\n",
        "line_is_a_list": b"[1]\n",
        "empty_line": b"\n",
        "nested": deep + b"\n",
    }.items():
        write("history", f"broke_{name}", content)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        specs()
        models(Path(folder))
        data(Path(folder))
        tokenizers()
        forged(Path(folder))
        broken()

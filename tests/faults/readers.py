"""Every reader of files that may be a stranger's, with a good file of each."""

import base64
import bz2
import contextlib
import gzip
import io
import json
import lzma
import pathlib
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import sentencepiece
import tensorstore
import tokenizers
import torch
from array_record.python.array_record_module import ArrayRecordWriter
from flax import serialization
from tokenizers import decoders, models, pre_tokenizers, processors

from fmjax.config.load import load_experiment
from fmjax.config.render import render
from fmjax.data.runtime import cache
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.image_folder import ImageFolder
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.token_files import TokenFiles
from fmjax.data.text.decoder_pairs import DecoderPairs
from fmjax.data.text.packing import Layout
from fmjax.data.text.pairs import Pairs
from fmjax.data.tokenizers.characters import CharacterTokenizer
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.errors import UserError
from fmjax.interop import preprocessor_file
from fmjax.interop.containers import meta_llama, t5x, tiktoken_file, torch_files
from fmjax.interop.containers.folder import read_folder
from fmjax.interop.quantized.dequantize import dequantized
from fmjax.interop.saved_model import read_model
from fmjax.interop.tensor_files import TensorFiles
from fmjax.run import directory as run_dirs
from fmjax.run import lock as run_lock
from fmjax.run import status as run_status
from fmjax.training.checkpoint.digests import from_json, opened, sealed
from fmjax.training.checkpoint.saved_state import FOLDER, saved_steps
from fmjax.training.faults import bad_step_log
from fmjax.training.reporting import events, metrics

Reader = Callable[[bytes], object]
Readers = dict[str, tuple[bytes, Reader]]

GIN = b"""# A config.
include 'quickstart.gin'
transformer.num_layers = 2
experiment.optimizer = @adamw()
adamw.b2 = %B2
B2 = 0.95
"""
TEXTS = ["the cat sat on the mat", "a cat and a hat, 12 of them"] * 5


def readers(folder: pathlib.Path) -> Readers:
    """A good input of each reader, and the reader, which may write below `folder`."""
    parts = (
        models_of,
        containers_of,
        caches,
        configs,
        runs,
        tokenizers_of,
        images,
        records,
        token_streams,
    )
    found: Readers = {}
    for part in parts:
        place = folder / part.__name__
        place.mkdir()
        found |= part(place)
    return found


def models_of(folder: pathlib.Path) -> Readers:
    """Models that are imported."""
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    content = safetensors.numpy.save(arrays)
    single, shards, gpt2 = (folder / name for name in ("single", "shards", "gpt2"))
    for place in (single, shards, gpt2):
        place.mkdir()
    (shards / "one.safetensors").write_bytes(content)
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}

    def tensors(file: pathlib.Path, content: bytes) -> None:
        file.write_bytes(content)
        files = TensorFiles(file.parent, read_folder(file.parent))
        for name in files.names:
            files.read(name, arrays[name].shape if name in arrays else (1,))

    shapes = {"wte.weight": (11, 6), "wpe.weight": (8, 6)}
    shapes |= {"ln_f.weight": (6,), "ln_f.bias": (6,)}
    for layer in range(2):
        linear = {"attn.c_attn": (6, 18), "attn.c_proj": (6, 6)}
        linear |= {"mlp.c_fc": (6, 24), "mlp.c_proj": (24, 6)}
        for name, shape in linear.items():
            shapes[f"h.{layer}.{name}.weight"] = shape
            shapes[f"h.{layer}.{name}.bias"] = shape[1:]
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            shapes[f"h.{layer}.{name}"] = (6,)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(zeros, gpt2 / "model.safetensors")
    options = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2,
        "n_embd": 6, "n_head": 2, "n_positions": 8, "vocab_size": 11,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "tie_word_embeddings": True, "n_inner": None,
    }  # fmt: skip

    return {
        "safetensors": (content, lambda c: tensors(single / "model.safetensors", c)),
        "safetensors index": (
            _json(index),
            lambda c: tensors(shards / "model.safetensors.index.json", c),
        ),
        "config.json": (
            _json(options),
            _written(
                gpt2 / "config.json",
                lambda: read_model(gpt2, TensorFiles(gpt2, read_folder(gpt2))),
            ),
        ),
    }


def containers_of(folder: pathlib.Path) -> Readers:
    """Weights in other files than safetensors."""
    table = torch.arange(6.0).reshape(2, 3)
    state = {"table": table, "turned": table.T, "half": torch.ones(3).bfloat16()}
    index = {"weight_map": {"table": "one.bin", "half": "one.bin"}}
    meta, shards = folder / "meta", folder / "bin"
    for place in (meta, shards):
        place.mkdir()
    torch.save(state, shards / "one.bin")
    shapes = {"attention.wq": (4, 4), "attention.wk": (4, 4), "attention.wv": (4, 4)}
    shapes |= {"attention.wo": (4, 4), "feed_forward.w1": (6, 4)}
    llama = {f"layers.0.{n}.weight": torch.ones(shape) for n, shape in shapes.items()}
    llama["tok_embeddings.weight"] = torch.ones(7, 4)
    torch.save(llama, meta / "consolidated.00.pth")
    params = {"dim": 4, "n_layers": 1, "n_heads": 2, "vocab_size": 7, "norm_eps": 1e-5}
    array = folder / "t5x" / "target.encoder.encoder_norm.scale"
    places, tensors = {}, {}
    small = np.ones((4, 4), np.float32)
    for name in ("query", "key", "value", "out"):
        tensors[name] = {"kernel": small}
    target = {
        "token_embedder": {"embedding": np.ones((7, 4), np.float32)},
        "encoder": {
            "relpos_bias": {"rel_embedding": np.ones((2, 8), np.float32)},
            "layers_0": {"attention": tensors, "mlp": {"wi": {"kernel": small}}},
            "encoder_norm": {
                "scale": {"driver": "zarr", "kvstore": {"path": array.name}}
            },
        },
    }
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(array)}}
    written = tensorstore.open(
        spec, create=True, dtype=tensorstore.float32, shape=[4]
    ).result()
    written.write(np.ones(4, np.float32)).result()
    checkpoint = serialization.msgpack_serialize(
        {"version": 3, "optimizer": {"target": target}}
    )
    (array.parent / t5x.FILE).write_bytes(checkpoint)
    for name in (t5x.FILE, f"{array.name}/.zarray", f"{array.name}/0"):
        places[name] = folder / f"of {name.replace('/', ' ')}"
        shutil.copytree(array.parent, places[name])

    def every(tensors) -> None:
        for tensor in tensors.values():
            assert tensor.read().shape == tensor.shape

    packed = {
        "a.qweight": np.ones((4, 8), np.int32),
        "a.qzeros": np.ones((2, 1), np.int32),
        "a.scales": np.ones((2, 8), np.float16),
        "a.g_idx": np.arange(32, dtype=np.int32) // 16,
    }
    config = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}
    weights = {"num_bits": 8, "type": "int", "strategy": "tensor"}
    group = {"targets": ["Linear"], "weights": weights, "format": None}
    compressed = {
        "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": {"group_0": group},
    }  # fmt: skip
    int8 = {"a.weight": np.ones((2, 3), np.int8), "a.weight_scale": np.ones(1, "f4")}
    quantized = folder / "quantized"
    quantized.mkdir()
    safetensors.numpy.save_file(packed, quantized / "model.safetensors")

    def weights_of(content: bytes, settings: dict = config) -> None:
        (quantized / "model.safetensors").write_bytes(content)
        files = TensorFiles(quantized, read_folder(quantized))
        every(dequantized(quantized, files, settings)[0].tensors)

    def file() -> None:
        every(torch_files.read_file(folder / "model.bin"))

    return {
        "PyTorch's zip": (_saved(state, True), _written(folder / "model.bin", file)),
        "PyTorch's older": (_saved(state, False), _written(folder / "model.bin", file)),
        "tiktoken": (
            b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)),
            _written(
                folder / "tokenizer.model",
                lambda: tiktoken_file.definition(folder / "tokenizer.model"),
            ),
        ),
        "GPTQ": (safetensors.numpy.save(packed), weights_of),
        "GPTQ's settings": (
            _json(config),
            lambda c: weights_of(safetensors.numpy.save(packed), _settings(c)),
        ),
        "compressed-tensors' settings": (
            _json(compressed),
            lambda c: weights_of(safetensors.numpy.save(int8), _settings(c)),
        ),
        "PyTorch's index": (
            _json(index),
            _written(
                shards / "pytorch_model.bin.index.json",
                lambda: every(read_folder(shards)),
            ),
        ),
        "params.json": (
            _json(params),
            _written(
                meta / "params.json", lambda: every(meta_llama.read_folder(meta)[1])
            ),
        ),
        **{
            f"T5X's {name}": (
                (place / name).read_bytes(),
                _written(
                    place / name,
                    lambda place=place: every(t5x.read_folder(place)[1]),
                ),
            )
            for name, place in places.items()
        },
    }


def _settings(content: bytes) -> dict:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _saved(state: dict, archive: bool) -> bytes:
    content = io.BytesIO()
    torch.save(state, content, _use_new_zipfile_serialization=archive)
    return content.getvalue()


def caches(folder: pathlib.Path) -> Readers:
    """Caches and their records."""
    key = cache.CacheKey("task", "train", {}, Layout("blocks", 4, None, 1))
    place = key.folder(folder)
    place.mkdir(parents=True)
    (place / "rows-0.array_record").write_bytes(b"rows")
    metadata = {
        "key": key.as_json(), "padding_share": 0.0, "documents": 1, "tokens": 4,
        "bytes": 4, "rows": 1, "targets": 4, "skipped": 0, "skipped_names": [],
        "seconds": 0.1, "shards": {"rows-0.array_record": 4},
    }  # fmt: skip

    def opens() -> None:
        found = cache.open_cache(folder, key)
        assert all(shard.parent == place for shard in found.shards)
        assert range(found.rows + found.documents) is not None

    layouts = [Layout(mode, 8, None, 1) for mode in ("blocks", "windows", "packed")]
    layouts += [Pairs(8, 8, True, 1), DecoderPairs(8, True, 1, 1)]
    record = {
        "tokens": np.arange(6, dtype=np.uint16),
        "lengths": np.array([4, 2], np.int32),
    }

    def reads(content: bytes) -> None:
        for layout in layouts:
            try:
                found = cache.decode_record(content)
                layout.check(found)
            except Exception:
                continue  # As `Records` does; but what passes must make a row.
            layout.row(found, lambda: np.random.default_rng(0))

    return {
        "cache metadata": (_json(metadata), _written(place / "metadata.json", opens)),
        "cache record": (safetensors.numpy.save(record), reads),
    }


def configs(folder: pathlib.Path) -> Readers:
    """gin's."""
    file = folder / "mine.gin"

    def bindings(content: bytes) -> None:
        load_experiment("quickstart.gin", [content.decode("utf-8", "replace")])

    return {
        "gin bindings": (b"transformer.num_layers=2", bindings),
        "gin file": (GIN, _written(file, lambda: load_experiment(str(file)))),
    }


def runs(folder: pathlib.Path) -> Readers:
    """What lies in a run directory."""
    run_dirs.write(folder, render(load_experiment("quickstart.gin")))
    (folder / FOLDER).mkdir()
    line = {
        "step": 1, "split": "train", "loss": 1.0, "time": 1.0, "kind": "started",
        "text": "", "batch": 3, "why": "spike", "action": "skip", "passed_over": [],
        "grad_norm": 1.0, "tokens_per_second": 5.0, "step_seconds": 0.1, "mfu": 0.1,
    }  # fmt: skip

    def lines(content: bytes) -> None:
        for file in (metrics.FILE, events.FILE, bad_step_log.FILE):
            (folder / file).write_bytes(content)
        found = run_status.status(folder)
        assert all(text.isprintable() for text in found[1:])

    def lock() -> None:
        run_lock.read(folder)
        run_lock.is_alive(folder)
        run_lock.refuse_if_taken(folder, at_once=True)

    def step(content: bytes) -> None:
        name = content.decode("utf-8", "replace").replace("/", "_")[:60]
        with contextlib.suppress(OSError, ValueError):
            (folder / FOLDER / name).mkdir()
            found = saved_steps(folder)
            (folder / FOLDER / name).rmdir()
            assert found in ([], [int(name)] if name.isdecimal() else [])

    def digests(content: bytes) -> None:
        # Whatever it raises makes the checkpoint a damaged one.
        with contextlib.suppress(Exception):
            from_json(opened(json.loads(content)))

    owner = {"host": "h", "pid": 3, "started": "5", "since": 1.5}
    sums = sealed([["params/x", "float32", [2, 3], [[0, 2], [0, 3]], "ab12"]])
    return {
        "JSON lines": (_json(line) + b"\n" + _json(line) + b"\n", lines),
        "lock": (_json(owner), _written(folder / run_lock.FILE, lock)),
        "names of steps": (b"20", step),
        "digests": (_json(sums), digests),
    }


def tokenizers_of(folder: pathlib.Path) -> Readers:
    """Tokenizers' files, of fmjax and of Hugging Face, each beside good others."""
    found: Readers = {}

    def fuzzed(kind: str, files: dict[str, bytes], *names: str) -> None:
        place = folder / kind
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
        for name in names or files:
            found[f"{kind}: {name}"] = files[name], _restored(place / name, place)

    for tokenizer in (
        CharacterTokenizer("\nabcß", ends=True, names=("[MASK]",)),
        ByteTokenizer(("[MASK]",)),
    ):
        place = folder / f"saved {tokenizer.kind}"
        tokenizer.save(place)
        for file in list(place.iterdir()):
            found[f"{place.name}: {file.name}"] = (
                file.read_bytes(),
                _restored(file, place),
            )

    bpe = _byte_level()
    vocabulary = json.loads(bpe.to_str())["model"]
    pieces = vocabulary["vocab"]
    merges = [" ".join(merge) for merge in vocabulary["merges"]]
    end = {"content": "<|endoftext|>", "special": True}
    told = {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False,
        "added_tokens_decoder": {str(len(pieces)): end}, "eos_token": end,
        "additional_special_tokens": ["<|endoftext|>"], "pad_token": None,
    }  # fmt: skip
    added = {"<|endoftext|>": len(pieces)}
    named = {"bos_token": "<|endoftext|>", "unk_token": end}
    fuzzed(
        "GPT-2",
        {
            "vocab.json": _json(pieces),
            "merges.txt": "\n".join(["#version: 0.2", *merges]).encode(),
            "tokenizer_config.json": _json(told),
            "added_tokens.json": _json(added),
            "special_tokens_map.json": _json(named),
            "config.json": _json({"model_type": "gpt2", "pad_token_id": 3}),
        },
    )
    bpe.add_special_tokens(["<|endoftext|>"])
    files = {
        "tokenizer.json": bpe.to_str().encode(),
        "tokenizer_config.json": _json(told),
    }
    fuzzed("one file", files, "tokenizer.json")
    saved = HuggingFaceTokenizer(files)
    saved.save(folder / "saved again")
    for file in list((folder / "saved again").iterdir()):
        found[f"saved again: {file.name}"] = (
            file.read_bytes(),
            _restored(file, file.parent),
        )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "a"]
    told = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    files = {"vocab.txt": "\n".join(words).encode()}
    fuzzed("BERT", files | {"tokenizer_config.json": _json(told)})
    told = {"tokenizer_class": "T5Tokenizer", "extra_ids": 3}
    files = {"spiece.model": _sentencepiece(), "tokenizer_config.json": _json(told)}
    fuzzed("T5", files)
    return found


def images(folder: pathlib.Path) -> Readers:
    """What tells of images."""
    options = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
        "resample": 3, "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.5],
        "image_std": [0.5, 0.5, 0.5], "do_resize": True,
    }  # fmt: skip

    def preprocessing() -> None:
        assert preprocessor_file.read(folder).normalize is not None

    place = folder / "pictures"
    place.mkdir()
    (place / "a.png").write_bytes(b"a picture")
    (folder / "outside.png").write_bytes(b"another's picture")
    captions = [{"image": "a.png", "caption": text} for text in ("a cat", "a hat")]

    def listed() -> None:
        found = ImageFolder(
            str(place), str(folder / "captions.jsonl"), validation_fraction=0.0
        )
        for image in found.images("train"):
            assert image.image in (b"", b"a picture")

    return {
        "preprocessor_config.json": (
            _json(options),
            _written(folder / preprocessor_file.FILE, preprocessing),
        ),
        "captions.jsonl": (
            b"\n".join(map(_json, captions)),
            _written(folder / "captions.jsonl", listed),
        ),
    }


def records(folder: pathlib.Path) -> Readers:
    """Files of records in every format."""
    rows = [{"id": i, "of": {"caption": text}} for i, text in enumerate(TEXTS)]
    table = pa.Table.from_pylist(rows)
    lines = b"\n".join(map(_json, rows))
    contents = {
        "records.jsonl": lines,
        "records.json": _json({"data": rows}),
        "records.csv": b'id,of.caption\n1,"a ""cat""\nand"\n2,b\n',
        "records.jsonl.gz": gzip.compress(lines),
        "records.jsonl.bz2": bz2.compress(lines),
        "records.jsonl.xz": lzma.compress(lines),
        "records.jsonl.zst": pa.compress(lines, "zstd", asbytes=True),
        "records.parquet": _stored(lambda out: pq.write_table(table, out)),
        "records_stream.arrow": _stored(
            lambda out: _write_arrow(pa.ipc.new_stream, out, table)
        ),
        "records_file.arrow": _stored(
            lambda out: _write_arrow(pa.ipc.new_file, out, table)
        ),
        "records.tar": _stored(lambda out: _write_tar(out, rows)),
        "records.tar.gz": gzip.compress(_stored(lambda out: _write_tar(out, rows))),
        "records.tfrecord": _tfrecords(folder, rows),
        "records.array_record": _array_records(folder, rows),
    }

    def reads(name: str) -> Reader:
        source = RecordFiles(
            str(folder / name), "{id}: {of.caption}", validation_fraction=0.0
        )

        def read() -> None:
            source.fingerprint("train")
            for _, text, fault in source.records("train"):
                assert isinstance(text, bytes)
                assert not (text and fault)
            assert source.size("train") >= 0

        return _written(folder / name, read)

    return {name: (content, reads(name)) for name, content in contents.items()}


def token_streams(folder: pathlib.Path) -> Readers:
    """Ids of Megatron, and of llm.c."""
    place = folder / "streams"
    place.mkdir()
    ids = np.arange(200, dtype="<u2")
    (place / "megatron.bin").write_bytes(ids.tobytes())
    lengths = np.full(10, 20, "<i4")
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 10, 11) + lengths.tobytes()
    index += np.arange(0, 400, 40, dtype="<i8").tobytes()
    index += np.arange(11, dtype="<i8").tobytes()
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 200

    def reads(name: str) -> Reader:
        source = TokenFiles(str(place / f"{name}.bin"), 7, validation_fraction=0.0)

        def read() -> None:
            source.fingerprint("train")
            division = source.division("train")
            for part in division.parts(100):
                for example in division.read(part):
                    assert len(example.tokens.ids)

        return read

    return {
        "megatron.idx": (index, _written(place / "megatron.idx", reads("megatron"))),
        "llm.c": (
            header.tobytes() + ids.tobytes(),
            _written(place / "llm.bin", reads("llm")),
        ),
    }


def _stored(write: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def _write_arrow(make, out: io.BytesIO, table: pa.Table) -> None:
    with make(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def _write_tar(out: io.BytesIO, rows) -> None:
    with tarfile.open(fileobj=out, mode="w") as archive:
        for row in rows:
            for ending, value in (("id", row["id"]), ("of.caption", row["of"])):
                content = _json(value)
                member = tarfile.TarInfo(f"{row['id']}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _examples(rows) -> Iterator[bytes]:
    import_seqio()
    from tensorflow import train

    for row in rows:
        number = train.Feature(int64_list=train.Int64List(value=[row["id"]]))
        caption = row["of"]["caption"].encode()
        text = train.Feature(bytes_list=train.BytesList(value=[caption]))
        features = train.Features(feature={"id": number, "of.caption": text})
        yield train.Example(features=features).SerializeToString()


def _tfrecords(folder: pathlib.Path, rows) -> bytes:
    import_seqio()
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(folder / "written")) as writer:
        for example in _examples(rows):
            writer.write(example)
    return (folder / "written").read_bytes()


def _array_records(folder: pathlib.Path, rows) -> bytes:
    writer = ArrayRecordWriter(str(folder / "written"), "group_size:1")
    for example in _examples(rows):
        writer.write(example)
    writer.close()
    return (folder / "written").read_bytes()


def _json(value) -> bytes:
    return json.dumps(value).encode()


def _written(file: pathlib.Path, read: Callable[[], object]) -> Reader:
    """Reads what is written into a file."""

    def reader(content: bytes) -> None:
        file.write_bytes(content)
        read()

    return reader


def _restored(file: pathlib.Path, folder: pathlib.Path) -> Reader:
    """Reads a tokenizer, and puts the file back: others of its folder are next."""
    good = file.read_bytes()

    def reader(content: bytes) -> None:
        file.write_bytes(content)
        try:
            tokenizer = SavedTokenizer(str(folder)).build(None, None)
            # What was taken for a tokenizer is of use as one, or says why not.
            with contextlib.suppress(UserError):
                tokenizer.decode(tokenizer.encode("a cat, a hat"))
                assert len(tokenizer.token_bytes()) == tokenizer.vocab_size
        finally:
            file.write_bytes(good)

    return reader


def _byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _sentencepiece() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    return model.getvalue()

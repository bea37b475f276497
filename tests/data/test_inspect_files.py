"""`fmjax data inspect` on files alone: what it finds, and that its gin trains."""

import bz2
import gzip
import io
import json
import lzma
import re
import tracemalloc
import unicodedata

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from rich.console import Console

from fmjax.cli.main import main
from fmjax.config.load import load_data, load_experiment
from fmjax.data.inspect import sampling
from fmjax.data.inspect.fields import Fields
from fmjax.data.inspect.file_kinds import find_kind
from fmjax.data.inspect.file_report import inspect_files
from fmjax.data.inspect.text_measures import TextMeasures, script_shares
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.data.tokenizers.vocabularies import train_sentencepiece
from fmjax.errors import UserError
from tests.data.test_example_records import example, write
from tests.image_files import encoded, picture, write_classes

RNG = np.random.default_rng(0)
WORDS = ["Haus", "Baum", "and", "so", "weiter", "größer", "tree", "river", "why", "not"]
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(3, 40))) + f" {i}" for i in range(300)]
RECORDS = [
    {"id": i, "title": f"t{i % 7}", "text": text, "meta": {"score": i / 2, "ok": True}}
    for i, text in enumerate(TEXTS)
]


def json_lines(folder, name="a.jsonl"):
    content = "\n".join(map(json.dumps, RECORDS)).encode()
    pack = {
        ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
        ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    }.get(folder.joinpath(name).suffix, bytes)  # fmt: skip
    (folder / name).write_bytes(pack(content))
    return folder / name


def tar(folder, name="a.tar"):
    with webdataset.TarWriter(str(folder / name)) as writer:
        for record in RECORDS:
            writer.write({
                "__key__": f"{record['id']:05}", "txt": record["text"],
                "json": {"title": record["title"], "id": record["id"]},
            })  # fmt: skip
    return folder / name


def tsv(folder):
    frame = pd.DataFrame(RECORDS).drop(columns="meta")
    frame.to_csv(folder / "a.tsv", index=False, sep="\t")
    return folder / "a.tsv"


def examples(folder, name):
    made = (example(text=r["text"], title=r["title"], id=r["id"]) for r in RECORDS)
    write(folder / name, made)
    return folder / name


def parquet(folder):
    table = pa.Table.from_pylist(RECORDS)
    pq.write_table(table, folder / "a.parquet", row_group_size=50)
    return folder / "a.parquet"


def arrow(folder):
    table = pa.Table.from_pylist(RECORDS)
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=20)
    return folder / "a.arrow"


def csv(folder):
    frame = pd.DataFrame(RECORDS).drop(columns="meta")
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def csv_without_names(folder):
    frame = pd.DataFrame(RECORDS).drop(columns="meta")
    frame.to_csv(folder / "a.csv", index=False, header=False, sep=";")
    return folder / "a.csv"


def json_list(folder):
    (folder / "a.json").write_text(json.dumps({"version": 1, "data": RECORDS}))
    return folder / "a.json"


def text(folder):
    (folder / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder / "a.txt"


def folder_of_shards(folder):
    for number in range(3):
        (folder / str(number)).mkdir()
        json_lines(folder / str(number), "a.jsonl.gz")
    (folder / "README.md").write_text("# Some shards")
    return folder


def pairs(folder):
    for split, texts in (("train", TEXTS), ("val", TEXTS[:20])):
        (folder / f"{split}.en").write_text("\n".join(texts) + "\n")
        (folder / f"{split}.de").write_text("\n".join(texts).upper() + "\n")
    return folder


def questions(folder):
    records = [{"question": t, "answer": t[::-1], "n": 1} for t in TEXTS]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder / "a.jsonl"


KINDS = {
    "jsonl": json_lines,
    "jsonl.gz": lambda folder: json_lines(folder, "a.jsonl.gz"),
    "parquet": parquet,
    "arrow": arrow,
    "csv": csv,
    "csv without names": csv_without_names,
    "json": json_list,
    "tar": tar,
    "tsv": tsv,
    "jsonl.zst": lambda folder: json_lines(folder, "a.jsonl.zst"),
    "text": text,
    "folder": folder_of_shards,
    "pairs": pairs,
    "questions": questions,
}
# More of the same, which take longer.
SLOW_KINDS = {
    "jsonl.bz2": lambda folder: json_lines(folder, "a.jsonl.bz2"),
    "jsonl.xz": lambda folder: json_lines(folder, "a.jsonl.xz"),
    "tar.gz": lambda folder: tar(folder, "a.tar.gz"),
    "tfrecord": lambda folder: examples(folder, "a.tfrecord"),
    "array_record": lambda folder: examples(folder, "a.array_record"),
}


def folder_of(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW_KINDS)]
)
def test_the_gin_that_is_printed_gives_batches(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    make = (KINDS | SLOW_KINDS)[kind]
    report = inspect_files(str(make(folder_of(tmp_path))))
    assert report.total == (3 * 300 if kind == "folder" else 300)
    assert report.text.tokens_per_byte == 1
    assert report.vocabulary.startswith("bytes, since 0.")
    assert "the gin trains" not in report.vocabulary
    config = tmp_path / "mine.gin"
    config.write_text(report.gin + "\n")
    data = load_data(str(config), ["data.length=64", "text_task.tokenizer=@bytes()"])
    data.prepare()
    batches = data.train_batches(4, range(4), 0)
    decoded = ByteTokenizer().decode(next(batches)["targets"].ravel())
    batches.close()
    assert any(word in decoded for word in WORDS)
    assert load_experiment(str(config)).data == load_data(str(config))


def test_conversations_are_suggested_a_chat(tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    talks = [
        [
            {"role": "user", "content": f"{n}?"},
            {"role": "assistant", "content": f"{n}!"},
        ]
        for n in range(40)
    ]
    lines = (json.dumps({"id": n, "messages": talk}) for n, talk in enumerate(talks))
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    config = tmp_path / "mine.gin"
    config.write_text(inspect_files(str(tmp_path / "talks.jsonl")).gin)
    data = load_data(str(config), ["data.length=64", "text_task.tokenizer=@bytes()"])
    data.prepare()
    (batch, *_) = data.eval_batches(1, range(1))
    said = ByteTokenizer().decode(batch["targets"][batch["weights"] > 0])
    assert re.fullmatch(r"(\d+!)+", said)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "arrow", "json"])
def test_records_and_their_fields_are_counted(tmp_path, kind):
    report = inspect_files(str(KINDS[kind](folder_of(tmp_path))))
    assert (report.total, report.total_is_exact, report.read) == (300, True, 300)
    found = {field.name: field for field in report.fields}
    assert list(found) == ["id", "title", "text", "meta.score", "meta.ok"]
    types = [next(iter(field.types)) for field in report.fields]
    assert types == ["integer", "string", "string", "number", "boolean"]
    assert found["title"].distinct == 7
    assert found["text"].distinct == 300
    assert found["text"].mean_length == np.mean([len(t) for t in TEXTS])
    assert report.text_fields == ("text",)
    assert report.text.texts == 300
    assert report.text.bytes == sum(len(t.encode()) for t in TEXTS)
    words = [len(t.split()) for t in TEXTS]
    assert report.text.words.mean == np.mean(words)
    assert report.text.words.quantiles[0] == min(words)
    assert report.text.words.quantiles[2] == pytest.approx(np.median(words), abs=1)
    assert report.text.words.quantiles[4] == max(words)


def test_missing_values_and_other_types_are_told(tmp_path):
    lines = [*map(json.dumps, RECORDS), '{"text": null}', '{"text": 3}', "no JSON"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    report = inspect_files(str(tmp_path / "a.jsonl"))
    found = {field.name: field for field in report.fields}
    assert found["text"].types == {"string": 300, "null": 1, "integer": 1}
    assert found["id"].missing == 2
    assert report.corrupt == 1
    assert report.corrupt_names[0].startswith("a.jsonl, line 303 is not JSON")


def test_a_csv_file_without_a_line_of_names_is_recognized(tmp_path):
    report = inspect_files(str(csv_without_names(tmp_path)))
    assert report.total == 300
    assert [f.name for f in report.fields] == ["column1", "column2", "column3"]
    assert "no line of names" in report.remark
    assert "record_files.separator = ';'" in report.gin


def test_json_lines_in_a_text_file_are_recognized(tmp_path):
    report = inspect_files(str(json_lines(tmp_path, "a.txt")))
    assert report.format == "JSON lines"
    assert report.total == 300
    assert "holds JSON lines, though its name does not say so" in report.remark
    (tmp_path / "mine.gin").write_text(report.gin)
    data = load_data(str(tmp_path / "mine.gin"), ["data.length=64"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
        data.prepare()
    assert data.train_rows() > 20


def test_a_shard_at_the_end_of_a_name_is_none_of_its_suffix(tmp_path):
    shard = "-00000-of-00001"
    kinds = ("jsonl", "jsonl.gz", "parquet", "csv without names")
    for number, (kind, text) in enumerate(
        zip(kinds, ("JSON lines", "JSON lines, gzip", "Parquet", "CSV"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = KINDS[kind](folder)
        file.rename(folder / f"{file.name}{shard}")
        report = inspect_files(str(folder))
        assert (report.format, report.total) == (text, 300)
        assert ("column1" in report.gin) == (kind == "csv without names")
    large = tmp_path / f"large.jsonl.gz{shard}"
    rng = np.random.default_rng(1)
    lines = [json.dumps({"text": rng.bytes(100).hex()}) for _ in range(20_000)]
    large.write_bytes(gzip.compress("\n".join(lines).encode()))
    report = inspect_files(str(large), ByteTokenizer(), max_records=2000)
    assert report.total == pytest.approx(20_000, rel=0.1)


def test_large_files_are_sampled_and_their_number_is_estimated(tmp_path):
    reports = {}
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt"):
        with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wt") as out:
            for i in range(20_000):
                text = f"{RNG.integers(10**18)} {TEXTS[i % 300]} {RNG.bytes(40).hex()}"
                out.write(
                    (text if "txt" in name else json.dumps({"text": text})) + "\n"
                )
        # Without a tokenizer a vocabulary of the texts is made, here of one of them.
        tokenizer = None if name == "c.txt" else ByteTokenizer()
        report = inspect_files(str(tmp_path / name), tokenizer, max_records=2000)
        reports[name] = report
        assert not report.total_is_exact
        assert report.total == pytest.approx(20_000, rel=0.1)
        assert report.read == pytest.approx(2000, rel=0.2)
    # Text of all places, not of the beginning alone.
    (field,) = reports["a.jsonl"].fields
    assert field.distinct == reports["a.jsonl"].read


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
def test_few_large_records_are_kept(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sampling, "_KEPT_BYTES", 1 << 20, raising=False)
    rng = np.random.default_rng(1)
    records = [{"text": rng.bytes(5_000).hex()} for _ in range(1000)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(records), tmp_path / name)
    else:
        is_text = name == "a.txt"
        lines = [r["text"] if is_text else json.dumps(r) for r in records]
        content = "\n".join(lines).encode()
        content = gzip.compress(content, 1) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(content)
    report = inspect_files(str(tmp_path / name), ByteTokenizer())
    # A megabyte, and a record of each of up to 128 places.
    assert 100 <= report.read < 240
    assert report.total == pytest.approx(1000, rel=0.15)
    assert report.total_is_exact == (name == "a.parquet")


def test_large_pairs_are_kept_from_all_places(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "_KEPT_BYTES", 1 << 20, raising=False)
    rng = np.random.default_rng(1)
    lines = [f"{n} {rng.bytes(2_500).hex()}\n" for n in range(1000)]
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text("".join(lines))
    sample = sampling.sample_pairs(
        [tmp_path / "train.en", tmp_path / "train.de"], 20_000
    )
    numbers = [int(record["inputs"].split()[0]) for record in sample.records]
    assert sample.total == 1000
    assert numbers == [*range(0, 1000, 16)]


def test_values_are_counted_in_little_memory():
    fields, rng = Fields(), np.random.default_rng(1)
    tracemalloc.start()
    try:
        for n in range(300):
            value = rng.bytes(50_000)
            fields.add({"text": value.hex(), "bytes": b"\xff" + value, "n": n // 3})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 << 20
    fields.add({"text": "a", "bytes": b"\xff", "n": 1})
    fields.add({"text": b"a", "bytes": b"\xff", "n": 1})
    assert [field.distinct for field in fields.reports()] == [301, 301, 100]


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name in ("a.jsonl", "b.unknown"):
        (tmp_path / name).symlink_to("nowhere")
        with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
            inspect_files(str(tmp_path / f"{name[0]}*"))
        (tmp_path / name).unlink()


def test_images_in_folders_are_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    folder = folder_of(tmp_path)
    write_classes(folder, {"cat": 12, "dog": 9})
    (folder / "cat" / "torn.png").write_bytes(b"\x89PNG\r\n")
    report = inspect_files(str(folder))
    assert report.images.classes == {"cat": 13, "dog": 9}
    assert report.total == 22
    assert report.images.broken[0].startswith("torn.png")
    with Image.open(folder / "cat" / "0.png") as image:
        assert report.images.shorter_sides[1] == min(image.size)
    config = tmp_path / "mine.gin"
    config.write_text(report.gin)
    data = load_data(str(config), ["images.max_corrupt_fraction=0.5"])
    data.prepare()
    batches = data.train_batches(4, range(4), 0)
    assert next(batches)["images"].shape == (4, 32, 32, 3)
    batches.close()


def test_images_without_classes_are_suggested_a_model_without_labels(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    folder = folder_of(tmp_path)
    for i in range(12):
        pixels = RNG.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    report = inspect_files(str(folder))
    assert report.images.classes == {}
    (tmp_path / "mine.gin").write_text(report.gin)
    experiment = load_experiment(str(tmp_path / "mine.gin"))
    experiment.data.prepare()
    assert experiment.data.row_shapes()["images"] == (32, 32, 3)
    assert type(experiment.objective).__name__ == "MaskedAutoencoding"


@pytest.mark.parametrize("label", ["label", None])
def test_images_in_records_are_suggested_a_model(tmp_path, monkeypatch, label):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    names = {label: [i % 3 for i in range(30)]} if label else {}
    images = [{"bytes": encoded(picture(i)), "path": f"{i}.png"} for i in range(30)]
    pq.write_table(pa.table({"image": images, **names}), tmp_path / "a.parquet")
    report = inspect_files(str(tmp_path / "a.parquet"))
    assert {f.name: next(iter(f.types)) for f in report.fields}[
        "image.bytes"
    ] == "image"
    (tmp_path / "mine.gin").write_text(report.gin)
    experiment = load_experiment(str(tmp_path / "mine.gin"))
    experiment.data.prepare()
    assert len(experiment.data.class_names()) == (3 if label else 0)
    assert experiment.data.row_shapes()["images"] == (32, 32, 3)


def test_a_label_is_told(tmp_path):
    records = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    report = inspect_files(str(tmp_path / "a.jsonl"))
    assert "'label' has 2 different values" in report.remark
    assert report.text_fields == ("text",)


def test_scripts_are_those_of_unicode():
    text = "abc ärger мир 字漢 ひらカタ नमस्ते 123, ! 😀"
    shares = script_shares({c: text.count(c) for c in set(text)})
    # The names of characters begin with that of their script, for these.
    prefixes = {
        "Latin": "LATIN", "Cyrillic": "CYRILLIC", "Han": "CJK", "Hiragana": "HIRAGANA",
        "Katakana": "KATAKANA", "Devanagari": "DEVANAGARI",
    }  # fmt: skip
    counts = {
        script: sum(unicodedata.name(c, "").startswith(prefix) for c in text)
        for script, prefix in prefixes.items()
    }
    total = sum(counts.values())
    assert shares == pytest.approx({s: n / total for s, n in counts.items()})


def test_damage_of_texts_is_counted():
    measures = TextMeasures()
    texts = [
        "fine", "fine", "  ", "caf\u00e9".encode().decode("latin-1"), "a\x00b",
        "\ufffd", "it\u2019s".encode().decode("cp1252"), "tab\tand\nline",
    ]  # fmt: skip
    for each in texts:
        measures.add(each)
    measures.add("ä".encode("latin-1"))
    report = measures.report()
    assert (report.texts, report.blank, report.not_utf8) == (7, 1, 1)
    assert report.repeated == 1
    assert report.mojibake == 2
    assert report.mojibake_example == "cafÃ©"
    assert report.control_characters == 1
    assert report.replacement_characters == 1


def test_tokens_are_counted_with_a_tokenizer(tmp_path, capsys):
    file = text(tmp_path)
    tokenizer = train_sentencepiece(str(file), 330, str(tmp_path / "a.model"))
    assert main(["data", "inspect", str(file), "--json", "--tokenizer",
                 str(tmp_path / "a.model")]) == 0  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    counts = [len(tokenizer.encode(t)) for t in TEXTS]
    size = sum(len(t.encode()) for t in TEXTS)
    assert report["text"]["tokens_per_byte"] == pytest.approx(sum(counts) / size)
    assert report["text"]["tokens"]["mean"] == pytest.approx(np.mean(counts))


@pytest.mark.slow
def test_without_a_tokenizer_tokens_are_those_of_a_vocabulary_of_the_texts(tmp_path):
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, n, np.uint8)).decode() for n in range(2, 9)]
    words = [a + b for a in words for b in words] + [
        bytes(rng.integers(97, 123, rng.integers(3, 9), np.uint8)).decode()
        for _ in range(8_000)
    ]
    texts = [" ".join(rng.choice(words, 60)) for _ in range(6_000)]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": each}) for each in texts)
    )
    report = inspect_files(str(tmp_path / "a.jsonl"))
    assert report.vocabulary.startswith("SentencePiece of 8,192 pieces")
    (tmp_path / "half.txt").write_text("\n".join(texts[::2]))
    made = train_sentencepiece(
        str(tmp_path / "half.txt"), 8192, str(tmp_path / "m"), training_bytes=2_000_000
    )
    found = sum(len(made.encode(each)) for each in texts[1::2])
    size = sum(len(each.encode()) for each in texts[1::2])
    assert report.text.tokens_per_byte == pytest.approx(found / size, rel=0.01)
    assert 0.15 < report.text.tokens_per_byte < 0.6


def test_a_single_text_is_counted_in_bytes_and_the_report_says_what_is_trained(
    tmp_path,
):
    text = " ".join(RNG.choice(WORDS, 400_000))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    report = inspect_files(str(tmp_path / "a.jsonl"))
    assert report.vocabulary.startswith("bytes, since there are too few texts")
    assert report.vocabulary.endswith("; the gin trains 8,192 pieces on all texts")
    assert "@bytes()" not in report.gin


def test_the_report_is_printed_as_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    report = inspect_files(str(questions(tmp_path)))
    console = Console(record=True, width=120, file=io.StringIO())
    report.render(console)
    shown = console.export_text()
    assert "JSON lines: 1 file" in shown
    assert "300 records" in shown
    assert "record_pairs.inputs = 'question'" in shown
    assert "Latin 100.0%" in shown
    assert main(["data", "inspect", str(tmp_path / "a.jsonl")]) == 0
    assert "question and answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl*"], "matches no file"),
        (["a.bin"], "of no kind that is known"),
        (["s3://bucket/a.jsonl"], "expected a path of a mounted file system"),
        (["torn.parquet"], "is truncated"),
        (["a.jsonl", "data.length=3"], "takes no bindings"),
        (["a.jsonl", "--records", "0"], "expected at least 1"),
        (["a.jsonl", "--tokenizer", "nowhere"], "has no tokenizer"),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    json_lines(tmp_path)
    content = parquet(tmp_path).read_bytes()
    (tmp_path / "torn.parquet").write_bytes(content[:-20])
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 20)
    assert main(["data", "inspect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_of_several_kinds_the_one_of_most_bytes_is_taken(tmp_path):
    json_lines(tmp_path)
    (tmp_path / "note.txt").write_text("a note")
    found = find_kind(str(tmp_path))
    assert (found.kind, found.others) == ("records", {".txt": 1})
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.bin").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="of no kind that is known"):
        find_kind(str(tmp_path / "x"))

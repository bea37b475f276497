"""The source `record_files`: its files, splits and digests, and caches made from it."""

import gzip
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmjax.cli import main as cli
from fmjax.config.load import load_data
from fmjax.data.sources import source as sources
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_formats import formats
from fmjax.data.sources.split_names import files_by_split
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError


def write(file, texts, **others):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, **others} for text in texts]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def texts(source, split):
    return [text.decode() for _, text in source.documents(split)]


def numbered(word, count):
    return [f"{word} {i}" for i in range(count)]


def test_folders_globs_and_lists_are_read_in_the_order_of_names(tmp_path):
    corpus = tmp_path / "corpus"
    write(corpus / "b.jsonl.gz", ["b"])
    write(corpus / "deep" / "er" / "c.parquet", ["c"])
    write(corpus / "a.JSONL", ["a"])
    (corpus / "notes.txt").write_text("not a record")
    (corpus / ".hidden.jsonl").write_text("no JSON")
    for files, expected in [
        (str(corpus), ["a", "b", "c"]),
        (str(corpus / "**" / "*.parquet"), ["c"]),
        (str(corpus / "*.jsonl"), ["a"]),
        ((str(corpus / "deep"), str(corpus / "a.JSONL")), ["a", "c"]),
    ]:
        source = RecordFiles(files, validation_fraction=0.0)
        assert texts(source, "train") == expected
    with pytest.raises(UserError, match=r"notes\.txt is of no known format of records"):
        RecordFiles(str(corpus / "**")).fingerprint("train")
    with pytest.raises(UserError, match=r"1 of \.gz.*A folder stands for its \.jsonl"):
        RecordFiles(str(corpus / "*.csv")).fingerprint("train")
    (corpus / "c.parquet.gz").write_bytes(b"")
    with pytest.raises(UserError, match="compressed as a whole; expected"):
        RecordFiles(str(corpus / "c.parquet.gz")).fingerprint("train")


def test_shards_may_be_compressed(tmp_path):
    for number, text in enumerate(("a", "b")):
        write(tmp_path / f"{number}.jsonl.gz", [text])
        shard = tmp_path / f"x.jsonl.gz-0000{number}-of-00002"
        (tmp_path / f"{number}.jsonl.gz").rename(shard)
    source = RecordFiles(str(tmp_path), validation_fraction=0.0)
    assert texts(source, "train") == ["a", "b"]
    parts = source.division("train").parts(4)
    assert [(part.start, part.stop) for part in parts] == [(0, None)] * 2


def test_equal_texts_are_held_out_together_and_none_is_lost(tmp_path):
    every = numbered("text", 500)
    write(tmp_path / "a.jsonl", every)
    write(tmp_path / "b.parquet", every[::-1])
    source = RecordFiles(str(tmp_path), validation_fraction=0.2)
    train, held_out = texts(source, "train"), texts(source, "validation")
    assert sorted(train + held_out) == sorted(every + every)
    assert not {*train} & {*held_out}
    # Three standard deviations of 500 independent draws.
    assert abs(len({*held_out}) / 500 - 0.2) < 3 * np.sqrt(0.2 * 0.8 / 500)
    other = RecordFiles(str(tmp_path), validation_fraction=0.2, split_seed=1)
    assert {*texts(other, "validation")} != {*held_out}
    assert list(source.records("train")) == list(source.records("train"))


def test_names_of_the_hub_tell_the_splits(tmp_path, capsys):
    hub = tmp_path / "train_of_thought" / "data"
    write(hub / "train-00000-of-00002.parquet", ["t0"])
    write(hub / "train-00001-of-00002.parquet", ["t1"])
    write(hub / "validation-00000-of-00001.parquet", ["v0"])
    write(hub / "test-00000-of-00001.parquet", ["e0"])
    source = RecordFiles(str(tmp_path))
    assert texts(source, "train") == ["t0", "t1"]
    assert texts(source, "validation") == ["v0"]
    assert (
        "1 of 4 files are of the test split by their names" in capsys.readouterr().err
    )
    # Bindings take precedence.
    tests = RecordFiles(str(tmp_path), validation_files=str(hub / "test-*.parquet"))
    assert texts(tests, "train") == ["t0", "t1"]
    assert texts(tests, "validation") == ["e0"]
    half = RecordFiles(str(tmp_path), validation_fraction=0.5)
    assert sorted(texts(half, "train") + texts(half, "validation")) == ["t0", "t1"]
    hashed = RecordFiles(str(tmp_path), split="hash")
    both = texts(hashed, "train") + texts(hashed, "validation")
    assert sorted(both) == ["e0", "t0", "t1", "v0"]
    write(hub / "more.parquet", ["m"])
    with pytest.raises(UserError, match=r"more\.parquet tells no split.*split='hash'"):
        texts(source, "train")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.jsonl", "dev.jsonl"], {"train": 1, "validation": 1}),
        (["en/train/0000.parquet", "en/test/0000.parquet"], {"train": 1, "test": 1}),
        (["x.train.csv", "x_valid.csv", "x test.csv"],
         {"train": 1, "validation": 1, "test": 1}),
        (["training/a.csv", "evaluation/a.csv"], {"train": 1, "test": 1}),
        (["train-0.csv", "train-1.csv"], None),
        (["test.csv", "validation.csv"], None),
        (["retrain.csv", "testament.csv", "devices.csv"], None),
    ],
)  # fmt: skip
def test_words_that_tell_a_split(tmp_path, names, expected):
    found = files_by_split(
        [tmp_path / "set" / name for name in names], "files", "record_files"
    )
    if found is not None:
        found = {split: len(files) for split, files in found.items() if files}
    assert found == expected


def test_folders_that_datasets_saves_are_read(tmp_path):
    splits = {
        split: datasets.Dataset.from_dict({"text": numbered(split, count)})
        for split, count in (("train", 40), ("test", 2))
    }
    shards = {"train": 3, "test": 1}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all", num_shards=shards)
    assert list((tmp_path / "all").rglob("state.json"))
    source = RecordFiles(str(tmp_path / "all"))
    both = texts(source, "train") + texts(source, "validation")
    assert sorted(both) == sorted(numbered("train", 40))
    test = RecordFiles(str(tmp_path / "all/test"), validation_fraction=0.0)
    assert texts(test, "train") == ["test 0", "test 1"]
    tree = tmp_path / "tree/data"
    tree.mkdir(parents=True)
    for split, saved in splits.items():
        saved.to_parquet(tree / f"{split}-00000-of-00001.parquet")
    tree_source = RecordFiles(str(tmp_path / "tree"))
    assert texts(tree_source, "validation") == texts(source, "validation")


def test_separate_validation_files_are_not_trained_on(tmp_path, capsys):
    write(tmp_path / "a.jsonl", ["a"])
    write(tmp_path / "b.jsonl", ["b"])
    source = RecordFiles(str(tmp_path), validation_files=str(tmp_path / "b.jsonl"))
    assert texts(source, "train") == ["a"]
    assert texts(source, "validation") == ["b"]
    assert "1 of the 2 files of record_files.files" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing to train on"):
        texts(RecordFiles(str(tmp_path), validation_files=str(tmp_path)), "train")


def test_a_file_of_other_columns_is_refused_by_name(tmp_path):
    write(tmp_path / "a.parquet", ["a"])
    pq.write_table(pa.table({"content": ["b"]}), tmp_path / "b.parquet")
    source = RecordFiles(str(tmp_path))
    match = r"a\.parquet has it, but .*b\.parquet has no field 'text'; it has 'content'"
    with pytest.raises(UserError, match=match):
        source.fingerprint("train")


def test_digests_follow_contents_and_settings_and_not_places(tmp_path):
    for folder, texts_ in (("a", ["x", "y"]), ("b", ["x", "y"]), ("c", ["x", "z"])):
        write(tmp_path / folder / "r.jsonl", texts_)
    cases = [("a", {}), ("b", {}), ("c", {}), ("a", {"text": "{text}"})]
    cases += [("a", {name: value}) for name, value in [
        ("split_seed", 1), ("quotes", False), ("validation_fraction", 0.0),
    ]]  # fmt: skip
    prints = [
        RecordFiles(str(tmp_path / folder), **options).fingerprint("train")
        for folder, options in cases
    ]
    assert prints[0] == prints[1]
    assert len({*prints}) == len(prints) - 1


def test_sizes_are_near_the_bytes_of_text(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_SAMPLE_BYTES", 1 << 18)
    rng = np.random.default_rng(0)
    every = ["".join(map(chr, rng.integers(97, 110, 1000))) for _ in range(2000)]
    total = sum(map(len, every))
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        write(tmp_path / name, every, other="x" * 400)
        source = RecordFiles(str(tmp_path / name), validation_fraction=0.25)
        for split, share in (("train", 0.75), ("validation", 0.25)):
            assert abs(source.size(split) / (share * total) - 1) < 0.3, name
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_json_lines_given_as_plain_text_are_told_of(tmp_path, capsys, name):
    write(tmp_path / "a.jsonl", numbered("text", 9))
    (tmp_path / "a.jsonl").rename(tmp_path / name)
    source = TextFiles(str(tmp_path / name), "line", validation_fraction=0.0)
    assert texts(source, "train")[0] == '{"text": "text 0"}'
    assert "text_task.source=@record_files() reads" in capsys.readouterr().err


def test_text_is_no_json_lines(tmp_path, capsys):
    (tmp_path / "a.txt").write_text('{"an object": 1}\nand a line\n' * 9)
    source = TextFiles(str(tmp_path / "a.txt"), "line", validation_fraction=0.0)
    assert texts(source, "train")
    assert "objects of JSON" not in capsys.readouterr().err


def test_long_texts_are_several_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_BYTES", 10)
    write(tmp_path / "a.jsonl", ["one\ntwo\nthree\nä" + "字" * 9, "short"])
    source = RecordFiles(str(tmp_path / "a.jsonl"), validation_fraction=0.0)
    parts = texts(source, "train")
    assert "".join(parts[:-1]) == "one\ntwo\nthree\nä" + "字" * 9
    assert max(len(part.encode()) for part in parts) <= 10
    assert parts[-1] == "short"


def data_of(source, folder, **options):
    task = TextTask(source, Bytes(), name="tiny_records")
    return Data(task, cache_dir=str(folder), rows="blocks", length=32, **options)


def test_bad_records_are_counted_when_a_cache_is_built(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    good = [json.dumps({"text": text}) for text in numbered("text", 60)]
    bad = ["no JSON", '{"text": null}', '{"text": ""}']
    file.write_text("\n".join([*good[:30], *bad, *good[30:]]) + "\n")
    data = data_of(RecordFiles(str(file)), tmp_path / "cache")
    data.prepare()
    (train,), (held_out,) = data.caches("train"), data.caches("validation")
    assert train.documents + held_out.documents == 60
    # Nothing is counted twice; of the blank record the hash may choose the split.
    assert train.skipped + held_out.skipped == 3
    first, second, *_ = train.skipped_names
    assert first.startswith("tiny_records train: a.jsonl, line 31 is not JSON: Expect")
    assert second.endswith("line 32 has null as 'text'; expected a string")
    capsys.readouterr()

    file.write_text("\n".join([*good, *bad[:2] * 10]) + "\n")
    data = data_of(RecordFiles(str(file)), tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"20 of \d+ examples of tiny_records train are"
    ):
        data.prepare()


def test_bad_records_are_trained_around_whatever_the_hash_holds_out(tmp_path):
    file = tmp_path / "a.jsonl"
    good = [json.dumps({"text": text}) for text in numbered("text", 60)]
    file.write_text("\n".join([*good, "no JSON", '{"text": null}']) + "\n")
    for seed in range(8):
        source = RecordFiles(str(file), validation_fraction=0.9, split_seed=seed)
        faults = [
            sum(bool(fault) for *_, fault in source.records(split))
            for split in ("train", "validation")
        ]
        assert faults == [2, 0]


def test_streams_leave_out_bad_records_too(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    good = [json.dumps({"text": text}) for text in numbered("text", 60)]
    file.write_text("\n".join(["[]", *good]) + "\n")
    data = data_of(RecordFiles(str(file)), tmp_path / "cache", streaming=True)
    data.prepare()
    batches = data.train_batches(8, range(8), seed=0)
    try:
        for _ in range(8):
            next(batches)
        assert batches.bad_rows >= 1
    finally:
        batches.close()
    assert "line 1 is a list; expected an object" in capsys.readouterr().err


def test_damage_that_appears_while_a_cache_is_built_names_the_file(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    write(file, [f"{i * i} and so on" for i in range(5000)])
    file.write_bytes(file.read_bytes()[:-100])
    data = data_of(RecordFiles(str(file), validation_fraction=0.0), tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"a\.jsonl\.gz is truncated: it ends in the mid"
    ):
        data.prepare()


def test_three_lines_of_gin_are_enough_to_inspect_records(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    for shard in range(3):
        write(tmp_path / "corpus" / str(shard) / "a.jsonl.gz", numbered(shard, 200))
    config = tmp_path / "mine.gin"
    config.write_text(
        "include 'own/records.gin'\n"
        f"RECORDS = '{tmp_path}/corpus/**/*.jsonl.gz'\n"
        "record_files.text = 'text'\n"
    )
    tiny = ["text_task.tokenizer=@bytes()", "data.length=32"]
    assert cli.main(["data", "inspect", str(config), *tiny]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [
        line.split("│") for line in lines if "train " in line or "validation" in line
    ]
    documents = {row[2].strip(): int(row[4]) for row in rows if len(row) > 5}
    assert sum(documents.values()) == 600
    assert 30 < documents["validation"] < 90


def test_the_shipped_config_reads_a_folder(tmp_path):
    write(tmp_path / "a.jsonl", ["a"])
    data = load_data("data/record_files.gin", [f"RECORDS={tmp_path}"])
    assert data.train.source == RecordFiles(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"split": "hashed"}, "Did you mean 'hash'"),
        ({"split_seed": -1}, r"record_files\.split_seed = -1: expected 0 <= seed"),
        (
            {"separator": "ab"},
            r"record_files\.separator = 'ab': expected one character",
        ),
        ({"validation_fraction": 1.0}, "expected 0 <= fraction < 1"),
        ({"validation_fraction": 0.1, "validation_files": "b"}, "at most one of them"),
        ({"text": 3}, r"record_files\.text"),
    ],
)
def test_wrong_settings_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        RecordFiles("a.jsonl", **options)


def test_too_few_records_to_split_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", ["same", "same"])
    with pytest.raises(
        UserError, match=r"validation_fraction = 0\.1 .* 1 distinct doc"
    ):
        RecordFiles(str(tmp_path)).fingerprint("train")
    with pytest.raises(UserError, match="no split 'test'"):
        RecordFiles(str(tmp_path)).fingerprint("test")


@pytest.mark.parametrize("name", ["a.txt", "a.data.gz", "noending"])
def test_a_format_is_what_is_bound_whatever_names_end_in(tmp_path, name):
    content = b"".join(
        json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(40)
    )
    packed = gzip.compress(content) if name.endswith(".gz") else content
    (tmp_path / name).write_bytes(packed)
    (tmp_path / "plain.jsonl").write_bytes(content)
    options = {"text": "text", "validation_fraction": 0.2}
    with pytest.raises(UserError, match="no known format"):
        RecordFiles(str(tmp_path / name), **options).fingerprint("train")
    source = RecordFiles(str(tmp_path / name), format="jsonl", **options)
    other = RecordFiles(str(tmp_path / "plain.jsonl"), **options)
    assert source.fingerprint("train") != other.fingerprint("train")
    for split in ("train", "validation"):
        assert source.size(split) > 0
        texts = [
            [
                example.texts
                for part in each.division(split).parts(100)
                for example in each.division(split).read(part)
            ]
            for each in (source, other)
        ]
        assert texts[0] == texts[1] != []
    with pytest.raises(UserError, match="format = 'jsonlines': expected one of"):
        RecordFiles(str(tmp_path), text="text", format="jsonlines")

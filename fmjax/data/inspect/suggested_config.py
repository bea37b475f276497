"""The gin that would train on files, from what they were found to be."""

import os
from collections.abc import Sequence
from pathlib import Path

from fmjax.data.inspect.default_vocabulary import VOCABULARY_BYTES
from fmjax.data.inspect.fields import FieldReport
from fmjax.data.inspect.file_kinds import FoundFiles
from fmjax.data.inspect.tokens import TokensReport
from fmjax.data.sources.record_formats.csv_records import CsvOptions

# Names that people give to the text of a record, and to the two texts of a pair.
_TEXT_NAMES = ("text", "content", "body", "document", "article", "raw_content", "story")
_PAIR_NAMES = (
    ("inputs", "targets"), ("input", "target"), ("prompt", "completion"),
    ("prompt", "response"), ("question", "answer"), ("instruction", "output"),
    ("instruction", "response"), ("source", "target"), ("src", "tgt"),
    ("translation.en", "translation.de"), ("translation.en", "translation.fr"),
)  # fmt: skip
_LABEL_NAMES = (
    "label", "labels", "cls", "class", "category", "sentiment", "fine_label",
    "coarse_label", "json.label",
)  # fmt: skip
_CHAT_NAMES = ("messages", "conversations", "conversation")


def fields_of_pairs(fields: Sequence[FieldReport]) -> tuple[str, str] | None:
    """The fields of inputs and targets, by their names; None if there are none."""
    texts = {field.name for field in fields if field.is_text}
    return next((pair for pair in _PAIR_NAMES if {*pair} <= texts), None)


def field_of_text(fields: Sequence[FieldReport]) -> str | None:
    """The field that is most likely the text: by its name, or else the longest."""
    texts = {field.name: _weight(field) for field in fields if field.is_text}
    for name in _TEXT_NAMES:
        if name in texts:
            return name
    return max(texts, key=texts.__getitem__, default=None)


def field_of_label(fields: Sequence[FieldReport]) -> FieldReport | None:
    """The field that is a label: by its name, if it has a few different values."""
    known = {field.name: field for field in fields}
    found = [known[name] for name in _LABEL_NAMES if name in known]
    few = (f for f in found if f.distinct is not None and 2 <= f.distinct <= 1000)
    return next(few, None)


def suggested_config(
    pattern: str,
    found: FoundFiles,
    fields: Sequence[FieldReport],
    text_bytes: float,
    *,
    csv: CsvOptions | None = None,
    classes: int = 0,
) -> str:
    """The gin lines of a small run on the files; "" if there is nothing to train on.

    Args:
      pattern: the path, folder or glob that was given.
      found: what the files are.
      fields: those of records.
      text_bytes: bytes of all text, approximately.
      csv: how rows of CSV and TSV files are read; None for others.
      classes: number of classes of images; 0 without sub-folders.
    """
    place = os.path.abspath(os.path.expanduser(pattern))
    if found.kind == "images":
        of_folder = ["include 'data/image_folder.gin'", f"IMAGE_FOLDER = {place!r}"]
        return _of_images(of_folder, classes)
    if any(field.is_image for field in fields):
        label = field_of_label(fields)
        of_records = ["include 'data/image_records.gin'", f"RECORDS = {place!r}"]
        of_records.append(f"image_records.label = {label and label.name!r}")
        return _of_images(of_records, label.distinct if label else 0)
    if found.kind == "pairs":
        lines = _of_parallel_text(found.files)
    elif found.kind == "text":
        many = place if Path(place).suffix == ".txt" else _globs(place, found.files)
        lines = ["include 'data/text_files.gin'", f"TEXT_FILE = {many!r}"]
    else:
        form = None
        if found.kind == "json lines":
            place, form = _globs(place, found.files), "jsonl"
        lines = _of_records(place, fields, csv or CsvOptions(), form)
    if not lines:
        return ""
    if not lines[0].startswith("include 'own/"):
        lines.insert(0, "include 'quickstart.gin'")
    if text_bytes < VOCABULARY_BYTES:
        lines.append("text_task.tokenizer = @bytes()  # too little for a vocabulary")
    return "\n".join(lines)


def config_of_tokens(pattern: str, tokens: TokensReport) -> str:
    """The gin lines of a small run on token streams.

    Args:
      pattern: the path, folder or glob that was given.
      tokens: what they are.
    """
    place = os.path.abspath(os.path.expanduser(pattern))
    lines = [
        "include 'own/tokens.gin'",
        f"TOKENS = {place!r}",
        f"EOS_ID = {tokens.eos_id}",
        f"token_ids.vocab_size = {tokens.vocab_size}",
    ]
    if tokens.dtype != "uint16" and tokens.documents is None:
        lines.append(f"token_files.dtype = {tokens.dtype!r}")
    return "\n".join(lines)


def _weight(field: FieldReport) -> float:
    """The length of a field's strings, less if many are equal."""
    values = sum(field.types.values())
    distinct = values if field.distinct is None else field.distinct
    return (field.mean_length or 0) * distinct / max(values, 1)


def _of_records(
    place: str | tuple[str, ...],
    fields: Sequence[FieldReport],
    csv: CsvOptions,
    form: str | None,
) -> list[str]:
    if any(f.name in _CHAT_NAMES and "list" in f.types for f in fields):
        return _of_conversations(place, form)
    if pair := fields_of_pairs(fields):
        config, owner = "pairs", "record_pairs"
        names = dict(zip(("inputs", "targets"), pair))
    elif text := field_of_text(fields):
        config, owner, names = "records", "record_files", {"text": text}
    else:
        return []
    names |= {"columns": csv.columns} if csv.columns else {}
    names |= {"separator": csv.separator} if csv.separator else {}
    names |= {"format": form} if form else {}
    lines = [f"include 'own/{config}.gin'", f"RECORDS = {place!r}"]
    return lines + [f"{owner}.{name} = {value!r}" for name, value in names.items()]


def _of_conversations(place: str | tuple[str, ...], form: str | None) -> list[str]:
    lines = [
        "data.train = @text_task()",
        "data.rows = 'packed'",
        "text_task.name = 'chats'",
        "text_task.source = @conversation_files()",
        "text_task.tokenizer = @sentencepiece()",
        f"conversation_files.files = {place!r}",
        "conversation_files.chat_template = 'plain'",
    ]
    return lines + [f"conversation_files.format = {form!r}"] * (form is not None)


def _of_parallel_text(files: Sequence[Path]) -> list[str]:
    one, other = files
    validation = next(
        (
            name
            for name in ("val", "valid", "validation", "dev", "test")
            if all(file.with_name(name + file.suffix).is_file() for file in files)
        ),
        None,
    )
    return [
        "data.train = @text_task()",
        "data.rows = 'packed'",
        "data.pairs = 'decoder'",
        "text_task.name = 'pairs'",
        "text_task.source = @pair_files()",
        "text_task.tokenizer = @sentencepiece()",
        f"pair_files.folder = {str(one.parent)!r}",
        f"pair_files.inputs = {one.suffix[1:]!r}",
        f"pair_files.targets = {other.suffix[1:]!r}",
        f"pair_files.train = {one.stem!r}",
        f"pair_files.validation = {validation!r}",
    ]


def _of_images(source: list[str], classes: int) -> str:
    """A classifier; without classes a masked autoencoder, which needs no labels."""
    if classes > 1:
        lines = [
            "include 'small/vit_digits.gin'",
            *source,
            "images.size = 32",
            "vit.image_size = 32",
            "vit.patch_size = 4",
            f"vit.num_classes = {classes}",
        ]
    else:
        lines = [
            "include 'runs/images.gin'",
            *source,
            "images.size = 32",
            "experiment.objective = @masked_autoencoding()",
            "masked_autoencoding.model = @mae()",
            "mae.encoder = @transformer()",
            "mae.decoder = @transformer()",
            "mae.image_size = 32",
            "mae.patch_size = 4",
            "transformer.num_layers = 3",
            "transformer.embed_dim = 64",
            "transformer.num_heads = 4",
            "train.batch_size = 64",
            "train.steps = 1000",
        ]
    return "\n".join(lines)


def _globs(place: str, files: Sequence[Path]) -> str | tuple[str, ...]:
    """The pattern; of a folder with files of other endings than .txt, globs."""
    if not os.path.isdir(place):
        return place
    endings = sorted({file.suffix for file in files})
    if endings == [".txt"]:
        return place
    globs = tuple(f"{place}/**/*{ending}" for ending in endings)
    return globs[0] if len(globs) == 1 else globs

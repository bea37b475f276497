"""Names of classes that files declare: of `datasets`, and of TensorFlow Datasets."""

import json
from pathlib import Path
from typing import Any

from fmjax.data.sources.record_formats.formats import read_metadata


def declared_classes(file: Path, field: str) -> tuple[str, ...]:
    """Names of the labels 0, 1, …; empty if the file declares none.

    `datasets` keeps them in the schema of Parquet and Arrow files, as ClassLabel;
    TensorFlow Datasets in a file beside its records.

    Args:
      file: a record file.
      field: name of the field with the labels.

    Raises:
      UserError: the file cannot be read.
    """
    beside = file.parent / f"{field}.labels.txt"
    if beside.is_file():
        text = beside.read_text(encoding="utf-8", errors="replace")
        return tuple(filter(None, text.split("\n")))
    described = read_metadata(file).get(b"huggingface", b"{}")
    try:
        feature = json.loads(described)["info"]["features"][field]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    return _names(feature)


def _names(feature: Any) -> tuple[str, ...]:
    # A list of labels is [feature] or {"feature": …, "_type": "List"}.
    for _ in range(4):
        if isinstance(feature, list) and feature:
            (feature, *_) = feature
        elif isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return ()
    return tuple(names)

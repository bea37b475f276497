"""A tiny run, and others that are fine-tuned from it on labelled records."""

import json

import fmjax


def write_base_and_records(folder, config, rows) -> None:
    """Trains folder/base, and writes 140 records to train on and the others as dev."""
    (folder / "text.txt").write_text("A film.\n\nA good film.\n\n" * 40)
    (folder / "base.gin").write_text(config)
    experiment = fmjax.load_experiment(
        folder / "base.gin", [f"TEXT_FILE={folder / 'text.txt'}"]
    )
    fmjax.train(experiment, folder / "base")
    (folder / "records").mkdir()
    for name, part in (("train", rows[:140]), ("dev", rows[140:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / "records" / f"{name}.jsonl").write_text(lines)


def tune(folder, name, bindings, parts, lines="", base="base"):
    """Fine-tunes a run on the records, by the three lines of a user's file."""
    included = (f"{folder}/{base}/config.gin", *parts)
    (folder / f"{name}.gin").write_text(
        "".join(f"include '{part}'\n" for part in included)
        + f"RUN = '{folder}/{base}'\n"
        + lines
    )
    records = f"RECORDS={folder / 'records'}"
    experiment = fmjax.load_experiment(folder / f"{name}.gin", [records, *bindings])
    fmjax.train(experiment, folder / name)
    return folder / name

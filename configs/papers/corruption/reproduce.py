"""How the data of BERT and T5 is corrupted, counted on IMDb.

    python configs/papers/corruption/reproduce.py ../shared/data/tfds

Reads rows of 512 tokens as training does and counts what the papers state. Writes
results.json beside this file and prints it.
"""

import argparse
import json
import pathlib

import numpy as np

from fmjax.config.load import load_data

HERE = pathlib.Path(__file__).parent
LENGTH = 512
ROWS = 16  # of a batch


def main() -> None:
    """Counts, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tfds", help="folder of prepared TensorFlow datasets")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("bindings", nargs="*", help="NAME=VALUE of the data")
    args = parser.parse_intermixed_args()
    bindings = [f"TFDS_DIR={args.tfds}", f"data.length={LENGTH}", *args.bindings]
    found = {
        "rows": ROWS * args.batches,
        "T5": spans(*rows_of("imdb_spans", bindings, args.batches)),
        "BERT": masks(*rows_of("imdb_masked", bindings, args.batches)),
    }
    text = json.dumps(found, indent=2) + "\n"
    (args.out / "results.json").write_text(text)
    print(text, end="")


def rows_of(name: str, bindings: list[str], count: int):
    """The data's tokenizer, and arrays of as many batches of its training rows."""
    data = load_data(f"data/{name}.gin", bindings)
    data.prepare()
    batches = data.train_batches(ROWS, range(ROWS), seed=0)
    read = [next(batches) for _ in range(count)]
    batches.close()
    rows = {key: np.concatenate([each[key] for each in read]) for key in read[0]}
    return data.tokenizer(), rows


def spans(tokenizer, rows) -> dict[str, float]:
    """Of span corruption; a span begins after each sentinel in the targets."""
    sentinels = [tokenizer.id_of(f"<extra_id_{i}>") for i in range(100)]
    special = [*sentinels, tokenizer.eos_id]
    inputs, targets = rows["encoder_tokens"], rows["targets"]
    is_input, is_target = rows["encoder_segment_ids"] > 0, rows["weights"] > 0
    kept = np.sum(is_input & ~np.isin(inputs, special), axis=1)
    removed = np.sum(is_target & ~np.isin(targets, special), axis=1)
    begun = np.sum(is_target & np.isin(targets, sentinels), axis=1)
    # Rows are full but for the end of the data.
    return {
        "encoder tokens of a row": int(np.median(is_input.sum(1))),
        "target tokens of a row": int(np.median(is_target.sum(1))),
        "text tokens of a row": int(np.median(kept + removed)),
        "share removed": float(removed.sum() / (kept + removed).sum()),
        "mean span": float(removed.sum() / begun.sum()),
    }


def masks(tokenizer, rows) -> dict[str, float]:
    """Of masking; positions with weight are targets."""
    special = [tokenizer.id_of(name) for name in ("[CLS]", "[SEP]")]
    tokens, is_target = rows["tokens"], rows["weights"] > 0
    is_text = (rows["segment_ids"] > 0) & ~np.isin(tokens, special)
    is_masked = tokens[is_target] == tokenizer.id_of("[MASK]")
    is_same = tokens[is_target] == rows["targets"][is_target]
    return {
        "share of targets": float(is_target.sum() / is_text.sum()),
        "of these [MASK]": float(is_masked.mean()),
        "of these unchanged": float(is_same.mean()),
        "of these another token": float((~is_masked & ~is_same).mean()),
        "targets": int(is_target.sum()),
    }


if __name__ == "__main__":
    main()

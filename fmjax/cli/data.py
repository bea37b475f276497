"""The verbs `data` and `tokenizer`: caches of data, and a vocabulary."""

import argparse
import pathlib

from fmjax.cli.arguments import Verbs, add_verb, takes_config


def add(verbs: Verbs) -> None:
    """Adds the verbs `data` and `tokenizer`."""
    sub = add_verb(
        verbs, "data", "Build a config's data caches, or print what they hold.", _data
    )
    sub.add_argument("action", choices=["cache", "inspect"])
    takes_config(sub, "configs/ or configs/data/")
    sub.add_argument(
        "--processes",
        type=int,
        help="processes that build a cache of text; the same as data.processes",
    )
    sub.add_argument(
        "--examples", type=int, default=3, help="number of examples to print"
    )
    sub.add_argument(
        "--picture",
        type=pathlib.Path,
        help="image file into which inspect draws augmented images",
    )

    sub = add_verb(
        verbs, "tokenizer", "Train a SentencePiece model on text files.", _tokenizer
    )
    sub.add_argument("action", choices=["train"])
    sub.add_argument("files", nargs="+", help="text files or globs")
    sub.add_argument(
        "--out", type=pathlib.Path, required=True, help="the .model file to write"
    )
    sub.add_argument("--vocab_size", type=int, default=8192, help="number of tokens")
    sub.add_argument("--model_type", choices=["bpe", "unigram"], default="bpe")
    sub.add_argument(
        "--training_bytes",
        type=int,
        default=4_000_000,
        help="number of bytes of the files to train on",
    )


def _data(args: argparse.Namespace) -> None:
    from fmjax.config.load import load_data
    from fmjax.data.inspect.show import cache_folders, show

    bindings = list(args.bindings)
    if args.processes is not None:
        bindings.append(f"data.processes={args.processes}")
    data = load_data(args.config, bindings, args.trust)
    data.prepare()
    if args.action == "cache":
        print(
            "\n".join(cache_folders(data)) or "nothing to cache: data.streaming = True"
        )
    else:
        show(data, args.examples, args.picture)


def _tokenizer(args: argparse.Namespace) -> None:
    from fmjax.data.tokenizers.vocabularies import train_sentencepiece

    train_sentencepiece(
        tuple(args.files),
        args.vocab_size,
        args.out,
        model_type=args.model_type,
        training_bytes=args.training_bytes,
    )
    print(f"wrote {args.out}; use it with sentencepiece.file={args.out}")

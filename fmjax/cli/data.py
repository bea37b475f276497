"""The verbs `data` and `tokenizer`: caches of data, and a vocabulary."""

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING

from fmjax.cli.arguments import Verbs, add_verb, takes_bindings

if TYPE_CHECKING:
    from fmjax.data.runtime.batch_source import BatchSource


def add(verbs: Verbs) -> None:
    """Adds the verbs `data` and `tokenizer`."""
    sub = add_verb(
        verbs,
        "data",
        "Build a config's data caches, or print what they, or files alone, hold.",
        _data,
    )
    sub.add_argument("action", choices=["cache", "inspect"])
    sub.add_argument(
        "config",
        help="a gin file, or a name under configs/ or configs/data/; for inspect also "
        "a file of data, a folder or a glob",
    )
    takes_bindings(sub)
    sub.add_argument(
        "--processes",
        type=int,
        help="processes that build a cache; the same as data.processes or "
        "images.processes",
    )
    sub.add_argument(
        "--examples", type=int, default=3, help="number of examples to print"
    )
    sub.add_argument(
        "--picture",
        type=pathlib.Path,
        help="image file into which inspect draws augmented images",
    )
    sub.add_argument(
        "--tokenizer",
        help="for files alone: a SentencePiece .model, a run, or a folder of Hugging "
        "Face, to count tokens; if not given, a vocabulary of the texts",
    )
    sub.add_argument(
        "--records",
        type=int,
        default=20_000,
        help="for files alone: how many records are read, spread evenly",
    )
    sub.add_argument("--json", action="store_true", help="for files alone: print JSON")

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
    sub.add_argument(
        "--normalization",
        default="identity",
        help="nfkc, nmt_nfkc, or with _cf at the end lower case as well",
    )


def _data(args: argparse.Namespace) -> None:
    from fmjax.data.inspect.file_kinds import is_pattern_of_files

    if args.action == "inspect" and is_pattern_of_files(args.config):
        _inspect_files(args)
        return
    from fmjax.config.load import load_data
    from fmjax.data.inspect.show import cache_folders, check_picture, show
    from fmjax.data.runtime.batch_source import ChecksTraining, PreparesTraining

    data = load_data(args.config, args.bindings, args.trust)
    if args.processes is not None:
        data = _with_processes(data, args.processes)
    if args.action == "inspect" and args.picture is not None:
        check_picture(data)
    if isinstance(data, ChecksTraining):
        data.check_training()
    data.prepare()
    if args.action == "cache":
        if isinstance(data, PreparesTraining):
            data.prepare_training()
        print(
            "\n".join(cache_folders(data))
            or f"nothing to cache: {data.gin_name}.streaming = True"
        )
    else:
        show(data, args.examples, args.picture)


def _with_processes(data: "BatchSource", processes: int) -> "BatchSource":
    from fmjax.data.runtime.cached_data import CachedData
    from fmjax.errors import UserError

    if not isinstance(data, CachedData):
        raise UserError(
            f"--processes {processes}: expected @data() or @images(), whose caches "
            f"several processes build; found @{data.gin_name}()."
        )
    return dataclasses.replace(data, processes=processes)


def _inspect_files(args: argparse.Namespace) -> None:
    from rich.console import Console

    from fmjax.data.inspect.file_report import inspect_files
    from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
    from fmjax.data.tokenizers.vocabularies import SentencePiece
    from fmjax.errors import UserError

    if args.bindings:
        raise UserError(
            f"{args.config} is a file of data, which takes no bindings; found "
            f"{', '.join(args.bindings)}."
        )
    if args.records < 1:
        raise UserError(f"--records {args.records}: expected at least 1.")
    tokenizer = None
    if args.tokenizer is not None:
        is_model = args.tokenizer.endswith(".model")
        made = SentencePiece if is_model else SavedTokenizer
        tokenizer = made(args.tokenizer).build(None, None)
    report = inspect_files(args.config, tokenizer, args.records)
    if args.json:
        print(report.as_json())
    else:
        report.render(Console())


def _tokenizer(args: argparse.Namespace) -> None:
    from fmjax.data.tokenizers.vocabularies import train_sentencepiece

    train_sentencepiece(
        tuple(args.files),
        args.vocab_size,
        args.out,
        model_type=args.model_type,
        training_bytes=args.training_bytes,
        normalization=args.normalization,
    )
    print(f"wrote {args.out}; use it with sentencepiece.file={args.out}")

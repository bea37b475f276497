"""The verbs. Each says in a few lines what it takes and hands over to its room."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from fmjax.errors import UserError

UNFINISHED = 75  # EX_TEMPFAIL: start me again
USER_ERROR = 2
DIVERGED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # Bindings may stand anywhere; argparse takes only those beside the config.
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    if stray or (rest and not hasattr(args, "bindings")):
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:
        args.bindings += rest
    try:
        return args.verb(args) or 0
    except UserError as error:
        print(f"fmjax: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _train(args) -> int:
    from fmjax.sharding.processes import join_processes

    join_processes(args.cluster)
    from fmjax import config, runs
    from fmjax.training.step_log import Diverged

    experiment = config.load(args.config, args.bindings, args.trust)
    try:
        outcome = runs.train(
            experiment, args.run_dir, override=args.override, trust=args.trust
        )
    except Diverged as error:
        print(f"fmjax: {error}", file=sys.stderr)
        return DIVERGED
    return 0 if outcome.finished else UNFINISHED


def _eval(args) -> None:
    from fmjax.evaluation.validation import evaluate_run

    values = evaluate_run(
        args.run_dir, step=args.step, bindings=args.bindings, trust=args.trust
    )
    print(json.dumps(values, indent=2))


def _generate(args) -> None:
    from fmjax.inference.generate import generate
    from fmjax.inference.load import load

    texts = generate(
        load(args.run_dir, step=args.step, trust=args.trust),
        args.prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    for prompt, text in zip(args.prompt, texts):
        print(prompt + text)


def _data(args) -> None:
    from rich.console import Console

    from fmjax import config

    data = config.load(args.config, args.bindings, args.trust).data
    if data is None:
        raise UserError(f"{args.config} binds no experiment.data.")
    data.prepare()
    if args.action == "cache":
        folders = {
            str(c.folder): c for s in ("train", "validation") for c in data.caches(s)
        }
        print("\n".join(folders) or "nothing to cache: data.streaming = True")
        return
    from fmjax.data.inspect import inspect

    inspect(data, examples=args.examples).render(Console())


def _tokenizer(args) -> None:
    from fmjax.data.vocabularies import train_sentencepiece

    train_sentencepiece(
        tuple(args.files),
        args.vocab_size,
        args.out,
        model_type=args.model_type,
        training_bytes=args.training_bytes,
    )
    print(f"wrote {args.out}; use it with sentencepiece.file={args.out}")


def _config(args) -> None:
    from fmjax import config
    from fmjax.experiment import render

    print(render(config.load(args.config, args.bindings, args.trust)), end="")


def _compare(args) -> None:
    from fmjax.evaluation.compare import compare

    compare(args.run_dirs, picture=args.plot, metric=args.metric, trust=args.trust)


def _import(args) -> None:
    from fmjax.interop.hugging_face import import_model

    import_model(args.hf_dir, args.run_dir)
    print(f"imported {args.hf_dir} into {args.run_dir}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fmjax", description="Foundation models from gin configs, in JAX and Flax."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, function, text):
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(verb=function)
        return sub

    def takes_config(sub):
        sub.add_argument("config", help="a gin file, or a name under configs/")
        takes_bindings(sub)

    def takes_bindings(sub):
        sub.add_argument(
            "bindings", nargs="*", metavar="NAME=VALUE", help="gin bindings"
        )
        takes_trust(sub)

    def takes_trust(sub):
        sub.add_argument(
            "--trust", action="store_true", help="let the config import Python modules"
        )

    def takes_run(sub):
        sub.add_argument("run_dir", help="a run directory")
        sub.add_argument("--step", type=int, help="of the checkpoint; else the newest")

    sub = verb("train", _train, "Train a config, or continue a run.")
    takes_config(sub)
    sub.add_argument("--run_dir", required=True, help="where everything is kept")
    sub.add_argument(
        "--override", action="store_true", help="continue a run with a changed config"
    )
    sub.add_argument(
        "--cluster",
        action="store_true",
        help="find the run's other processes through Slurm, Cloud TPU, GKE or MPI",
    )

    sub = verb("eval", _eval, "Evaluate a run on its validation split.")
    takes_run(sub)
    takes_bindings(sub)

    sub = verb("generate", _generate, "Continue prompts with a run's model.")
    takes_run(sub)
    takes_trust(sub)
    sub.add_argument("--prompt", action="append", required=True, help="may be repeated")
    sub.add_argument("--max_tokens", type=int, default=100)
    sub.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    sub.add_argument("--top_k", type=int)
    sub.add_argument("--top_p", type=float)
    sub.add_argument("--seed", type=int, default=0)

    sub = verb("data", _data, "Cache a config's data, or look into it.")
    sub.add_argument("action", choices=["cache", "inspect"])
    takes_config(sub)
    sub.add_argument("--examples", type=int, default=3, help="that inspect decodes")

    sub = verb("tokenizer", _tokenizer, "Train a SentencePiece model on text files.")
    sub.add_argument("action", choices=["train"])
    sub.add_argument("files", nargs="+", help="text files or globs")
    sub.add_argument("--out", type=pathlib.Path, required=True, help="a new .model")
    sub.add_argument("--vocab_size", type=int, default=8192)
    sub.add_argument("--model_type", choices=["bpe", "unigram"], default="bpe")
    sub.add_argument("--training_bytes", type=int, default=4_000_000)

    sub = verb("config", _config, "Print a config whole: every binding a run takes.")
    takes_config(sub)

    sub = verb("compare", _compare, "Compare runs: a table, a plot, and their configs.")
    sub.add_argument("run_dirs", nargs="+", metavar="DIR")
    sub.add_argument("--plot", type=pathlib.Path, default=pathlib.Path("compare.png"))
    sub.add_argument("--metric", default="loss", help="what is plotted over steps")
    takes_trust(sub)

    sub = verb("import", _import, "Import a Hugging Face folder as a run directory.")
    sub.add_argument("hf_dir", help="config.json and *.safetensors")
    sub.add_argument("run_dir", help="a new directory")
    return parser


if __name__ == "__main__":
    sys.exit(main())

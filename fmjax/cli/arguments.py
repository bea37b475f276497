"""What each verb takes on the command line."""

import argparse
import pathlib
from collections.abc import Sequence


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The verb and its arguments; exits with 2 where they are wrong."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # Bindings may stand anywhere; argparse takes only those beside the config.
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    if stray or (rest and not hasattr(args, "bindings")):
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:
        args.bindings += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fmjax", description="Foundation models from gin configs, in JAX and Flax."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, text):
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(verb=name)
        return sub

    def takes_config(sub, where="configs/"):
        sub.add_argument("config", help=f"a gin file, or a name under {where}")
        takes_bindings(sub)

    def takes_bindings(sub):
        sub.add_argument(
            "bindings", nargs="*", metavar="NAME=VALUE", help="gin bindings"
        )
        takes_trust(sub)

    def takes_trust(sub):
        sub.add_argument(
            "--trust",
            action="store_true",
            help="let the config import Python modules, which runs their code",
        )

    def takes_run(sub):
        sub.add_argument("run_dir", help="a run directory")
        sub.add_argument(
            "--step", type=int, help="which checkpoint; the newest if not given"
        )

    sub = verb("train", "Train a config, or continue a run.")
    takes_config(sub)
    sub.add_argument("--run_dir", required=True, help="the folder of the run")
    sub.add_argument(
        "--override", action="store_true", help="continue a run with a changed config"
    )
    sub.add_argument(
        "--devices", type=int, help="train on so many virtual devices of the CPUs"
    )
    sub.add_argument(
        "--cluster",
        action="store_true",
        help="find the run's other processes through Slurm, Cloud TPU, GKE or MPI",
    )

    sub = verb("eval", "Evaluate a run on its validation split.")
    takes_run(sub)
    takes_bindings(sub)
    sub.add_argument(
        "--bleu",
        action="store_true",
        help="also translate the split, keep the translations and measure BLEU",
    )
    sub.add_argument("--beams", type=int, help="beams of --bleu; 4 if not given")
    sub.add_argument("--length_penalty", type=float, help="of --bleu; 0.6 if not given")
    sub.add_argument(
        "--max_tokens",
        type=int,
        help="the most tokens of a translation of --bleu; if not given, 50 more than "
        "the longest source",
    )
    for name, text in (
        ("linear_probe", "accuracy of logistic regression from an image encoder"),
        ("knn", "accuracy of its nearest neighbours"),
        ("zero_shot", "accuracy of classes told by prompts, of a model like CLIP"),
        ("retrieval", "recall of captions by images and of images by captions"),
        ("captions", "share of images whose written caption names their class"),
    ):
        sub.add_argument(
            f"--{name}", action="append_const", dest="measures", const=name, help=text
        )

    sub = verb("generate", "Continue prompts, answer them, or caption images.")
    takes_run(sub)
    takes_trust(sub)
    sub.add_argument(
        "--prompt", action="append", help="text to continue or answer; may be repeated"
    )
    sub.add_argument(
        "--image",
        action="append",
        type=pathlib.Path,
        help="image to be captioned; may be repeated; with one prompt, or one for each",
    )
    sub.add_argument(
        "--max_tokens",
        type=int,
        help="the most tokens written; if not given, as many as the model's settings "
        "say, or 100; as many as fit the model",
    )
    sub.add_argument("--temperature", type=float, help="1 if not given; 0 is greedy")
    sub.add_argument("--top_k", type=int, help="draw from the k likeliest tokens")
    sub.add_argument("--top_p", type=float, help="draw from the likeliest share p")
    sub.add_argument("--seed", type=int, default=0, help="of draws; below 2**32")
    sub.add_argument(
        "--beams", type=int, help="search for the likeliest text with so many beams"
    )
    sub.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the parameters; if not given, as they were saved",
    )
    sub.add_argument(
        "--length_penalty",
        type=float,
        help="of --beams (Wu et al. 2016): more favours longer texts; 0 if not given",
    )

    sub = verb("data", "Cache a config's data, or look into it.")
    sub.add_argument("action", choices=["cache", "inspect"])
    takes_config(sub, "configs/ or configs/data/")
    sub.add_argument("--examples", type=int, default=3, help="how many inspect prints")
    sub.add_argument(
        "--picture",
        type=pathlib.Path,
        help="image file into which inspect draws augmented images",
    )

    sub = verb("tokenizer", "Train a SentencePiece model on text files.")
    sub.add_argument("action", choices=["train"])
    sub.add_argument("files", nargs="+", help="text files or globs")
    sub.add_argument("--out", type=pathlib.Path, required=True, help="a new .model")
    sub.add_argument("--vocab_size", type=int, default=8192, help="number of tokens")
    sub.add_argument("--model_type", choices=["bpe", "unigram"], default="bpe")
    sub.add_argument(
        "--training_bytes",
        type=int,
        default=4_000_000,
        help="bytes of the files that it is trained on",
    )

    sub = verb("config", "Print the whole config: every field that a run would have.")
    takes_config(sub)

    sub = verb("help", "Explain a configurable or one of its fields.")
    sub.add_argument(
        "name", nargs="?", help="such as adamw or train.steps; if not given, a list"
    )

    sub = verb("list", "List configurables of a kind, or shipped configs.")
    sub.add_argument(
        "kind", nargs="?", help="such as optimizers or configs; if not given, all kinds"
    )

    sub = verb("compare", "Compare runs: their figures, configs and curves.")
    sub.add_argument("run_dirs", nargs="+", metavar="DIR")
    sub.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="draw the curves into an image",
    )
    sub.add_argument("--metric", default="loss", help="what --plot draws over steps")
    takes_trust(sub)

    sub = verb("status", "Tell how far a run is, and what went wrong.")
    sub.add_argument("run_dir", type=pathlib.Path, help="a run directory")

    sub = verb("import", "Import a Hugging Face folder as a run directory.")
    sub.add_argument("hf_dir", help="config.json and *.safetensors")
    sub.add_argument("run_dir", help="a new directory")
    sub.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="an option of config.json or generation_config.json that is not known "
        "here, and is known not to matter; may be repeated",
    )

    sub = verb("export", "Export a run as a Hugging Face folder.")
    takes_run(sub)
    takes_trust(sub)
    sub.add_argument("hf_dir", help="a new directory")
    sub.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="if not given, as it was imported, or float32",
    )
    sub.add_argument(
        "--max_shard_gb", type=float, default=5, help="the largest file of weights"
    )
    sub.add_argument(
        "--model_type", help="of the Hugging Face folder, where several fit the model"
    )
    return parser

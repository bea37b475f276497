"""The arguments of each verb of the command line."""

import argparse
import pathlib
from collections.abc import Sequence

from fmjax.cli.scaling_arguments import add_scaling


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command line; wrong arguments exit with code 2.

    Args:
      argv: the words after `fmjax`; `sys.argv[1:]` if None.

    Returns:
      The arguments, with the name of the verb as `verb`.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # Bindings may stand anywhere; argparse accepts only those next to the config.
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
        sub.add_argument("run_dir", help="a run directory, or its s3://… or gs://…")
        sub.add_argument(
            "--step", type=int, help="step of the checkpoint; default: the newest"
        )

    sub = verb("train", "Train a config, or continue a run.")
    takes_config(sub)
    sub.add_argument(
        "--run_dir", required=True, help="the folder of the run, or s3://… or gs://…"
    )
    sub.add_argument(
        "--override", action="store_true", help="continue a run with a changed config"
    )
    sub.add_argument(
        "--devices", type=int, help="number of virtual CPU devices to train on"
    )
    sub.add_argument(
        "--cluster",
        action="store_true",
        help="join the run's other processes through Slurm, Cloud TPU, GKE or MPI",
    )

    sub = verb("launch", "Train on Slurm, GKE or TPU VMs, or in processes here.")
    sub.add_argument("kind", choices=["slurm", "gke", "tpu-vm", "local"])
    takes_config(sub)
    sub.add_argument(
        "--run_dir", required=True, help="the folder of the run, as all hosts see it"
    )
    sub.add_argument(
        "--chips", metavar="KIND-N", help="kind and number, such as v5e-256 or h100-64"
    )
    sub.add_argument(
        "--slices", type=int, default=1, help="of TPUs that the chips are of"
    )
    sub.add_argument("--nodes", type=int, help="hosts; locally, processes")
    sub.add_argument("--gpus", type=int, help="GPUs of a node; 0 for CPUs")
    sub.add_argument("--devices", type=int, help="virtual CPU devices a local process")
    sub.add_argument(
        "--cluster_config",
        metavar="FILE",
        help="a gin file, or a name under configs/; default: cluster/KIND.gin. "
        "Bindings such as slurm.partition=gpu override it",
    )
    sub.add_argument("--name", help="of the job; default: the last part of --run_dir")
    sub.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder for the job's files; default: launched/NAME",
    )
    sub.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print what would be submitted; write it only with --out",
    )
    sub.add_argument(
        "--detach", action="store_true", help="submit, and do not follow the log"
    )
    sub.add_argument(
        "--unchecked",
        action="store_true",
        help="submit without a try whether the bucket of --run_dir can be written from "
        "here",
    )
    sub.add_argument(
        "--override", action="store_true", help="continue a run with a changed config"
    )

    sub = verb("fork", "Copy a checkpoint of a run to a new run that continues it.")
    takes_run(sub)
    sub.add_argument("new_dir", help="the run directory to write; must be new")

    sub = verb("sweep", "Run a config at many points: grid, random or Bayesian search.")
    sub.add_argument(
        "config", help="a gin file that binds sweep.config and sweep.space"
    )
    takes_bindings(sub)
    sub.add_argument(
        "--folder", required=True, help="the folder of the sweep, new or to continue"
    )
    sub.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="image file into which the metric is drawn, with intervals over seeds",
    )

    sub = verb("plan", "Predict memory and step time of a config on chips elsewhere.")
    takes_config(sub)
    sub.add_argument("--chip", required=True, help="such as v5e, v5p, v6e or h100")
    sub.add_argument("--chips", type=int, required=True, help="number of chips")
    sub.add_argument(
        "--slices",
        type=int,
        default=1,
        help="of TPUs that the chips are of (default 1)",
    )
    sub.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="file to write the figures to"
    )
    sub.add_argument(
        "--hlo", type=pathlib.Path, metavar="FILE", help="file to write the program to"
    )
    sub.add_argument(
        "--search",
        action="store_true",
        help="also try other meshes, microbatches and rematerialization",
    )
    sub.add_argument(
        "--quick",
        action="store_true",
        help="TPUs: generate no machine code; seconds, and compute is a roofline",
    )

    sub = verb("eval", "Evaluate a run on its validation split.")
    takes_run(sub)
    takes_bindings(sub)
    sub.add_argument(
        "--bleu",
        action="store_true",
        help="also translate the split, store the translations and compute BLEU",
    )
    sub.add_argument("--beams", type=int, help="number of beams for --bleu; default: 4")
    sub.add_argument(
        "--length_penalty", type=float, help="length penalty for --bleu; default: 0.6"
    )
    sub.add_argument(
        "--max_tokens",
        type=int,
        help="maximum tokens of a translation for --bleu; default: 50 more than the "
        "longest source",
    )
    for name, text in (
        ("linear_probe", "accuracy of logistic regression on image features"),
        ("knn", "accuracy of k nearest neighbours of image features"),
        ("zero_shot", "zero-shot accuracy with prompts for the classes (CLIP)"),
        ("retrieval", "recall of captions by images and of images by captions"),
        ("captions", "share of generated captions that name the image's class"),
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
        help="maximum number of new tokens; default: that of the model's generation "
        "config, or 100; limited to what fits the model",
    )
    sub.add_argument(
        "--temperature",
        type=float,
        help="sampling temperature; default: 1; 0 is greedy",
    )
    sub.add_argument("--top_k", type=int, help="sample from the k likeliest tokens")
    sub.add_argument(
        "--top_p",
        type=float,
        help="sample from the likeliest tokens of total probability p",
    )
    sub.add_argument(
        "--seed", type=int, default=0, help="random seed, from 0 to 2**32 - 1"
    )
    sub.add_argument("--beams", type=int, help="number of beams of a beam search")
    sub.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of the parameters; default: as they were saved",
    )
    sub.add_argument(
        "--length_penalty",
        type=float,
        help="length penalty of --beams (Wu et al. 2016); larger values favour longer "
        "texts; default: 0",
    )

    sub = verb("data", "Build a config's data caches, or print what they hold.")
    sub.add_argument("action", choices=["cache", "inspect"])
    takes_config(sub, "configs/ or configs/data/")
    sub.add_argument(
        "--examples", type=int, default=3, help="number of examples to print"
    )
    sub.add_argument(
        "--picture",
        type=pathlib.Path,
        help="image file into which inspect draws augmented images",
    )

    sub = verb("tokenizer", "Train a SentencePiece model on text files.")
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

    sub = verb("config", "Print the whole config, with every field and its value.")
    takes_config(sub)

    sub = verb("help", "Explain a configurable or one of its fields.")
    sub.add_argument(
        "name", nargs="?", help="such as adamw or train.steps; default: a list"
    )

    sub = verb("list", "List configurables of a kind, or shipped configs.")
    sub.add_argument(
        "kind", nargs="?", help="such as optimizers or configs; default: all kinds"
    )

    sub = verb("compare", "Compare the results, configs and curves of runs.")
    sub.add_argument(
        "run_dirs",
        nargs="+",
        metavar="DIR",
        help="a run directory, or a folder of runs, such as that of a sweep",
    )
    sub.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="image file into which the curves are drawn",
    )
    sub.add_argument(
        "--metric",
        default="loss",
        help="metric of --plot and --importance; default: loss",
    )
    sub.add_argument(
        "--over",
        choices=["steps", "tokens", "images", "pairs", "flops", "seconds"],
        help="what --plot draws over; default: steps, or tokens or images if the batch "
        "sizes differ",
    )
    sub.add_argument(
        "--importance",
        action="store_true",
        help="how much the metric depends on each binding that differs (fANOVA)",
    )
    takes_trust(sub)

    sub = verb("status", "Print the progress of a run and what went wrong.")
    sub.add_argument("run_dir", help="a run directory")

    sub = verb("watch", "Show runs in the terminal while they train.")
    sub.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    sub.add_argument(
        "--seconds", type=float, default=3.0, help="between two looks (default 3)"
    )
    sub.add_argument(
        "--until_finished", action="store_true", help="end when all runs have ended"
    )

    sub = verb("report", "Write a run's curves, events and config as one HTML file.")
    sub.add_argument("run_dir", help="a run directory")
    sub.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FILE",
        help="the file to write; default: report.html in the run directory",
    )

    sub = verb("runs", "List, tag and promote the runs of a folder.")
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name, text):
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(verb="runs")
        return sub

    sub = action("list", "Print a table of the runs in a folder.")
    sub.add_argument("folder", metavar="DIR", help="searched at any depth")
    sub.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="EXPR",
        help="such as 'loss<3.2', tag=baseline or model=gpt; a column, a metric of the "
        "last validation or a binding; may be repeated, all must hold",
    )
    sub.add_argument(
        "--sort", default="run", metavar="NAME", help="as in --filter; default: run"
    )
    sub.add_argument("--reverse", action="store_true", help="the largest first")
    sub.add_argument(
        "--json", metavar="FILE", help="also as JSON; - to print only that"
    )
    for name, text in (("tag", "Add tags to a run."), ("untag", "Remove its tags.")):
        sub = action(name, text)
        sub.add_argument("run_dir", help="a run directory")
        sub.add_argument("names", nargs="+", metavar="TAG")
    sub = action("promote", "Give a checkpoint of a run a stage.")
    sub.add_argument("run_dir", help="a run directory")
    sub.add_argument("stage", choices=["candidate", "staging", "production", "none"])
    sub.add_argument(
        "--step", type=int, help="step of the checkpoint; default: the newest"
    )
    sub.add_argument("--note", default="", help="why, for the history")

    scaling = verb("scaling", "Fit scaling laws, size models, check coordinates.")
    add_scaling(scaling, takes_config, takes_bindings)

    sub = verb("profile", "Print what traced steps of a run or a config were spent on.")
    sub.add_argument(
        "traced",
        metavar="DIR_OR_CONFIG",
        help="a run directory with a trace of train.profile; or a gin file, or a name "
        "under configs/, of which a few steps are trained here",
    )
    takes_bindings(sub)
    sub.add_argument("--rows", type=int, default=10, help="modules that are shown")
    sub.add_argument(
        "--steps", type=int, help="number of steps of a config to trace; default: 5"
    )
    sub.add_argument(
        "--devices", type=int, help="number of virtual CPU devices for a config"
    )
    sub.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder to keep the trace of a config in; must be new or empty",
    )

    sub = verb("import", "Import a Hugging Face folder as a run directory.")
    sub.add_argument("hf_dir", help="a folder with config.json and *.safetensors")
    sub.add_argument("run_dir", help="the run directory to write; must be new")
    sub.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="key of config.json or generation_config.json that is unknown to fmjax "
        "and that you know to have no effect; may be repeated",
    )

    sub = verb("export", "Export a run as a Hugging Face folder.")
    takes_run(sub)
    takes_trust(sub)
    sub.add_argument("hf_dir", help="the folder to write; must be new")
    sub.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="dtype of the weights; default: that of the imported folder, or float32",
    )
    sub.add_argument(
        "--max_shard_gb",
        type=float,
        default=5,
        help="maximum size of a file of weights, in GB",
    )
    sub.add_argument(
        "--model_type",
        help="model_type of the Hugging Face folder, if several fit the model",
    )
    sub.add_argument(
        "--license", help="license of the model, for its card, such as apache-2.0"
    )
    sub.add_argument(
        "--language",
        action="append",
        default=[],
        help="language of the model, for its card, such as en; may be repeated",
    )
    return parser

"""The verb `eval`: evaluates a run on its validation split."""

import argparse
import json
import pathlib

from fmjax.cli.adapters import adapter_run, takes_adapter
from fmjax.cli.arguments import Verbs, add_verb, takes_bindings, takes_run
from fmjax.errors import UserError


def add(verbs: Verbs) -> None:
    """Adds the verb `eval`."""
    sub = add_verb(
        verbs, "eval", "Evaluate a run on its validation split.", _eval, computes=True
    )
    takes_run(sub)
    takes_bindings(sub)
    takes_adapter(sub, "adapters to evaluate on the data of the run")
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
    sub.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="also write the results there"
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


def _eval(args: argparse.Namespace) -> None:
    import jax

    from fmjax.evaluation.validation import evaluate_run
    from fmjax.run.best_step import chosen_step
    from fmjax.storage import objects
    from fmjax.storage.paths import as_path

    step = chosen_step(as_path(args.run_dir), args.step, args.trust)
    which = {"step": step, "bindings": args.bindings, "trust": args.trust}
    names = ("beams", "length_penalty", "max_tokens")
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if given and not args.bleu:
        raise UserError(f"--{next(iter(given))} has an effect only with --bleu.")
    if args.adapter and (measured := args.bleu * ["bleu"] + (args.measures or [])):
        raise UserError(
            f"--{measured[0]} has no --adapter; expected the run directory of the "
            f"adapters: fmjax eval {args.adapter} --{measured[0]}."
        )
    values = {}
    if args.bleu:
        from fmjax.evaluation.bleu import bleu_of_run

        values = bleu_of_run(args.run_dir, **which, **given)
    if args.measures:
        from fmjax.evaluation.image_measures import measure_images

        values |= measure_images(args.run_dir, args.measures, **which)
    if args.adapter is None:
        values |= evaluate_run(args.run_dir, **which)
    else:
        with adapter_run(args.adapter, args.run_dir, step, args.trust) as adapter:
            values |= evaluate_run(args.run_dir, adapter=adapter, **which)
    text = json.dumps(values, indent=2)
    print(text)
    # On several hosts all have the same results.
    if args.json and jax.process_index() == 0:
        objects.write(args.json, f"{text}\n".encode())

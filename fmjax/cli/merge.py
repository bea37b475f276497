"""The verb `merge`: whole weights of a run of adapters, or of several."""

import argparse

from fmjax.cli.arguments import Verbs, add_verb, takes_no_comparison, takes_trust


def add(verbs: Verbs) -> None:
    """Adds the verb `merge`."""
    sub = add_verb(
        verbs,
        "merge",
        "Merge adapters into the weights of their base, as a new run directory.",
        _merge,
    )
    sub.add_argument(
        "runs",
        nargs="+",
        metavar="run_dir",
        help="run directories of adapters of one base",
    )
    sub.add_argument("new_dir", help="the run directory to write; must be new")
    sub.add_argument(
        "--weights",
        type=float,
        nargs="+",
        help="of several runs, what the change of each is multiplied by",
    )
    sub.add_argument(
        "--step", type=int, help="step of the checkpoint; default: the newest"
    )
    sub.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="dtype of the parameters; default: float32, others round the changes",
    )
    takes_no_comparison(sub)
    takes_trust(sub)


def _merge(args: argparse.Namespace) -> None:
    from fmjax.run.merge import merge_runs

    notes = merge_runs(
        args.runs,
        args.new_dir,
        weights=args.weights,
        step=args.step,
        dtype=args.dtype,
        trust=args.trust,
    )
    print(f"merged {', '.join(args.runs)} into {args.new_dir}")
    print("\n".join(notes), flush=True)
    if len(args.runs) > 1 or args.no_comparison:
        return
    from fmjax.evaluation.merge_damage import describe, merge_damage
    from fmjax.run.directory import stored_experiment
    from fmjax.storage.paths import as_path

    (run,) = args.runs
    coded = stored_experiment(as_path(run), args.trust).peft.coding is not None
    if not coded and args.dtype == "float32":
        return  # Equal to the rounding of float32.
    damage = merge_damage(run, args.new_dir, step=args.step, trust=args.trust)
    print(describe(damage))

"""The verbs `import` and `export`: Hugging Face folders, and adapters of peft."""

import argparse

from fmjax.cli.arguments import (
    Verbs,
    add_verb,
    takes_no_comparison,
    takes_run,
    takes_trust,
)
from fmjax.errors import UserError


def add(verbs: Verbs) -> None:
    """Adds the verbs `import` and `export`."""
    sub = add_verb(
        verbs, "import", "Import a Hugging Face folder as a run directory.", _import
    )
    sub.add_argument(
        "hf_dir", help="a folder of transformers, of Meta's Llama, of T5X, or of peft"
    )
    sub.add_argument("run_dir", help="the run directory to write; must be new")
    sub.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="key of config.json, generation_config.json or adapter_config.json that "
        "is unknown to fmjax and that you know to have no effect; may be repeated",
    )
    sub.add_argument(
        "--adapter",
        action="store_true",
        help="import an adapter of peft on top of --base",
    )
    sub.add_argument(
        "--base",
        metavar="RUN",
        help="run directory of the model that the adapter was trained on",
    )
    takes_trust(sub)
    sub.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="dtype of the parameters in the run directory, and of its exports; "
        "default: float32, and for exports that of the imported folder",
    )

    sub = add_verb(verbs, "export", "Export a run as a Hugging Face folder.", _export)
    takes_run(sub)
    takes_trust(sub)
    sub.add_argument("hf_dir", help="the folder to write; must be new")
    sub.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="dtype of the weights; default: that of the imported folder, or float32",
    )
    how = sub.add_mutually_exclusive_group()
    how.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapters of the run as files of peft",
    )
    how.add_argument(
        "--merged",
        action="store_true",
        help="write a model with the adapters of the run in its weights",
    )
    takes_no_comparison(sub)
    sub.add_argument(
        "--base_model",
        metavar="NAME",
        help="with --adapter, the name or folder of the base in transformers",
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


def _import(args: argparse.Namespace) -> None:
    from fmjax.interop.hugging_face import import_model
    from fmjax.interop.peft.import_adapter import import_adapter

    if args.adapter != (args.base is not None):
        raise UserError(
            "--adapter and --base belong together: an adapter of peft is imported on "
            "top of the run directory of its base."
        )
    if args.adapter:
        if args.dtype:
            raise UserError("--dtype has no effect with --adapter, which is float32.")
        lines = import_adapter(
            args.hf_dir, args.run_dir, args.base, ignore=args.ignore, trust=args.trust
        )
    else:
        report = import_model(
            args.hf_dir, args.run_dir, ignore=args.ignore, dtype=args.dtype
        )
        lines = report.lines
    print(f"imported {args.hf_dir} into {args.run_dir}")
    print("\n".join(lines))


def _export(args: argparse.Namespace) -> None:
    from fmjax.interop.export import export_model
    from fmjax.interop.peft.export_adapter import export_adapter

    which = {"step": args.step, "dtype": args.dtype, "trust": args.trust}
    if args.base_model and not args.adapter:
        raise UserError("--base_model has an effect only with --adapter.")
    if args.no_comparison and not args.merged:
        raise UserError("--no_comparison has an effect only with --merged.")
    if args.adapter:
        notes = export_adapter(
            args.run_dir, args.hf_dir, base_model=args.base_model, **which
        )
    else:
        notes = export_model(
            args.run_dir,
            args.hf_dir,
            max_shard_bytes=int(args.max_shard_gb * 1e9),
            model_type=args.model_type,
            license=args.license,
            languages=args.language,
            merged=args.merged,
            **which,
        )
    print(f"exported {args.run_dir} into {args.hf_dir}")
    print("\n".join(notes), flush=True)
    if args.merged and not args.no_comparison:
        _compare(args)


def _compare(args: argparse.Namespace) -> None:
    """Prints what an export has done to merged weights, if it has rounded them."""
    from fmjax.evaluation.merge_damage import describe, export_damage
    from fmjax.interop.export import exported_dtype
    from fmjax.run.directory import stored_experiment
    from fmjax.storage.paths import as_path

    experiment = stored_experiment(as_path(args.run_dir), args.trust)
    dtype = exported_dtype(experiment, args.dtype)
    if experiment.peft.coding is None and dtype == "float32":
        return  # Equal to the rounding of float32.
    which = {"step": args.step, "trust": args.trust}
    print(describe(export_damage(args.run_dir, dtype, **which)))

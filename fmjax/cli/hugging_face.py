"""The verbs `import` and `export`: Hugging Face folders."""

import argparse

from fmjax.cli.arguments import Verbs, add_verb, takes_run, takes_trust


def add(verbs: Verbs) -> None:
    """Adds the verbs `import` and `export`."""
    sub = add_verb(
        verbs, "import", "Import a Hugging Face folder as a run directory.", _import
    )
    sub.add_argument(
        "hf_dir", help="a folder of transformers, of Meta's Llama, or of T5X"
    )
    sub.add_argument("run_dir", help="the run directory to write; must be new")
    sub.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="key of config.json or generation_config.json that is unknown to fmjax "
        "and that you know to have no effect; may be repeated",
    )
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

    report = import_model(
        args.hf_dir, args.run_dir, ignore=args.ignore, dtype=args.dtype
    )
    print(f"imported {args.hf_dir} into {args.run_dir}")
    print("\n".join(report.lines))


def _export(args: argparse.Namespace) -> None:
    from fmjax.interop.export import export_model

    notes = export_model(
        args.run_dir,
        args.hf_dir,
        step=args.step,
        dtype=args.dtype,
        max_shard_bytes=int(args.max_shard_gb * 1e9),
        model_type=args.model_type,
        trust=args.trust,
        license=args.license,
        languages=args.language,
    )
    print(f"exported {args.run_dir} into {args.hf_dir}")
    print("\n".join(notes))

"""The verb `runs`: lists, tags and promotes the runs of a folder."""

import argparse

from fmjax.cli.arguments import Verbs, add_action, add_verb


def add(verbs: Verbs) -> None:
    """Adds the verb `runs`."""
    sub = add_verb(verbs, "runs", "List, tag and promote the runs of a folder.", _runs)
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")
    sub = add_action(actions, "list", "Print a table of the runs in a folder.")
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
        sub = add_action(actions, name, text)
        sub.add_argument("run_dir", help="a run directory")
        sub.add_argument("names", nargs="+", metavar="TAG")
    sub = add_action(actions, "promote", "Give a checkpoint of a run a stage.")
    sub.add_argument("run_dir", help="a run directory")
    sub.add_argument("stage", choices=["candidate", "staging", "production", "none"])
    sub.add_argument(
        "--step", type=int, help="step of the checkpoint; default: the newest"
    )
    sub.add_argument("--note", default="", help="why, for the history")


def _runs(args: argparse.Namespace) -> None:
    from fmjax.run import registry

    if args.action == "list":
        from fmjax.evaluation.runs import list_runs

        list_runs(args.folder, args.filter, args.sort, args.reverse, args.json)
        return
    from fmjax.storage.paths import given_path

    run_dir = given_path(args.run_dir)
    if args.action == "promote":
        kept = registry.promote(run_dir, args.stage, args.step, args.note)
        stage = f"{kept.stage} at step {kept.step}" if kept.stage else "without a stage"
        print(f"{run_dir} is {stage}")
        for other in registry.same_stage(run_dir, kept.stage) if kept.stage else ():
            print(f"also {kept.stage}: {other}")
        return
    change = registry.tag if args.action == "tag" else registry.untag
    print(f"{run_dir}: {', '.join(change(run_dir, args.names).tags) or 'no tags'}")

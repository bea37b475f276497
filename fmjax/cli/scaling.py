"""The verb `scaling`: fitted laws, sizes, and checks of coordinates."""

import argparse
import json
import pathlib
import signal
import sys

from fmjax.cli.arguments import Verbs, add_verb
from fmjax.cli.scaling_arguments import add_actions
from fmjax.errors import UserError, suggest
from fmjax.evaluation.figure_files import save_figure
from fmjax.launch.exit_codes import UNFINISHED

_PLAIN_WIDTH = 120  # columns if the output is not a terminal


def add(verbs: Verbs) -> None:
    """Adds the verb `scaling`."""
    text = "Fit scaling laws, size models, check coordinates."
    add_actions(add_verb(verbs, "scaling", text, _scaling))


def _scaling(args: argparse.Namespace) -> int | None:
    """Fits a law, sizes a model, trains a ladder, or checks coordinates.

    Returns:
      The exit code, if it is not 0.

    Raises:
      UserError: the points, the law or the options do not fit.
    """
    from rich.console import Console

    for name in ("json", "plot"):
        path = getattr(args, name, None)
        if path is not None and not path.parent.is_dir():
            raise UserError(
                f"--{name} {path}: expected a file in a folder that exists."
            )
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    console = Console(width=width, highlight=False, markup=False)
    actions = {"fit": _fit, "size": _size, "run": _run, "coordinates": _coordinates}
    return actions[args.action](args, console)


def _fit(args, console) -> None:
    import jax

    # A fit of a few numbers is faster without chips.
    jax.config.update("jax_platforms", "cpu")
    from rich.console import Console

    from fmjax.scaling import fit, frontier, law_files, plots, report
    from fmjax.scaling.forms import FORMS
    from fmjax.scaling.points import QUANTITIES, read_points

    laws = (*FORMS, "isoflop", "envelope")
    if args.law not in laws:
        raise UserError(
            f"--law {args.law}: expected one of {', '.join(laws)}."
            f"{suggest(args.law, laws)}"
        )
    if args.bootstrap < 0:
        raise UserError(f"--bootstrap {args.bootstrap}: expected 0 or more.")
    if args.budgets and args.law != "isoflop":
        raise UserError(
            f"--budgets: expected them with --law isoflop alone, not {args.law}."
        )
    if not args.delta > 0:
        raise UserError(f"--delta {args.delta}: expected a positive number.")
    columns = {name: getattr(args, name) for name in QUANTITIES}
    given = {name: column for name, column in columns.items() if column}
    points = read_points(args.points, given, args.without_highest)
    sampling = {"bootstrap": args.bootstrap, "seed": args.seed}
    what = f"fitting {args.law} to {len(points)} points and {args.bootstrap} resamples"
    with Console(stderr=True).status(what):
        if args.law == "isoflop":
            found = frontier.fit_isoflop(points, **sampling, budgets=args.budgets)
        elif args.law == "envelope":
            found = frontier.fit_envelope(points, **sampling)
        else:
            found = fit.fit_law(args.law, points, **sampling, delta=args.delta)
    report.show_fit(found, len(points), console)
    if args.json:
        law_files.write_fit(found, args.json)
    if args.plot:
        save_figure(plots.plot_fit(found, points), args.plot)


def _size(args, console) -> None:
    from fmjax.scaling import law_files, plots, report, sizing

    if not args.tolerance > 0:
        raise UserError(f"--tolerance {args.tolerance}: expected a positive number.")
    chips, flops = _chips(args), args.flops
    if args.hours is not None:
        if chips is None:
            raise UserError(f"--hours {args.hours:g}: expected with --chips.")
        if flops is not None:
            raise UserError(f"--hours {args.hours:g}: expected without --flops.")
        flops = chips.flops(args.hours)
    law = law_files.find_law(args.law)
    asked = (flops, args.parameters, args.tokens, args.unique_tokens)
    size, repetition = sizing.size(law, *asked, args.tolerance)
    if args.plot and size is None:
        raise UserError("--plot: expected a budget, as --flops or --parameters give.")
    label = pathlib.Path(args.law).name
    shown = label, law, size, repetition, args.tolerance, chips
    report.show_size(*shown, console)
    if args.json:
        text = json.dumps(report.size_json(*shown), indent=2) + "\n"
        try:
            args.json.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--json {args.json} cannot be written: {error.strerror}."
            ) from None
    if args.plot:
        figure = plots.plot_size(law, size, repetition, args.tolerance)
        save_figure(figure, args.plot)


def _run(args, console) -> int | None:
    import jax

    # Chips are the runs'.
    jax.config.update("jax_platforms", "cpu")
    # As Ctrl-C: the runs save and stop.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(UNFINISHED))
    from fmjax.config.files import find
    from fmjax.config.load import LADDER, load_part
    from fmjax.scaling.ladder import PICTURE, Ladder
    from fmjax.scaling.ladder_plot import plot_ladder

    config = load_part(LADDER, args.config, args.bindings)
    near = find(args.config, pathlib.Path.cwd()).parent
    ladder = Ladder(config, args.folder, near, console.print, args.trust)
    try:
        grade = ladder.run()
    except KeyboardInterrupt:
        print("stopped; the same command continues the ladder", file=sys.stderr)
        return UNFINISHED
    console.print(
        f"loss of the target: {grade.measured:.4f}; predicted {grade.predicted:.4f} "
        f"({grade.low:.4f} to {grade.high:.4f}), an error of {grade.error:+.2%}"
    )
    save_figure(plot_ladder(args.folder), args.folder / PICTURE)
    console.print(f"figure: {args.folder / PICTURE}")
    return None


def _coordinates(args, console) -> None:
    from fmjax.config.load import load_experiment
    from fmjax.scaling.coordinate_check import coordinate_check
    from fmjax.scaling.coordinate_view import draw, table

    check = coordinate_check(
        load_experiment(args.config, args.bindings, args.trust),
        widths=args.widths,
        depths=args.depths,
        steps=args.steps,
    )
    console.print(table(check))
    if args.plot:
        draw(check, args.plot)
    if args.json:
        args.json.write_text(json.dumps(check.to_json(), indent=2) + "\n")


def _chips(args):
    from fmjax.scaling import sizing

    if args.chips is None:
        if args.mfu is not None or args.slices != 1:
            option = f"--slices {args.slices}" if args.mfu is None else "--mfu"
            raise UserError(f"{option}: expected with --chips.")
        return None
    mfu = sizing.MFU if args.mfu is None else args.mfu
    return sizing.chips(args.chips, mfu, args.slices)

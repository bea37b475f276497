"""The command `fmjax`: parses arguments, calls the module of the verb and exits.

Exit codes are 0 for success and those of `fmjax.launch.exit_codes`; an unexpected error
exits with 1 and a traceback.
"""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence

from fmjax.cli.arguments import parse
from fmjax.errors import UserError, explained_out_of_memory
from fmjax.launch.exit_codes import (
    BAD_DEVICE,
    CANNOT_JOIN,
    CANNOT_SAVE,
    DIVERGED,
    UNFINISHED,
    USER_ERROR,
)

_BEGAN = time.time()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    args = parse(argv)
    # Called with arguments, it is not the process that begins here.
    args.began = _BEGAN if argv is None else time.time()
    try:
        with explained_out_of_memory():
            return VERBS[args.verb](args) or 0
    except UserError as error:
        print(f"fmjax: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _train(args) -> int:
    # Before the first step there is nothing to save. In a run of several processes
    # JAX's preemption service handles SIGTERM once they have joined.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(UNFINISHED))
    from fmjax.sharding.processes import join_processes, use_virtual_devices

    if args.devices is not None:
        use_virtual_devices(args.devices)
    from fmjax.config.load import load_experiment
    from fmjax.run import train as runs
    from fmjax.run.facts import facts_of
    from fmjax.sharding.rendezvous import CannotJoin
    from fmjax.training.checkpoint.saver import CannotSave
    from fmjax.training.faults.bad_step_log import Diverged
    from fmjax.training.faults.device_check import BadDevice
    from fmjax.training.faults.watchdog import end_process

    codes = {
        Diverged: DIVERGED,
        CannotSave: CANNOT_SAVE,
        BadDevice: BAD_DEVICE,
        CannotJoin: CANNOT_JOIN,
    }
    experiment = load_experiment(args.config, args.bindings, args.trust)
    try:
        join_processes(args.cluster, facts_of(experiment))
        outcome = runs.train(
            experiment,
            args.run_dir,
            override=args.override,
            trust=args.trust,
            on_hang=end_process(UNFINISHED),
            began=args.began,
        )
    except tuple(codes) as error:
        print(f"fmjax: {error}", file=sys.stderr)
        return codes[type(error)]
    return 0 if outcome.finished else UNFINISHED


def _launch(args) -> int:
    from fmjax.cli.launch import run

    return run(args)


def _sweep(args) -> int:
    # As Ctrl-C: the runs save and stop.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(UNFINISHED))
    from fmjax.evaluation.figure_files import check_figure_file, save_figure
    from fmjax.sweeps.plot import plot_sweep
    from fmjax.sweeps.sweep import read_sweep, run_sweep

    if args.plot:
        check_figure_file(args.plot)
    config, near = read_sweep(args.config, args.bindings)
    try:
        rows = run_sweep(config, args.folder, near, trust=args.trust)
    except KeyboardInterrupt:
        print("stopped; the same command continues the sweep", file=sys.stderr)
        return UNFINISHED
    if args.plot:
        save_figure(plot_sweep(config, rows), args.plot)
        print(f"figure: {args.plot}")
    return 0 if any(row.metric is not None for row in rows) else 1


def _plan(args) -> None:
    import jax

    from fmjax.planning.topology import compiler_of, make_topology
    from fmjax.sharding.processes import use_virtual_devices
    from fmjax.sharding.slices import find_chip

    for name in ("json", "hlo"):
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            raise UserError(
                f"--{name} {path}: expected a file in a folder that exists."
            )
    chip = find_chip(args.chip)
    if compiler_of(chip) == "cpu":
        use_virtual_devices(max(1, args.chips) * chip.devices_per_chip)
    # Planning needs compilers of chips, and never the chips.
    jax.config.update("jax_platforms", "cpu")
    from rich.console import Console

    from fmjax.config.load import load_experiment
    from fmjax.planning import report
    from fmjax.planning.apart import Request, plan_apart
    from fmjax.planning.plan import DoesNotFit, make_plan
    from fmjax.planning.search import confirm, search, try_bindings
    from fmjax.training.parametrize import resolve

    say = Console(stderr=True).print
    topology = make_topology(chip, args.chips, args.slices)
    if args.quick and topology.compiler != "tpu":
        raise UserError("--quick: expected a --chip of TPUs, with libtpu installed.")

    def changed(bindings):
        return load_experiment(args.config, [*args.bindings, *bindings], args.trust)

    def here(bindings, hlo=None):
        return make_plan(resolve(changed(bindings)), topology, say, hlo)

    def apart(quick, bindings, hlo=None):
        where = (chip.name, args.chips, args.slices)
        return plan_apart(Request(changed(bindings), *where, hlo, quick))

    def attempt(how, bindings):
        say(f"trying {' '.join(bindings)}")
        return try_bindings(how, bindings)

    quick, whole = (functools.partial(apart, how) for how in (True, False))
    of_trials = quick if topology.compiler == "tpu" else here
    plan, error, trials = None, None, []
    try:
        plan = (quick if args.quick else here)((), args.hlo)
        report.show(plan, Console())
    except DoesNotFit as found:
        error = found
        say(f"{error}; looking for what fits")
    if args.search or error:
        trials = search(
            functools.partial(attempt, of_trials),
            len(topology.devices),
            first_that_fits=not args.search,
        )
        if args.search and of_trials is quick and not args.quick:
            trials = confirm(trials, functools.partial(attempt, whole))
        report.show_trials(trials, Console())
        plan = plan or trials[0].plan
    if args.json and plan is not None:
        found = report.to_json(plan)
        if trials:
            found["trials"] = report.trials_to_json(trials)
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if error:
        raise error


def _eval(args) -> None:
    from fmjax.evaluation.validation import evaluate_run

    which = {"step": args.step, "bindings": args.bindings, "trust": args.trust}
    names = ("beams", "length_penalty", "max_tokens")
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if given and not args.bleu:
        raise UserError(f"--{next(iter(given))} has an effect only with --bleu.")
    values = {}
    if args.bleu:
        from fmjax.evaluation.bleu import bleu_of_run

        values = bleu_of_run(args.run_dir, **which, **given)
    if args.measures:
        from fmjax.evaluation.image_measures import measure_images

        values |= measure_images(args.run_dir, args.measures, **which)
    print(json.dumps(values | evaluate_run(args.run_dir, **which), indent=2))


def _generate(args) -> None:
    from fmjax.inference import generate as texts
    from fmjax.inference.image_files import read_images
    from fmjax.inference.load import load

    if not (args.prompt or args.image):
        raise UserError("neither --prompt nor --image is given; expected at least one.")
    run = load(args.run_dir, step=args.step, trust=args.trust, dtype=args.dtype)
    prompts, images = args.prompt or [""], None
    if args.image:
        images = read_images(run, args.image)
        prompts = prompts * len(images) if len(prompts) == 1 else prompts
    options = {
        "images": images,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "seed": args.seed,
        "beams": args.beams,
        "length_penalty": args.length_penalty,
    }
    for prompt, text in zip(prompts, texts.generate(run, prompts, **options)):
        print(texts.with_prompt(run, prompt, text))


def _data(args) -> None:
    from fmjax.config.load import load_data
    from fmjax.data.inspect.show import cache_folders, show

    data = load_data(args.config, args.bindings, args.trust)
    data.prepare()
    if args.action == "cache":
        print(
            "\n".join(cache_folders(data)) or "nothing to cache: data.streaming = True"
        )
    else:
        show(data, args.examples, args.picture)


def _tokenizer(args) -> None:
    from fmjax.data.tokenizers.vocabularies import train_sentencepiece

    train_sentencepiece(
        tuple(args.files),
        args.vocab_size,
        args.out,
        model_type=args.model_type,
        training_bytes=args.training_bytes,
    )
    print(f"wrote {args.out}; use it with sentencepiece.file={args.out}")


def _config(args) -> None:
    from fmjax.config.load import load_experiment, load_part, part_of
    from fmjax.config.render import render, render_fields
    from fmjax.launch.networks import describe_network
    from fmjax.sharding.xla_options import describe_presets

    if kind := part_of(args.config):
        found = load_part(kind, args.config, args.bindings)
        print("\n".join(render_fields(found)).lstrip())
        if network := getattr(found, "network", None):
            print("\n".join(describe_network(network)))
        return
    print(render(load_experiment(args.config, args.bindings, args.trust)))
    print("\n".join(describe_presets()))


def _help(args) -> None:
    from fmjax.config.reference import help_text, list_text

    print(help_text(args.name) if args.name else list_text())


def _list(args) -> None:
    from fmjax.config.reference import list_text

    print(list_text(args.kind))


def _compare(args) -> None:
    from fmjax.evaluation.compare import compare

    compare(
        args.run_dirs,
        args.plot,
        metric=args.metric,
        trust=args.trust,
        over=args.over,
        importance=args.importance,
    )


def _status(args) -> None:
    from fmjax.run.status import status

    print("\n".join(status(args.run_dir)))


def _watch(args) -> None:
    from fmjax.evaluation.watch import watch

    watch(args.run_dirs, args.seconds, args.until_finished)


def _report(args) -> None:
    from fmjax.evaluation.report import write_report

    print(f"wrote {write_report(args.run_dir, args.out)}")


def _runs(args) -> None:
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


def _scaling(args) -> int | None:
    from fmjax.cli import scaling

    return scaling.run(args)


def _profile(args) -> None:
    from rich.console import Console

    from fmjax.evaluation.profile import read_profile, table

    if os.path.isdir(args.traced) or "://" in args.traced:
        for name in ("bindings", "steps", "devices", "out"):
            if getattr(args, name):
                option = "NAME=VALUE" if name == "bindings" else f"--{name}"
                raise UserError(
                    f"{option} has an effect only with a config; {args.traced} is a "
                    "folder, whose trace is read."
                )
        profile = read_profile(args.traced)
    else:
        profile = _profile_config(args)
    console = Console()
    console.print(f"steps {profile.first} to {profile.last}, by instruction")
    console.print(table(profile, args.rows))


def _profile_config(args):
    from fmjax.sharding.processes import use_virtual_devices

    if args.devices is not None:
        use_virtual_devices(args.devices)
    from fmjax.config.load import load_experiment
    from fmjax.evaluation.profile import profile

    out = args.out
    if out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is not empty; expected a new folder.")
    experiment = load_experiment(args.traced, args.bindings, args.trust)
    return profile(experiment, 5 if args.steps is None else args.steps, out)


def _fork(args) -> None:
    from fmjax.run.fork import fork

    step = fork(args.run_dir, args.new_dir, args.step)
    print(
        f"{args.new_dir} continues {args.run_dir} from step {step}: train it with the "
        "same config, or with another one and --override"
    )


def _import(args) -> None:
    from fmjax.interop.hugging_face import import_model

    left_out = import_model(args.hf_dir, args.run_dir, ignore=args.ignore)
    print(f"imported {args.hf_dir} into {args.run_dir}")
    if args.ignore:
        print(f"ignored because of --ignore: {', '.join(args.ignore)}")
    if left_out:
        print(f"not imported (weights of other heads): {', '.join(left_out)}")


def _export(args) -> None:
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


VERBS = {
    "train": _train,
    "launch": _launch,
    "fork": _fork,
    "sweep": _sweep,
    "plan": _plan,
    "eval": _eval,
    "generate": _generate,
    "data": _data,
    "tokenizer": _tokenizer,
    "config": _config,
    "help": _help,
    "list": _list,
    "compare": _compare,
    "status": _status,
    "watch": _watch,
    "report": _report,
    "runs": _runs,
    "scaling": _scaling,
    "profile": _profile,
    "import": _import,
    "export": _export,
}


if __name__ == "__main__":
    sys.exit(main())

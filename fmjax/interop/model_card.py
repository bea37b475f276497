"""The model card of an export: README.md with Hugging Face's metadata.

It states what the run records and the config says. What is not known is called "not
stated", or left out of the metadata.
"""

import contextlib
import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.config.changed_fields import changed_fields
from fmjax.data.tasks.mixture import Mixture
from fmjax.errors import UserError
from fmjax.run import registry
from fmjax.run.curves import as_number
from fmjax.run.record import RunRecord, printable
from fmjax.run.status import utilization
from fmjax.training.experiment import Experiment
from fmjax.training.reporting import metrics

FILE = "README.md"
NOT_STATED = "not stated"
_TEMPLATE = pathlib.Path(__file__).parent / "templates" / "model_card.md"
# Ends of the names of transformers' classes → tasks of the Hub.
_PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "CLIPModel": "zero-shot-image-classification",
    "SiglipModel": "zero-shot-image-classification",
    "Siglip2Model": "zero-shot-image-classification",
}
_BASELINE = "unigram_"  # not the model's
# Numbers of a validation that are no results.
_ASIDE = {"step", "split", "time", "seconds", "epoch"}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
      model_type: of config.json.
      architecture: name of transformers' class.
      dtype: of the weights.
      parameters: number of values in the files of weights.
      step: of the checkpoint.
      averaged: whether the parameters are averages over steps.
      has_tokenizer: whether there are a tokenizer's files.
    """

    model_type: str
    architecture: str
    dtype: str
    parameters: int
    step: int
    averaged: bool
    has_tokenizer: bool


def write(
    folder: pathlib.Path,
    run_dir: pathlib.Path,
    experiment: Experiment,
    exported: Exported,
    license: str | None = None,
    languages: Sequence[str] = (),
) -> None:
    """Writes README.md.

    Args:
      folder: the exported one.
      run_dir: of the run.
      experiment: of the run.
      exported: what else is in the folder.
      license: of the model, an identifier of the Hub such as "apache-2.0"; None if not
        stated.
      languages: codes of ISO 639, such as "en".
    """
    # Imported here, since they take time and only an export needs them.
    import jinja2
    from huggingface_hub import ModelCardData

    record = RunRecord(run_dir)
    tasks = _tasks(experiment)
    # The run's file has no line for a checkpoint that was not evaluated.
    measures = _measures(run_dir, exported.step)
    own = {n: x for n, x in measures.items() if not n.startswith(_BASELINE)}
    name = run_dir.name
    validation = _tasks(experiment, "validation") or tasks
    split = ", ".join(task.name for task, _ in validation)
    data = ModelCardData(
        library_name="transformers",
        tags=["fmjax", exported.model_type],
        license=license,
        language=list(languages) or None,
        pipeline_tag=_pipeline(exported.architecture),
        model_name=name,
        metrics=list(own) or None,
        eval_results=_results(own, exported, experiment, split) or None,
    )
    content = {
        "metadata": data.to_yaml().strip(),
        "name": _inline(name),
        "summary": _summary(experiment),
        "facts": _facts(record, exported, license, languages),
        "architecture": exported.architecture,
        "has_tokenizer": exported.has_tokenizer,
        "datasets": [_dataset(task, rate) for task, rate in tasks],
        "origins": _origins(experiment),
        "training": _training(record, experiment, exported.step),
        "changed": [
            (field, value)
            for field, value, _ in changed_fields(record.bindings, everything=False)
        ]
        if experiment.optimizer is not None
        else [],
        "validation": _evaluated_on(experiment, exported.step, split),
        "step": f"{exported.step:,}",
        "measures": [(name, f"{value:.4g}") for name, value in measures.items()],
    }
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    (folder / FILE).write_text(template.render(content), encoding="utf-8")


def _pipeline(architecture: str) -> str | None:
    ends = (task for end, task in _PIPELINES.items() if architecture.endswith(end))
    return next(ends, None)


def _summary(experiment: Experiment) -> str:
    objective = experiment.objective
    kind = f"A `{objective.model.gin_name}` of fmjax"
    if experiment.optimizer is None:
        return f"{kind}, imported and not trained since."
    return f"{kind}, trained with the objective `{objective.gin_name}`."


def _facts(
    record: RunRecord,
    exported: Exported,
    license: str | None,
    languages: Sequence[str],
) -> list[tuple[str, str]]:
    averaged = ", averaged over steps" if exported.averaged else ""
    facts = [
        ("Parameters", f"{exported.parameters:,}, {exported.dtype}{averaged}"),
        ("Architecture", f"`{exported.architecture}` (`{exported.model_type}`)"),
        ("Checkpoint", f"step {exported.step:,}"),
        ("License of the model", license or NOT_STATED),
        ("Languages", ", ".join(languages) or NOT_STATED),
    ]
    # A damaged registry is no reason to refuse an export.
    with contextlib.suppress(UserError):
        kept = registry.read(record.run_dir)
        if kept.stage and kept.step == exported.step:
            facts.append(("Stage", kept.stage))
    return facts


def _tasks(experiment: Experiment, split: str = "train") -> list[tuple[Any, float]]:
    """The tasks of a split, each with its share of the rows; none if unknown."""
    # Data of a user's own class need not have tasks.
    task = getattr(experiment.data, split, None)
    return [] if task is None else _shares(task)


def _shares(task: Any) -> list[tuple[Any, float]]:
    if not isinstance(task, Mixture):
        return [(task, 1.0)]
    return [(t, r / sum(task.rates)) for t, r in zip(task.tasks, task.rates)]


def _dataset(task: Any, share: float) -> list[str]:
    source = getattr(task, "source", None)
    kind = (source or task).gin_name
    # Names of public datasets; paths of the machine are nobody's concern.
    public = getattr(source, "name", None)
    text = f"`{kind}`" + (f" `{public}`" if isinstance(public, str) else "")
    stated = (getattr(task, name, None) for name in ("license", "description"))
    known = (text or NOT_STATED for text in stated)
    return [f"`{task.name}`", text, f"{share:.1%}", *known]


def _seen(record: RunRecord, step: int) -> list[str]:
    """How much data the run had seen at a step."""
    unit = record.curves.unit
    lines = []
    for name, form in (
        (f"{unit}_seen", f"{{:,.0f}} {unit}"),
        ("epoch", "{:.3g} epochs"),
    ):
        steps, values = record.curves.series("train", name)
        known = values[(steps == step) & np.isfinite(values)]
        lines += [form.format(known[-1])] if len(known) else []
    return lines


def _evaluated_on(experiment: Experiment, step: int, split: str) -> str:
    train = experiment.train
    part = ""
    if train.eval_batches and step < train.steps:
        part = f"{train.eval_batches:,} batches of "
    return f"{part}the validation split of {split or 'its data'}"


def _origins(experiment: Experiment) -> list[str]:
    lines = []
    for wanted in experiment.init_from:
        name = _inline(pathlib.Path(wanted.run).name)
        lines.append(
            f"Initial parameters were taken from another run, `{name}`; its data and "
            "licenses concern this model too."
        )
    if (imported := experiment.imported) is None:
        return lines
    lines.append(
        "The model, or what it was initialized from, was imported from a Hugging "
        "Face folder, whose own card and license apply too."
    )
    if imported.ignoring:
        names = ", ".join(f"`{name}`" for name in imported.ignoring)
        lines.append(
            f"Options of that folder that the import was told to ignore: {names}."
        )
    if imported.quantization is not None:
        lines.append(
            "That folder's weights were quantized and were dequantized on import: "
            f"{_inline(imported.quantization)}."
        )
    return lines


def _training(record: RunRecord, experiment: Experiment, step: int) -> list[str]:
    """What the run says of its training and its cost."""
    if experiment.optimizer is None:
        return ["None by fmjax."]
    train = experiment.train
    optimizer = experiment.optimizer
    size = f"{step:,} steps of {train.batch_size:,} rows"
    lines = [
        f"{', '.join([size, *_seen(record, step)])}; seed {train.seed}",
        f"optimizer `{optimizer.gin_name}`, schedule `{optimizer.schedule.gin_name}`",
    ]
    kinds = {
        f"{s['devices']} × {s.get('device_kind', 'device')}" for s in record.starts
    }
    lines.append(f"devices: {', '.join(sorted(kinds)) or NOT_STATED}")
    seconds = record.device_seconds
    hours = NOT_STATED if seconds is None else f"{seconds / 3600:,.3g}"
    lines.append(f"device-hours of the whole run, over all its starts: {hours}")
    total = record.account.total
    goodput = f"{record.account.goodput:.1%}" if total else NOT_STATED
    lines.append(f"goodput, the share of the time that went into steps kept: {goodput}")
    lines.append(f"energy and emissions: {NOT_STATED}")
    medians = {
        name: float(np.nanmedian(values))
        for name in ("mfu", "causal_mfu")
        if np.isfinite(values := record.curves.series("train", name)[1]).any()
    }
    if known := utilization(medians):
        lines.append(f"median of model FLOPs utilization: {', '.join(known)}")
    lines.append(f"software: {_software(record)}")
    return lines


def _software(record: RunRecord) -> str:
    last = record.starts[-1] if record.starts else {}
    versions = last.get("versions")
    if not isinstance(versions, dict):
        return f"fmjax {importlib.metadata.version('fmjax')} exported it"
    return _inline(", ".join(f"{name} {text}" for name, text in versions.items()))


def _measures(run_dir: pathlib.Path, step: int) -> dict[str, float]:
    """Numbers of the validation at a step, by name."""
    if not (run_dir / metrics.FILE).is_file():
        return {}
    lines = [x for x in metrics.read(run_dir, "validation") if x["step"] == step]
    found = {name: as_number(x) for name, x in lines[-1].items()} if lines else {}
    sizes = {"tokens", "images", "pairs"}
    sizes |= {f"{unit}_seen" for unit in sizes}
    return {
        name: value
        for name, value in found.items()
        if value is not None and name not in _ASIDE | sizes
    }


def _results(
    measures: dict[str, float], exported: Exported, experiment: Experiment, split: str
) -> list:
    """The figures as Hugging Face's model-index."""
    from huggingface_hub import EvalResult

    task = _pipeline(exported.architecture) or experiment.objective.gin_name
    return [
        EvalResult(
            task_type=task,
            dataset_type=split or NOT_STATED,
            dataset_name=split or NOT_STATED,
            dataset_split="validation",
            metric_type=name,
            metric_name=name,
            metric_value=value,
        )
        for name, value in measures.items()
    ]


def _inline(text: str) -> str:
    """Text in a line, without what Markdown would read."""
    plain = printable(" ".join(str(text).split()))
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#" else c for c in plain)


def _cell(text: str) -> str:
    """Text in a cell of a table; code stays code."""
    plain = printable(" ".join(str(text).split()))
    return plain.replace("|", "\\|").replace("<", "&lt;")

"""The report of a run: one HTML file that needs neither a network nor other files."""

import base64
import collections
import importlib.metadata
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from fmjax.config.changed_fields import changed_fields
from fmjax.errors import UserError
from fmjax.evaluation.report_plots import plots
from fmjax.objectives.terms import UNITS
from fmjax.run.curves import Curves, as_number
from fmjax.run.directory import CONFIG
from fmjax.run.lock import format_seconds
from fmjax.run.record import RunRecord, printable
from fmjax.run.status import parts
from fmjax.storage.objects import local_copy
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.saved_state import Damaged, SavedState
from fmjax.training.reporting import metrics
from fmjax.training.reporting.goodput import STEPS, Account

FILE = "report.html"
_GENERATOR = "fmjax report"  # tells a report from any other file
_TEMPLATE = pathlib.Path(__file__).parent / "templates" / "report.html"
_EVENTS = 200  # the newest ones that are shown
_PICTURES_OF_A_NAME, _PICTURE_BYTES = 3, 10**7
_TONES = {"finished": "good", "running": "good"} | dict.fromkeys(
    ("diverged", "hung", "killed"), "bad"
)
_STEPS_COLOR = "#3a8f5c"
_COLORS = (
    "#c8641b", "#6b5bb5", "#c23b6d", "#2e8ea8", "#b39322", "#7a5c45", "#5f7285",
    "#9c4fb0", "#8b9a2f",
)  # fmt: skip


def write_report(
    run_dir: str | os.PathLike, out: str | os.PathLike | None = None
) -> pathlib.Path:
    """Writes what is known of a run as an HTML file.

    The config is read as text, so the Python modules that it imports are not needed.

    Args:
      run_dir: a run directory.
      out: the file; None for report.html in the run directory. A report that is there
        is replaced.

    Returns:
      The file.

    Raises:
      UserError: it is not a run directory; or the file exists and is no report, or
        cannot be written.
    """
    record = RunRecord(run_dir).checked()
    if out is None and is_bucket(record.run_dir):
        raise UserError("--out: expected a local file, as the run is in a bucket.")
    file = record.run_dir / FILE if out is None else pathlib.Path(out).expanduser()
    _check_replaceable(file)
    page = _render(_content(record))
    # The old report stays whole if the disk is full.
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"--out {file} cannot be written: {error.strerror}.") from None
    return file


def _check_replaceable(file: pathlib.Path) -> None:
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: expected a file in a folder that exists.")
    if not file.exists():
        return
    try:
        with file.open("rb") as old:
            is_report = f'content="{_GENERATOR}"'.encode() in old.read(2000)
    except OSError:
        is_report = False
    if not is_report:
        raise UserError(
            f"--out {file} exists and is not a report of fmjax; expected a new file, "
            "or a report to replace."
        )


def _render(content: dict[str, Any]) -> str:
    # Imported here, since every command imports this module.
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return "\n".join(map(printable, value.replace("\t", "    ").split("\n")))

    environment = jinja2.Environment(
        autoescape=True, finalize=shown, undefined=jinja2.StrictUndefined
    )
    drawn = [plot._replace(svg=Markup(plot.svg)) for plot in content["plots"]]
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(content | {"plots": drawn})


def _content(record: RunRecord) -> dict[str, Any]:
    state, account = record.state, record.account
    back = ("resumed", "rollback")
    marks = [event["step"] for event in record.events if event["kind"] in back]
    columns, rows = _validations(record.curves)
    with local_copy(record.run_dir / metrics.PICTURES) as folder:
        pictures, left_out = _pictures(folder)
    return {
        "generator": _GENERATOR,
        "name": as_path(record.run_dir).name,
        "path": str(as_path(record.run_dir)),
        "state": state,
        "tone": _TONES.get(state.kind, "open"),
        "parts": parts(record),
        "figures": _figures(record),
        "plots": plots(record.curves, marks),
        "marks": marks,
        "goodput": f"{account.goodput:.1%}",
        "total": format_seconds(account.total),
        "causes": _causes(account),
        "columns": columns,
        "validations": rows,
        "samples": _samples(record.run_dir),
        "pictures": pictures,
        "pictures_left_out": left_out,
        "events": [_event(event) for event in record.events[-_EVENTS:]],
        "events_left_out": max(0, len(record.events) - _EVENTS),
        "starts": [_start(start) for start in record.starts],
        "versions": _versions(record),
        "changed": changed_fields(record.bindings),
        "config": (record.run_dir / CONFIG).read_bytes().decode(errors="replace"),
        "version": importlib.metadata.version("fmjax"),
        "now": _clock(time.time()),
    }


def _figures(record: RunRecord) -> list[dict[str, str]]:
    """The figures of the run by name, those that are known."""
    curves, found = record.curves, []

    def add(name: str, value: str | None, note: str = "") -> None:
        if value is not None:
            found.append({"name": name, "value": value, "note": note})

    share = f"{record.step / max(record.steps or 1, 1):.0%}"
    add("step", f"{record.step:,}", f"of {record.steps:,}, {share}")
    steps, losses = curves.series("validation", "loss")
    if np.isfinite(losses).any():
        best = int(np.nanargmin(losses))
        add("best validation loss", _number(losses[best]), f"at step {steps[best]:,}")
    for split, text in (("validation", "last validation"), ("train", "training")):
        line = curves.newest.get(split, {})
        if "loss" in line:
            add(f"{text} loss", _number(line["loss"]), f"at step {line['step']:,}")
    for name in _measures(curves):
        add(f"{name}, last validation", _number(curves.newest["validation"][name]))
    unit = curves.unit
    _, speeds = curves.series("train", f"{unit}_per_second")
    if np.isfinite(speeds).any():
        add("speed", f"{np.nanmedian(speeds):,.0f}", f"{unit}/s, median")
    for name, text in (("mfu", "MFU"), ("causal_mfu", "MFU, visible keys alone")):
        _, shares = curves.series("train", name)
        if np.isfinite(shares).any():
            add(text, f"{np.nanmedian(shares):.1%}", "median")
    _, peaks = curves.series("train", "device_memory_peak")
    if np.isfinite(peaks).any():
        add("peak memory", f"{np.nanmax(peaks) / 1e9:,.2f} GB", "of a device")
    last = curves.newest.get("train", {})
    seen = as_number(last.get(f"{unit}_seen"))
    add(f"{unit} seen", None if seen is None else f"{seen:,.0f}")
    epoch = as_number(last.get("epoch"))
    add("epochs", None if epoch is None else f"{epoch:.3g}")
    count = record.parameters
    add("parameters", None if count is None else f"{count:,}")
    hours = record.device_seconds
    add("device-hours", None if hours is None else f"{hours / 3600:,.3g}")
    total = record.account.total
    add("goodput", f"{record.account.goodput:.1%}" if total else None)
    return found


def _measures(curves: Curves) -> list[str]:
    """Names of the metrics of the last validation, besides its loss and its size."""
    aside = {"loss", "time", "seconds", "step", "split", "epoch", *UNITS}
    aside |= {f"{unit}_seen" for unit in UNITS}
    last = curves.newest.get("validation", {})
    same = last.get("loss")
    names = (name for name in curves.names("validation") if name in last)
    return [name for name in names if name not in aside and last[name] != same]


def _validations(curves: Curves) -> tuple[list[str], list[list[str]]]:
    steps, _ = curves.series("validation", "loss")
    names = ["loss", *_measures(curves)]
    tables = {n: dict(zip(*curves.series("validation", n))) for n in names}
    rows = [
        [
            f"{step:,}",
            *(_number(of[step]) if step in of else "" for of in tables.values()),
        ]
        for step in steps.tolist()
    ]
    return ["step", *names], rows


def _causes(account: Account) -> list[dict[str, str]]:
    total = account.total
    if total <= 0:
        return []
    parts = sorted(account.seconds.items(), key=lambda p: (p[0] != STEPS, -p[1]))
    found = []
    for place, (name, seconds) in enumerate(parts):
        color = _COLORS[(place - 1) % len(_COLORS)] if name != STEPS else _STEPS_COLOR
        found.append(
            {
                "name": name,
                "time": format_seconds(seconds),
                "share": f"{seconds / total:.1%}",
                "percent": f"{100 * max(0.0, seconds) / total:.3f}",
                "color": color,
            }
        )
    return found


def _samples(run_dir: pathlib.Path) -> Iterable[dict[str, Any]]:
    """The last text of each name."""
    return {text["name"]: text for text in metrics.read_texts(run_dir)}.values()


def _pictures(folder: pathlib.Path) -> tuple[list[dict[str, str]], str]:
    """The newest pictures of each name as data, and a sentence on those left out."""
    by_name = collections.defaultdict(list)
    files = sorted(folder.glob("*.png"))
    for file in files:
        by_name[file.stem.rpartition("_")[0]].append(file)
    shown, size = [], 0
    for file in [f for of in by_name.values() for f in of[-_PICTURES_OF_A_NAME:]]:
        try:
            data = file.read_bytes()
        except OSError:
            continue
        size += len(data)
        if size > _PICTURE_BYTES:
            break
        text = base64.b64encode(data).decode()
        shown.append({"name": file.name, "data": f"data:image/png;base64,{text}"})
    left = len(files) - len(shown)
    return shown, f"{left} more pictures are in {metrics.PICTURES}/." if left else ""


def _event(event: dict[str, Any]) -> dict[str, Any]:
    return event | {"time": _clock(event["time"]), "step": f"{event['step']:,}"}


def _start(start: dict[str, Any]) -> dict[str, Any]:
    checkouts = start.get("checkouts")
    checkouts = checkouts if isinstance(checkouts, dict) else {}
    return {
        "time": _clock(start["began"]),
        "step": f"{start['step']:,}",
        "devices": f"{start['devices']} × {start.get('device_kind', 'device')}",
        "processes": start.get("processes", ""),
        "command": start.get("command", ""),
        "checkouts": [f"{folder}: {name}" for folder, name in checkouts.items()],
    }


def _versions(record: RunRecord) -> list[tuple[str, str]]:
    """Versions by name, of the last start or else of the newest checkpoint."""
    found: Any = None
    if record.starts:
        last = record.starts[-1]
        found = last.get("versions")
        if isinstance(found, dict) and "python" in last:
            found = {"Python": last["python"]} | found
    elif record.saved:
        try:
            _, meta = SavedState(record.run_dir, record.saved[-1]).read_records()
            found = meta.get("versions")
        except (Damaged, AttributeError):
            found = None
    return list(found.items()) if isinstance(found, dict) else []


def _number(value: Any) -> str:
    """A metric as text; null, which becomes NaN, was not finite."""
    value = as_number(value)
    if value is None:
        return "not finite"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    return time.strftime("%F %T %z", time.localtime(seconds))

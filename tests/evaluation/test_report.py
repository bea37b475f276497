"""Reports of runs that are written by hand, read by another parser of HTML."""

import base64
import io
import json
import re

import lxml.html
import numpy as np
import pytest
from PIL import Image
from written_runs import STARTED, goodput, train, validation, write_run

from fmjax.cli.main import main
from fmjax.errors import UserError
from fmjax.evaluation.report import write_report
from fmjax.training.reporting import metrics

HOSTILE = "<script>alert(1)</script>\"'><img src=http://a.b/c>\x1b"
CHANGED = ("train.steps=400", "cosine.learning_rate=0.0123")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    losses = 8.0 - np.log1p(np.arange(40))
    return write_run(
        tmp_path_factory.mktemp("report") / "run",
        *CHANGED,
        metrics=[
            *(train(10 * (i + 1), loss, mfu=0.25 + i / 1000, causal_mfu=0.2,
                    tokens_seen=20480.0 * (i + 1), epoch=0.01 * i)
              for i, loss in enumerate(losses)),
            validation(100, 6.5, accuracy=0.125),
            validation(200, 4.125, accuracy=0.5),
            validation(300, 4.25, accuracy=0.375),
        ],
        events=[{"kind": "started", "step": 0}, {"kind": "resumed", "step": 200}],
        goodput=[goodput(400, steps=300.0, compilation=60.0, saving=40.0)],
        starts=[{"began": STARTED, "step": 0, "devices": 8, "device_kind": "TPU v5e",
                 "parameters": 123456, "command": "fmjax train a.gin",
                 "versions": {"jax": "0.10.2"}, "python": "3.11.7", "processes": 2,
                 "checkouts": {"/code": "abc-dirty"}}],
        texts=[{"step": 400, "split": "validation", "name": "sample", "time": 1.0,
                "text": "def main():\n    pass"}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(run_dir):
    return page_of(run_dir)


def page_of(run_dir):
    return lxml.html.parse(str(write_report(run_dir))).getroot()


def figures(page) -> dict[str, str]:
    names = page.xpath("//section[@id='results']//dt/text()")
    values = page.xpath("//section[@id='results']//dd/text()[1]")
    return dict(zip(names, (value.strip() for value in values), strict=True))


def rows(page, section: str) -> list[list[str]]:
    found = page.xpath(f"//section[@id='{section}']//tbody/tr")
    return [[cell.text_content().strip() for cell in row] for row in found]


def test_figures_are_those_of_the_metrics(run_dir, page):
    found = figures(page)

    trained, checked = (metrics.read(run_dir, s) for s in ("train", "validation"))
    best = min(line["loss"] for line in checked)
    assert float(found["best validation loss"]) == best == 4.125
    assert float(found["last validation loss"]) == checked[-1]["loss"]
    assert float(found["training loss"]) == pytest.approx(trained[-1]["loss"], abs=5e-5)
    assert float(found["accuracy, last validation"]) == 0.375
    median = np.median([line["mfu"] for line in trained])
    assert float(found["MFU"].rstrip("%")) == pytest.approx(100 * median, abs=0.05)
    assert found["tokens seen"] == "819,200"
    assert found["parameters"] == "123,456"
    assert float(found["device-hours"]) == pytest.approx(400 * 8 / 3600, abs=0.005)
    assert found["goodput"] == "75.0%"


def test_curves_are_those_of_the_metrics(run_dir, page):
    assert page.xpath("//section[@id='curves']//h3/text()") == [
        "loss", "accuracy", "grad_norm", "tokens per second", "learning rate", "MFU",
    ]  # fmt: skip
    svg = page.xpath("//*[local-name()='svg'][@aria-label='loss']")[0]
    curves = [
        np.array(re.findall(r"[ML] (\S+) (\S+)", path.get("d")), float)
        for path in svg.xpath(".//*[local-name()='path'][@clip-path]")
        if "var(--curve-0)" in path.get("style", "")
    ]
    series = [metrics.read(run_dir, split) for split in ("train", "validation")]
    assert [len(curve) for curve in curves] == [len(lines) for lines in series]
    x, y = np.concatenate(curves).T
    for name, drawn, sign in (("step", x, 1), ("loss", y, -1)):
        values = np.array([line[name] for lines in series for line in lines])
        slope, offset = np.polyfit(values, drawn, 1)
        assert np.sign(slope) == sign
        np.testing.assert_allclose(slope * values + offset, drawn, atol=1e-3)


def test_tables_are_those_of_the_files(run_dir, page):

    assert [row[:3] for row in rows(page, "time")] == [
        ["steps", "5 min", "75.0%"],
        ["compilation", "60 s", "15.0%"],
        ["saving", "40 s", "10.0%"],
    ]
    widths = page.xpath("//div[@class='bar']/span/@style")
    shares = [float(re.search(r"width: ([\d.]+)%", style)[1]) for style in widths]
    assert shares == [75.0, 15.0, 10.0]
    assert rows(page, "validation") == [
        ["100", "6.5000", "0.1250"],
        ["200", "4.1250", "0.5000"],
        ["300", "4.2500", "0.3750"],
    ]
    assert [row[1:3] for row in rows(page, "events")] == [
        ["0", "started"], ["200", "resumed"]
    ]  # fmt: skip
    ((_, step, devices, processes, program),) = rows(page, "environment")
    assert (step, devices, processes) == ("0", "8 × TPU v5e", "2")
    assert program == "fmjax train a.gin/code: abc-dirty"
    (versions,) = page.xpath("//section[@id='environment']/p")
    assert versions.text_content() == "Python 3.11.7, jax 0.10.2"
    changed = {row[0]: row[1:] for row in rows(page, "config")}
    assert changed["cosine.learning_rate"] == ["0.0123", "must be bound"]
    assert "train.seed" not in changed
    (config,) = page.xpath("//section[@id='config']//pre")
    assert config.text_content().strip() == (run_dir / "config.gin").read_text().strip()
    (sample,) = page.xpath("//section[@id='samples']//pre")
    assert sample.text == "def main():\n    pass"


def test_the_page_needs_nothing_else(tmp_path):
    lines = [train(step, 3.0 / step) for step in (1, 2, 3)]
    run_dir = write_run(tmp_path / "run", metrics=lines)
    (run_dir / "pictures").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    for step in range(5):
        file = run_dir / "pictures" / f"rebuilt_{step:06d}.png"
        Image.fromarray(picture + step).save(file)

    page = page_of(run_dir)

    assert page.xpath("//script|//link|//iframe|//object|//base|//*[@onload]") == []
    targets = page.xpath("//@src|//@href|//@*[local-name()='xlink:href']")
    assert all(t.startswith(("#", "data:image/png;base64,")) for t in targets)
    ids = page.xpath("//@id")
    assert len(ids) == len({*ids})
    used = [t[1:] for t in targets if t.startswith("#")]
    used += re.findall(r"url\(#([^)]+)\)", lxml.html.tostring(page).decode())
    assert {*used} <= {*ids}
    pictures = [t.partition(",")[2] for t in targets if t.startswith("data:")]
    read = [Image.open(io.BytesIO(base64.b64decode(data))) for data in pictures]
    assert len(read) == 3
    assert (np.asarray(read[-1]) == picture + 4).all()
    assert "2 more pictures" in page.text_content()


def test_what_files_say_is_text(tmp_path):
    run_dir = write_run(
        tmp_path / "<i>run & co",
        metrics=[
            *(train(step, 2.0 + step, **{HOSTILE: 1.0 * step}) for step in (1, 2)),
            validation(2, 2.0, accuracy=0.5),
            validation(3, HOSTILE, accuracy=HOSTILE, tokens=HOSTILE),
            train(3, HOSTILE, tokens_seen=HOSTILE, epoch=[HOSTILE], mfu=HOSTILE),
        ],
        events=[{"kind": HOSTILE, "step": 1, "text": HOSTILE}],
        goodput=[{"time": 2.0, "began": 1.0, "step": 1, "seconds": {HOSTILE: 3.0}}],
        starts=[{"began": 1.0, "step": 0, "devices": 1, "device_kind": HOSTILE,
                 "command": HOSTILE, "versions": {HOSTILE: HOSTILE},
                 "checkouts": {HOSTILE: HOSTILE}, "processes": [HOSTILE]}],
        texts=[{"step": 1, "split": "validation", "name": HOSTILE, "text": HOSTILE}],
    )  # fmt: skip
    with (run_dir / "config.gin").open("a") as file:
        file.write(f"# {HOSTILE}\n")

    page = page_of(run_dir)

    assert page.xpath("//script|//img|//i") == []
    shown = HOSTILE.replace("\x1b", "�")
    assert page.text_content().count(shown) >= 9
    assert page.xpath("//title/text()") == ["<i>run & co – fmjax report"]


def test_a_run_without_results_has_a_report(tmp_path):
    run_dir = write_run(tmp_path / "run")
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "split": "tr')

    page = page_of(run_dir)

    assert figures(page)["step"] == "0"
    assert page.xpath("//svg") == []
    assert "not recorded" in page.text_content()


def test_only_a_report_is_replaced(tmp_path, capsys):
    run_dir = write_run(tmp_path / "run")
    out = tmp_path / "out.html"
    assert main(["report", str(run_dir), "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    before = out.read_text()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(validation(400, 1.5)) + "\n")
    write_report(run_dir, out)
    assert figures(lxml.html.parse(str(out)))["best validation loss"] == "1.5000"
    assert out.read_text() != before

    out.write_text("<html>mine</html>")
    assert main(["report", str(run_dir), "--out", str(out)]) == 2
    assert "is not a report" in capsys.readouterr().err
    assert out.read_text() == "<html>mine</html>"
    with pytest.raises(UserError, match="in a folder that exists"):
        write_report(run_dir, tmp_path / "no" / "out.html")
    with pytest.raises(UserError, match=r"holds no config\.gin"):
        write_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out.html"}


def test_long_curves_keep_their_extremes(tmp_path):
    rng = np.random.default_rng(0)
    losses = rng.normal(3.0, 0.1, 5_000)
    losses[1_234] = 3.7
    run_dir = write_run(
        tmp_path / "run",
        metrics=[train(step, loss) for step, loss in enumerate(losses.tolist(), 1)],
    )

    file = write_report(run_dir)

    assert file.stat().st_size < 800_000
    assert "the maximum is 3.7" in file.read_text()

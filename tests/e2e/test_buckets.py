"""Runs in a bucket of an S3 server: killed, damaged, continued, read."""

import json
import os
import pathlib
import signal
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.s3_server import BUCKET, python_with_s3, s3_server

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return python_with_s3(tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def server(python, tmp_path_factory):
    with s3_server(python, tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def run(python, server, fmjax):
    """Runs `fmjax ARGS` with s3://; the process that has ended."""

    def ended(*args, **environment):
        return fmjax(*args, python=python, **server.environment | environment)

    return ended


@pytest.fixture(scope="module")
def stored(run, tiny):
    """A run in a bucket that nothing disturbed; its folder."""
    ended = run("train", *tiny, "--run_dir", f"s3://{BUCKET}/whole/run")
    assert ended.returncode == 0, ended.stderr
    return "whole/run"


def losses(lines):
    lines = map(json.loads, lines.splitlines())
    return [(line["step"], line["split"], line["loss"]) for line in lines]


def test_a_run_in_a_bucket_has_the_bits_of_one_on_a_disk(finished, stored, server):
    found = server.objects(stored)

    local = (finished / "metrics.jsonl").read_text()
    assert losses(found["metrics.jsonl"]) == losses(local)
    assert found["config.gin"].decode() == (finished / "config.gin").read_text()
    kinds = [json.loads(x)["kind"] for x in found["events.jsonl"].splitlines()]
    assert kinds == ["started", "finished"]
    assert {name for name in found if "lock" in name or "probe" in name} == set()
    assert server.steps(stored) == [140, 160]


def test_a_killed_run_ends_with_the_same_bits(
    finished, tiny, run, server, python, fmjax_until
):
    command = ("train", *tiny, "--run_dir", f"s3://{BUCKET}/runs/killed")
    for step in (20, 60, 100):
        code = fmjax_until(
            lambda step=step: server.steps("runs/killed")[-1:] >= [step],
            signal.SIGKILL, *command, python=python, **server.environment,
        )  # fmt: skip
        assert code == -signal.SIGKILL
        found = server.objects("runs/killed")
        saved = server.steps("runs/killed")[-1]
        kept = [x for x in losses(found["metrics.jsonl"]) if x[0] <= saved]
        assert [step for step, *_ in kept] == [*range(1, saved + 1)]

    again = run(*command)

    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stdout
    local = (finished / "metrics.jsonl").read_text()
    found = server.objects("runs/killed")
    assert losses(found["metrics.jsonl"]) == losses(local)
    halves = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
    assert sorted(map(int, halves)) == server.steps("runs/killed") == [140, 160]


def test_a_damaged_checkpoint_is_set_aside_and_an_older_one_used(
    finished, stored, tiny, run, server
):
    for name, content in server.objects(stored).items():
        server.write("runs/damaged", name, content)
    content = server.objects(f"{stored}/checkpoints/160")
    arrays = max(content, key=lambda name: len(content[name]))
    middle = len(content[arrays]) // 2
    flipped = bytearray(content[arrays])
    flipped[middle] ^= 0x10
    server.write("runs/damaged/checkpoints/160", arrays, bytes(flipped))

    ended = run("train", *tiny, "--run_dir", f"s3://{BUCKET}/runs/damaged")

    assert ended.returncode == 0, ended.stderr
    assert "checkpoint 160 is damaged" in ended.stdout
    assert "resuming from step 140" in ended.stdout
    found = server.objects("runs/damaged")
    assert found[f"damaged/160/{arrays}"] == bytes(flipped)
    local = (finished / "metrics.jsonl").read_text()
    assert losses(found["metrics.jsonl"]) == losses(local)
    assert server.steps("runs/damaged") == [140, 160]


def test_a_run_that_trains_is_refused_to_another(
    tiny, run, server, python, fmjax_until
):
    command = ("train", *tiny, "train.steps=100000", "--run_dir")
    command += (f"s3://{BUCKET}/runs/locked",)
    refused = []

    def another_is_refused():
        if server.steps("runs/locked")[-1:] < [20]:
            return False
        refused.append(run(*command))
        return True

    code = fmjax_until(
        another_is_refused, signal.SIGTERM, *command,
        python=python, **server.environment,
    )  # fmt: skip

    assert code == 75
    assert refused[0].returncode == 2
    assert "is in use: process" in refused[0].stderr
    found = server.objects("runs/locked")
    assert "lock.json" not in found
    last = server.steps("runs/locked")[-1]
    assert losses(found["metrics.jsonl"])[-1][0] == last
    kinds = [json.loads(x)["kind"] for x in found["events.jsonl"].splitlines()]
    assert kinds == ["started", "interrupted"]


def test_commands_that_read_a_run(stored, finished, run, fmjax, tmp_path):
    address = f"s3://{BUCKET}/{stored}"

    status = run("status", address).stdout
    assert "finished" in status
    assert "step 160 of 160 (100%)" in status
    assert "steps 140, 160" in status

    here, there = (e("eval", d).stdout for e, d in ((run, address), (fmjax, finished)))
    assert json.loads(here)["loss"] == json.loads(there)["loss"]

    words = ("--prompt", "def ", "--max_tokens", "20", "--seed", "3")
    here, there = (
        e("generate", d, *words).stdout for e, d in ((run, address), (fmjax, finished))
    )
    assert here == there != ""

    compared = run("compare", address, finished)
    assert compared.returncode == 0, compared.stderr
    assert "whole" in compared.stdout

    watched = run("watch", address)
    assert watched.returncode == 0, watched.stderr
    assert "step 160 of 160" in watched.stdout
    page = tmp_path / "report.html"
    assert run("report", address, "--out", page).returncode == 0
    assert "validation" in page.read_text()
    assert "--out: expected a local file" in run("report", address).stderr

    assert run("runs", "tag", address, "kept").returncode == 0
    assert run("runs", "promote", address, "staging", "--step", "140").returncode == 0
    listed = run("runs", "list", f"s3://{BUCKET}/whole", "--json", "-")
    (row,) = json.loads(listed.stdout)
    found = (row["run"], row["tags"], row["stage"], row["state"])
    assert found == ("run", ["kept"], "staging", "finished")


def test_models_are_exported_to_and_imported_from_a_bucket(
    finished, run, fmjax, server, tmp_path
):
    model, imported = f"s3://{BUCKET}/hub/model", f"s3://{BUCKET}/runs/imported"
    for done in (
        run("export", finished, model),
        run("import", model, imported),
        fmjax("export", finished, tmp_path / "model"),
    ):
        assert done.returncode == 0, done.stderr
    assert server.steps("runs/imported") == [0]
    back = run("export", imported, tmp_path / "back")
    assert back.returncode == 0, back.stderr
    weights = [
        (tmp_path / place / "model.safetensors").read_bytes()
        for place in ("model", "back")
    ]
    assert weights[0] == weights[1]

    again = run("import", model, imported)
    assert again.returncode == 2
    assert f"{imported} exists and is not empty" in again.stderr
    nothing = run("import", f"s3://{BUCKET}/hub/other", f"s3://{BUCKET}/runs/other")
    assert nothing.returncode == 2
    assert "hub/other: no such directory" in nothing.stderr
    assert server.objects("runs/other") == {}


def test_an_export_has_the_files_of_a_local_run(stored, finished, run, fmjax, tmp_path):
    here = run("export", f"s3://{BUCKET}/{stored}", tmp_path / "here")
    there = fmjax("export", finished, tmp_path / "there")
    assert here.returncode == there.returncode == 0, here.stderr
    files = [
        {file.name: file.read_bytes() for file in (tmp_path / place).iterdir()}
        for place in ("here", "there")
    ]
    # The model cards tell how long each run took.
    assert all(b"## How to load it" in of.pop("README.md") for of in files)
    assert files[0] == files[1]
    assert "model.safetensors" in files[0]


@pytest.mark.parametrize(
    ("bucket", "variables", "why"),
    [
        ("missing", {}, "there is no such bucket"),
        (BUCKET, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "127.0.0.1:9"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused(bucket, variables, why, tiny, run):
    address = f"s3://{bucket}/run"
    ended = run("train", *tiny, "--run_dir", address, **variables)
    assert ended.returncode == 2
    assert f"--run_dir {address} cannot be used" in ended.stderr
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr


def test_caches_are_copied_and_programs_are_shared(
    finished, tiny, run, server, tmp_path
):
    cache = f"s3://{BUCKET}/cache"
    command = ("train", *tiny, "train.steps=30", f"data.cache_dir={cache}")
    # "" leaves JAX without a folder of its own.
    settings = {"JAX_COMPILATION_CACHE_DIR": "", "FMJAX_CACHE": cache}

    first = run(*command, "--run_dir", tmp_path / "a", HOME=str(tmp_path), **settings)
    assert first.returncode == 0, first.stderr
    assert "Caching text train" in first.stderr
    before = server.objects("cache")
    elsewhere = str(tmp_path / "other")
    again = run(*command, "--run_dir", tmp_path / "b", HOME=elsewhere, **settings)

    assert again.returncode == 0, again.stderr
    assert "Caching" not in again.stderr
    assert server.objects("cache") == before
    folders = {name.split("/")[0] for name in before}
    assert folders == {"rows", "xla"}
    local = (finished / "metrics.jsonl").read_text()
    for place in ("a", "b"):
        found = (tmp_path / place / "metrics.jsonl").read_text()
        # The learning rates follow from train.steps, the first loss does not.
        assert losses(found)[0] == losses(local)[0]


def test_a_run_starts_from_one_in_a_bucket(stored, tiny, run, server):
    ended = run(
        "train", *tiny, "experiment.init_from=(@init_from(),)", "train.steps=2",
        "cosine.warmup_steps=1",
        f"init_from.run=s3://{BUCKET}/{stored}", "cosine.learning_rate=1e-9",
        "--run_dir", f"s3://{BUCKET}/runs/next",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    first = losses(server.objects("runs/next")["metrics.jsonl"])[0]
    started = losses(server.objects(stored)["metrics.jsonl"])[0]
    assert first[2] < started[2] - 1


def test_two_processes_survive_the_death_of_one(
    finished, tiny, server, python, tmp_path
):
    launcher = ROOT / "launch" / "local.py"
    command = [python, launcher, "--processes", "2", "--restarts", "2", "--", "train"]
    command += [*tiny, "--run_dir", f"s3://{BUCKET}/runs/two"]
    environment = os.environ | server.environment | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as started:  # fmt: skip
        while server.steps("runs/two")[-1:] < [40]:
            assert started.poll() is None, started.stdout.read()
        children = pathlib.Path(f"/proc/{started.pid}/task/{started.pid}/children")
        os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
        out, _ = started.communicate(timeout=300)

    assert started.returncode == 0, out
    assert "resuming from step" in out
    found = server.objects("runs/two")
    assert "checkpoints/160/digests/1-of-2.json" in found
    here = losses(found["metrics.jsonl"])
    there = losses((finished / "metrics.jsonl").read_text())
    assert [line[:2] for line in here] == [line[:2] for line in there]
    # Two devices sum in another order.
    assert abs(here[-1][2] - there[-1][2]) < 0.01


@pytest.mark.parametrize("name", ["a.jsonl", "b.parquet", "c.txt", "d.jsonl.zst"])
def test_data_in_a_bucket_gives_the_cache_of_local_files(run, server, tmp_path, name):
    """Built by two processes, which read the objects in parts, or a copy."""
    texts = [f"{n} {'to be or not ' * (n % 40)}" for n in range(20_000)]
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    if name.endswith(".txt"):
        (folder / name).write_text("\n".join(texts))
    elif name.endswith(".zst"):
        (folder / name).write_bytes(pa.compress(lines, "zstd", asbytes=True))
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=2000)
    else:
        (folder / name).write_bytes(lines)
    server.write("corpus", name, (folder / name).read_bytes())
    of_text = name.endswith(".txt")
    config = "data/text_files.gin" if of_text else "data/record_files.gin"
    found = {}
    for place in (str(folder), f"s3://{BUCKET}/corpus"):
        files = f"{place}/{name[0]}*"
        cache = tmp_path / f"cache{len(found)}"
        ended = run(
            "data", "cache", config, "data.length=64", "--processes", "2",
            f"{'TEXT_FILE' if of_text else 'RECORDS'}={files}",
            "text_task.tokenizer=@bytes()", f"data.cache_dir={cache}",
            FMJAX_CACHE=str(tmp_path / "copies"),
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        found[place] = {
            (file.parent.name.rpartition("-")[0], file.name): file.read_bytes()
            for file in cache.rglob("*.array_record")
        }
    local, remote = found.values()
    assert len(local) == 2
    assert remote == local
    copied = [*(tmp_path / "copies").rglob(name)]
    assert len(copied) == of_text


def test_data_that_is_not_there_is_named(run):
    ended = run(
        "data", "cache", "data/record_files.gin", "RECORDS=s3://nowhere/a.jsonl"
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "record_files.files = 's3://nowhere/a.jsonl'" in ended.stderr
    assert "Traceback" not in ended.stderr

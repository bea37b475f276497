"""`fmjax launch slurm` on a real Slurm: two nodes of this machine, requeued once.

Debian's packages are installed where they are missing. The cluster is a folder: nothing
of the machine's own configuration is read or written.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from local_processes import assert_same_losses, free_port, losses

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
STEPS = 120
DEADLINE_SECONDS = 300
CONFIG = """
ClusterName=fmjax
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{nodes}] CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def two_free_ports() -> int:
    """The first of two free ports in a row."""
    while True:
        port = free_port()
        with socket.socket() as following, contextlib.suppress(OSError):
            following.bind(("127.0.0.1", port + 1))
            return port


def wait_for(what, seconds: float = DEADLINE_SECONDS):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Runs a command of Slurm's against a cluster of two nodes; its output."""
    if any(shutil.which(name) is None for name in ("slurmctld", "slurmd", "munged")):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", *PACKAGES]):
            subprocess.run(
                ["apt-get", "-qq", *words], check=True, env=os.environ | quiet
            )
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    first = two_free_ports()
    text = CONFIG.format(
        host=socket.gethostname(),
        port=free_port(),
        nodes=f"{first}-{first + 1}",
        folder=folder,
    )
    config.write_text(text)
    environment = os.environ | {"SLURM_CONF": str(config)}
    munge = [
        f"--{name}={folder}/munge.{end}"
        for name, end in (
            ("socket", "socket"),
            ("key-file", "key"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        )
    ]
    daemons = (
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D", "-f", str(config)],
        *(["slurmd", "-D", "-f", str(config), "-N", f"node{n}"] for n in (1, 2)),
    )
    started = []

    def run(*words) -> str:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        for words in daemons:
            with (folder / f"{words[0]}{len(started)}.out").open("w") as out:
                started.append(
                    subprocess.Popen(words, env=environment, stdout=out, stderr=out)
                )
            time.sleep(1)
        run.environment = environment
        wait_for(lambda: run("sinfo", "-h", "-o", "%D %t").strip() == "2 idle", 60)
        yield run
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait(timeout=60)


@pytest.mark.slow
def test_a_job_that_is_signalled_is_requeued_and_has_the_losses_of_one_process(
    slurm, tmp_path
):
    text = tmp_path / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    tiny = ROOT / "tests" / "e2e" / "tiny.gin"
    train = [str(tiny), f"TEXT_FILE={text}", f"train.steps={STEPS}"]
    run_dir, files = tmp_path / "run", tmp_path / "job"
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        # The names of these nodes are known to Slurm alone.
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    with (tmp_path / "launched").open("w") as log:
        launched = subprocess.Popen(
            [
                *(sys.executable, "-m", "fmjax", "launch", "slurm", *train),
                *("--nodes", "2", "--gpus", "0", "slurm.time=10:00"),
                *("--run_dir", str(run_dir), "--out", str(files)),
            ],
            env=slurm.environment | settings,
            stdout=log,
            stderr=log,
        )

    def submitted() -> str:
        told = re.search(r"submitted (\d+)", (tmp_path / "launched").read_text())
        assert told or launched.poll() is None, (tmp_path / "launched").read_text()
        return told[1] if told else ""

    job = wait_for(submitted)

    def state() -> str:
        shown = slurm("scontrol", "show", "job", job)
        assert not any(s in shown for s in ("FAILED", "CANCELLED", "TIMEOUT")), output()
        return shown

    def output() -> str:
        return (files / f"slurm-{job}.out").read_text()

    wait_for(lambda: state() and len(losses(run_dir)) >= 20)
    slurm("scancel", "--signal=TERM", job)
    wait_for(lambda: "Restarts=1" in state() and "PENDING" in state())
    # Slurm would let it wait for two minutes. In the second in which it was requeued,
    # slurmd refuses it ("credential revoked").
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    wait_for(lambda: "JobState=COMPLETED" in state())

    events = (run_dir / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(event)["kind"] for event in events]
    assert kinds == ["started", "interrupted", "resumed", "finished"]
    assert "2 hosts" in output() or "4 devices" in output(), output()
    assert launched.wait(timeout=60) == 0
    followed = (tmp_path / "launched").read_text()
    for line in output().splitlines():
        assert line in followed
    for told in ("RUNNING", "PENDING", "COMPLETED"):
        assert f"job {job}: {told}" in followed

    alone = [sys.executable, "-m", "fmjax", "train", *train, "--devices", "4"]
    ended = subprocess.run(
        [*alone, "--run_dir", str(tmp_path / "one")], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert_same_losses(run_dir, tmp_path / "one", STEPS)

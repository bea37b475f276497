"""What is written for clusters runs here: pods and hosts become local processes.

A pod is its container's command with the environment that Kubernetes gives it; a TPU
host is its startup script, with a docker that runs the command here. Each is told to
stop once, starts again, and has the losses of one process.
"""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import yaml
from local_processes import assert_same_losses, children, free_port, losses

from fmjax.cli.main import main

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 60
DEADLINE_SECONDS = 300


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> list[str]:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    tiny = ROOT / "tests" / "e2e" / "tiny.gin"
    return [str(tiny), f"TEXT_FILE={text}", f"train.steps={STEPS}"]


@pytest.fixture(scope="module")
def one_process(train, tmp_path_factory) -> pathlib.Path:
    """The run of a single process with two devices."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    command = [sys.executable, "-m", "fmjax", "train", *train, "--devices", "2"]
    subprocess.run([*command, "--run_dir", str(run_dir)], check=True)
    return run_dir


def wait_for_steps(run_dir: pathlib.Path, processes, steps: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(losses(run_dir)) < steps and time.monotonic() < deadline:
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def assert_interrupted_and_equal(run_dir, one_process) -> None:
    events = (run_dir / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(event)["kind"] for event in events]
    assert kinds == ["started", "interrupted", "resumed", "finished"]
    assert_same_losses(run_dir, one_process, STEPS)


@pytest.mark.slow
def test_pods_of_gke_train_stop_and_continue(train, one_process, tmp_path):
    words = ["launch", "gke", *train, "--chips", "h100-16", "gke.image=i", "--name=job"]
    words += ["train.batch_size=16", "train.eval_batch_size=16"]
    words += ['gke.mounts=(("bucket", "/bucket"),)', "--run_dir", "/bucket/run"]
    assert main([*words, "--dry_run", "--out", str(tmp_path)]) == 0
    config, jobset = yaml.safe_load_all((tmp_path / "jobset.yaml").read_text())
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completions"] == 2
    port = free_port()

    def start(index: int) -> subprocess.Popen:
        environment = {"JAX_NUM_CPU_DEVICES": "1"}
        for each in container["env"]:
            if "valueFrom" in each:
                path = each["valueFrom"]["fieldRef"]["fieldPath"]
                annotation = "batch.kubernetes.io/job-completion-index"
                assert path == f"metadata.annotations['{annotation}']"
                environment[each["name"]] = str(index)
            else:
                # The names of pods are known in the cluster alone.
                at_home = f"localhost:{port}"
                value = each["value"].replace("job-slice-0-0.job:8476", at_home)
                value = value.replace("/bucket", str(tmp_path))
                environment[each["name"]] = value
        assert environment["JAX_PLATFORMS"] == "cuda,cpu"
        environment["JAX_PLATFORMS"] = "cpu"
        mounts = {
            mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]
        }
        assert mounts["/etc/fmjax"] == "config"
        assert mounts["/bucket"] == "bucket-0"
        command = [
            word.replace("/etc/fmjax", str(tmp_path)).replace("/bucket", str(tmp_path))
            for word in container["command"]
        ]
        assert command[0] == "fmjax"
        # One process had eight rows; the job would need sixteen GPUs for them.
        command += ["train.batch_size=8", "train.eval_batch_size=8"]
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    pods = [start(0), start(1)]
    wait_for_steps(tmp_path / "run", pods, 10)
    pods[1].send_signal(signal.SIGTERM)  # as a node that is taken away
    for pod in pods:
        out, _ = pod.communicate(timeout=DEADLINE_SECONDS)
        assert pod.returncode == 75, out  # the policy: made anew, not counted
    for pod in [start(0), start(1)]:
        out, _ = pod.communicate(timeout=DEADLINE_SECONDS)
        assert pod.returncode == 0, out
    assert_interrupted_and_equal(tmp_path / "run", one_process)


DOCKER = f"""
import os, sys
words = sys.argv[1:]
if words[0] != "run":
    sys.exit()
image = words.index("registry/fmjax:tpu")
environment, folders = dict(os.environ), {{"gs://bucket": os.environ["BUCKET"]}}
for word in words[1:image]:
    name, _, value = word.partition("=")
    if name == "--env":
        value = value.replace("gs://bucket", os.environ["BUCKET"])
        name, _, value = value.partition("=")
        if name != "JAX_PLATFORMS":  # This machine has no TPU.
            environment[name] = value
    elif name == "--volume":
        outside, inside = value.split(":")[:2]
        folders[inside] = outside
command = words[image + 1:]
for inside, outside in folders.items():
    command = [
        outside + word.removeprefix(inside) if word.startswith(inside) else word
        for word in command
    ]
assert command[0] == "fmjax"
os.execve({sys.executable!r}, [{sys.executable!r}, "-m", *command], environment)
"""


@pytest.mark.slow
def test_hosts_of_tpu_vms_train_stop_and_continue(train, one_process, tmp_path):
    words = ["launch", "tpu-vm", *train, "--chips", "v5e-8", "--name=job"]
    words += ["tpu_vm.image=registry/fmjax:tpu", "tpu_vm.zone=z"]
    words += ["--run_dir", "gs://bucket/run", "--dry_run", "--out", str(tmp_path)]
    assert main(words) == 0
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "docker.py").write_text(DOCKER)
    docker = shlex.join([sys.executable, str(tools / "docker.py")])
    (tools / "docker").write_text(f'#!/usr/bin/env bash\nexec {docker} "$@"\n')
    (tools / "docker").chmod(0o755)
    port = free_port()
    hosts = [
        subprocess.Popen(
            ["bash", str(tmp_path / "startup.sh")],
            env=os.environ
            | {
                "PATH": f"{tools}:{os.environ['PATH']}",
                "FMJAX_JOB_FOLDER": str(tmp_path / f"host{index}"),
                "FMJAX_PAUSE_SECONDS": "0",
                "BUCKET": str(tmp_path),
                # A TPU host reads its place from Google Cloud.
                "FMJAX_COORDINATOR": f"localhost:{port}",
                "FMJAX_NUM_PROCESSES": "2",
                "FMJAX_PROCESS_ID": str(index),
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]
    wait_for_steps(tmp_path / "run", hosts, 10)
    for child in children(hosts[1].pid):
        os.kill(child, signal.SIGTERM)
    for host in hosts:
        out, _ = host.communicate(timeout=DEADLINE_SECONDS)
        assert host.returncode == 0, out
        assert out.splitlines()[-1] == "fmjax ended with 0"
    assert_interrupted_and_equal(tmp_path / "run", one_process)

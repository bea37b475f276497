"""Queued resources of Cloud TPU: what is asked for, and what a host does at boot."""

import json
import os
import shlex
import subprocess

import pytest

from fmjax.errors import UserError
from fmjax.launch import hardware
from fmjax.launch.tpu_vm import TpuVm

from .conftest import write

# Types and versions of the examples on the pages of each chip at cloud.google.com/tpu.
ASKED = {
    ("v5e-16", 1): ("v5litepod-16", "v2-alpha-tpuv5-lite", ["--node-id=job"]),
    ("v6e-64", 1): ("v6e-64", "v2-alpha-tpuv6e", ["--node-id=job"]),
    ("v5p-32", 1): ("v5p-64", "v2-alpha-tpuv5", ["--node-id=job"]),  # cores
    ("v4-8", 1): ("v4-16", "tpu-ubuntu2204-base", ["--node-id=job"]),
    ("v5e-512", 2): (
        "v5litepod-256", "v2-alpha-tpuv5-lite",
        ["--node-count=2", "--node-prefix=job"],
    ),
}  # fmt: skip


def cluster(**fields) -> TpuVm:
    return TpuVm(image="us-docker.pkg.dev/p/r/fmjax:tpu", zone="us-west4-a", **fields)


@pytest.mark.parametrize(("chips", "wanted"), ASKED.items(), ids=str)
def test_slices_are_asked_for_by_google_clouds_names(make_job, chips, wanted):
    kind, version, nodes = wanted
    text = cluster(spot=True).render(make_job(hardware.of_chips(*chips)))["create.sh"]
    words = shlex.split(text.splitlines()[-1])
    assert words[:6] == [
        "gcloud",
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "job",
    ]
    assert {f"--accelerator-type={kind}", f"--runtime-version={version}"} <= {*words}
    assert {*nodes, "--spot", "--zone=us-west4-a"} <= {*words}


@pytest.fixture
def boot(make_job, tool, tmp_path):
    """Boots a host whose containers end with the given exit codes."""
    job = make_job(hardware.of_chips("v5e-16"))
    vm = cluster(restarts=2, cache="gs://bucket/cache", environment=("A=a b",))
    write(job, vm.render(job))
    calls, codes = tmp_path / "calls", tmp_path / "codes"
    tool("gcloud", f'echo "gcloud $*" >>{calls}')
    tool(
        "docker",
        f'printf "%q " docker "$@" >>{calls}; echo >>{calls}\n'
        f"[[ $1 == run ]] || exit 0\n"
        f"code=$(head -n 1 {codes}); sed -i 1d {codes}; exit $code",
    )

    def run(*ends) -> tuple[str, list[str]]:
        calls.unlink(missing_ok=True)
        codes.write_text("".join(f"{end}\n" for end in ends))
        done = subprocess.run(
            ["bash", str(tmp_path / "startup.sh")],
            env=os.environ
            | {"FMJAX_JOB_FOLDER": str(tmp_path / "job"), "FMJAX_PAUSE_SECONDS": "0"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert not codes.read_text()
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.stdout.splitlines()[-1], lines

    run.job, run.folder = job, tmp_path / "job"
    return run


@pytest.mark.parametrize(
    ("ends", "last"),
    [
        ([0], 0),
        ([75, 75, 75, 75, 0], 0),
        ([1, 75, 6, 0], 0),
        ([1, 75, 1, 75, 137], 137),  # the third failure
        ([75, 2], 2),
        ([3], 3),
        ([5], 5),
    ],
)
def test_a_host_starts_the_run_until_it_ended(boot, ends, last):
    assert boot(*ends)[0] == f"fmjax ended with {last}"


def test_the_container_gets_the_config_the_command_and_the_environment(boot):
    _, calls = boot(0)
    assert calls[0] == "gcloud auth configure-docker us-docker.pkg.dev --quiet"
    (run,) = [shlex.split(call) for call in calls if call.startswith("docker run")]
    for wanted in (
        "--env=A=a b", "--env=FMJAX_CACHE=gs://bucket/cache", "--net=host",
        "--env=FMJAX_JOIN_SECONDS=900", "--stop-timeout=120", "--privileged",
        f"--volume={boot.folder}:/job:ro", "--env=JAX_PLATFORMS=tpu,cpu",
    ):  # fmt: skip
        assert wanted in run
    at = run.index("us-docker.pkg.dev/p/r/fmjax:tpu")
    assert run[at + 1 :] == [
        "fmjax", "train", "/job/experiment.gin", "--run_dir", "gs://bucket/runs/job",
        "--cluster",
    ]  # fmt: skip
    assert (boot.folder / "experiment.gin").read_text() == boot.job.config


def test_a_host_that_boots_after_the_end_does_nothing(boot):
    boot(75, 0)
    assert boot() == ("fmjax ended with 0", [])


GCLOUD = """
echo "$*" >>CALLS
case "$*" in
  *describe*)
    echo "{\\"state\\": {\\"state\\": \\"$(head -n 1 STATES)\\"}}"
    sed -i 1d STATES ;;
  *ssh*) cat LOG; [[ -s STATES ]] || echo "fmjax ended with 3" ;;
esac
"""


@pytest.fixture
def gcloud(tool, tmp_path):
    script = GCLOUD
    for name in ("CALLS", "STATES", "LOG"):
        (tmp_path / name).touch()
        script = script.replace(name, str(tmp_path / name))
    tool("gcloud", script)
    return tmp_path


def test_a_spot_slice_that_is_taken_away_is_asked_for_again(
    make_job, gcloud, capfd, monkeypatch
):
    monkeypatch.setattr("fmjax.launch.tpu_vm.POLL_SECONDS", 0.01)
    states = ["PROVISIONING", "ACTIVE", "SUSPENDED", "PROVISIONING", "ACTIVE", "ACTIVE"]
    (gcloud / "STATES").write_text("\n".join(states) + "\n")
    (gcloud / "LOG").write_text("a step\n")
    vm, job = cluster(spot=True), make_job(hardware.of_chips("v5e-16"))
    write(job, vm.render(job))
    assert vm.follow(job, vm.submit(job)) == 3
    calls = (gcloud / "CALLS").read_text()
    assert calls.count("queued-resources create job") == 2
    assert calls.count("queued-resources delete job") == 1
    # Of both slices, and once where the connection to one was cut.
    assert capfd.readouterr().out.count("a step") == 2


def test_a_request_that_fails_is_told(make_job, gcloud):
    (gcloud / "STATES").write_text("FAILED\n")
    with pytest.raises(UserError, match="queued resource job: FAILED"):
        cluster().follow(make_job(hardware.of_chips("v5e-16")), "job")


def test_commands_are_those_of_a_shell(make_job, gcloud):
    vm, job = cluster(project="lab"), make_job(hardware.of_chips("v5e-512", 2))
    write(job, vm.render(job))
    for command in vm.commands(job).values():
        subprocess.run(["bash", "-c", command], check=True, stdout=subprocess.DEVNULL)
    made, log, deleted = (gcloud / "CALLS").read_text().splitlines()
    assert json.dumps("--project=lab")[1:-1] in made
    assert log.startswith("compute tpus tpu-vm ssh job-0 --worker=0 --zone=us-west4-a")
    assert deleted.startswith("compute tpus queued-resources delete job --force")


@pytest.mark.parametrize(
    ("chips", "run_dir", "named"),
    [
        ("v7x-64", "gs://b/r", "v7x is on GKE alone"),
        ("h100-8", "gs://b/r", "Cloud TPU VMs have v4, v5e, v5p, v6e"),
        ("v5e-16", "/home/me", "--run_dir /home/me: a folder of one host"),
        ("v5e-16", "file:///home/me", "a folder of one host"),
    ],
)
def test_jobs_for_other_clusters_are_refused(make_job, chips, run_dir, named):
    with pytest.raises(UserError, match=named):
        cluster().check(make_job(hardware.of_chips(chips), run_dir=run_dir))


def test_spot_and_reserved_exclude_each_other():
    with pytest.raises(UserError, match=r"tpu_vm\.spot and tpu_vm.reserved"):
        cluster(spot=True, reserved=True)

"""Manifests for GKE, by the schemas of Kubernetes and JobSet, and what kubectl gets."""

import json
import subprocess

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from fmjax.errors import UserError
from fmjax.launch import hardware
from fmjax.launch.gke import MANIFEST, Gke

from .conftest import write

JOBS = {
    "TPUs": (Gke(image="registry/fmjax:tpu"), hardware.of_chips("v5e-256")),
    "slices": (
        Gke(image="registry/fmjax:tpu", queue="multislice-queue", priority="high"),
        hardware.of_chips("v5p-256", 2),
    ),
    "Spot": (
        Gke(image="i", spot=True, grace_seconds=25, cache="gs://bucket/cache"),
        hardware.of_chips("v6e-16"),
    ),
    "GPUs": (
        Gke(
            image="registry/fmjax:gpu",
            service_account="trainer",
            reservation="ours",
            environment=("NCCL_DEBUG=WARN", 'QUOTED=it\'s: "a" #b'),
            annotations=(("networking.gke.io/default-interface", "eth0"),),
            privileged=True,
        ),
        hardware.of_chips("h100-32"),
    ),
    "a mounted bucket": (
        Gke(image="i", mounts=(("bucket", "/bucket"), ("data", "/data"))),
        hardware.of_chips("h200-8"),
    ),
}


@pytest.fixture(params=JOBS)
def manifest(request, make_job):
    """(cluster, job, ConfigMap, JobSet)"""
    gke, place = JOBS[request.param]
    job = make_job(place)
    documents = list(yaml.safe_load_all(gke.render(job)[MANIFEST]))
    assert len(documents) == 2
    return gke, job, *documents


def pod_of(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_manifests_keep_the_schemas_of_kubernetes_and_jobset(manifest):
    _, _, config, jobset = manifest
    kubernetes_validate.validate(config, "1.33", strict=True)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    job["spec"] = replicated["template"]["spec"]
    kubernetes_validate.validate(job, "1.33", strict=True)
    # Its classes drop fields that they do not know: nothing may be lost.
    read = JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
    assert contained(jobset, read)


def contained(small, large) -> bool:
    if isinstance(small, dict):
        return all(key in large and contained(small[key], large[key]) for key in small)
    if isinstance(small, list):
        return len(small) == len(large) and all(map(contained, small, large))
    return small == large


def test_a_field_that_jobset_does_not_have_would_be_found(manifest):
    _, _, _, jobset = manifest
    jobset["spec"]["failurePolicy"]["maxRestart"] = 3
    assert not contained(jobset, JobsetV1alpha2JobSet.from_dict(jobset).to_dict())


def test_the_config_and_the_command_arrive_whole(manifest):
    _, job, config, jobset = manifest
    assert config["data"]["experiment.gin"] == job.config
    (container,) = pod_of(jobset)["containers"]
    assert container["command"] == [
        "fmjax", "train", "/etc/fmjax/experiment.gin", "--run_dir", job.run_dir,
        "--cluster",
    ]  # fmt: skip


def test_pods_without_their_chips_do_not_train_on_cpus(manifest):
    _, job, _, jobset = manifest
    (container,) = pod_of(jobset)["containers"]
    (platforms,) = (e for e in container["env"] if e["name"] == "JAX_PLATFORMS")
    kind = {"tpu": "tpu", "gpu": "cuda"}[job.hardware.chip.platform]
    assert platforms["value"] == f"{kind},cpu"


def test_pods_take_all_chips_of_the_slices(manifest):
    _, job, _, jobset = manifest
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    (container,) = pod_of(jobset)["containers"]
    (chips,) = container["resources"]["limits"].values()
    assert spec["completions"] == spec["parallelism"]
    asked = replicated["replicas"] * spec["completions"] * chips
    assert asked == job.hardware.hosts * job.hardware.chips_per_host


def test_exit_codes_have_the_policy_of_all_launchers(manifest):
    _, _, _, jobset = manifest
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    actions = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        for code in rule.get("onExitCodes", {}).get("values", []):
            actions[code] = rule["action"]
    assert actions == {75: "Ignore", 2: "FailJob", 3: "FailJob", 5: "FailJob"}
    assert spec["backoffLimit"] == 0
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_gpus_are_told_their_place_and_tpus_by_gke(make_job):
    gke, place = JOBS["GPUs"]
    (_, jobset) = yaml.safe_load_all(gke.render(make_job(place))[MANIFEST])
    (container,) = pod_of(jobset)["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    # The name of the first pod: <jobset>-<replicated job>-<job>-<pod>.<subdomain>
    assert given["FMJAX_COORDINATOR"] == "job-slice-0-0.job:8476"
    assert given["FMJAX_NUM_PROCESSES"] == "4"
    assert given["FMJAX_HOSTS"].split(",")[3] == "job-slice-0-3"
    assert given["QUOTED"] == 'it\'s: "a" #b'
    gke, place = JOBS["TPUs"]
    (_, jobset) = yaml.safe_load_all(gke.render(make_job(place))[MANIFEST])
    (container,) = pod_of(jobset)["containers"]
    assert not [e for e in container["env"] if e["name"] == "FMJAX_COORDINATOR"]


@pytest.mark.parametrize(
    ("cache", "run_dir", "found"),
    [
        (None, "gs://bucket/runs/a", "gs://bucket/fmjax-cache"),
        (None, "/data/runs/a", "/data/fmjax-cache"),
        ("gs://other/cache", "gs://bucket/runs/a", "gs://other/cache"),
    ],
)
def test_all_pods_share_a_cache(make_job, cache, run_dir, found):
    gke = Gke(image="i", cache=cache, mounts=(("bucket", "/data"),))
    job = make_job(hardware.of_chips("v5e-16"), run_dir=run_dir)
    (_, jobset) = yaml.safe_load_all(gke.render(job)[MANIFEST])
    (container,) = pod_of(jobset)["containers"]
    assert {"name": "FMJAX_CACHE", "value": found} in container["env"]


KUBECTL = """
echo "$*" >>CALLS
case "$*" in
  *"get jobset job --ignore-not-found"*) cat THERE ;;
  *"get jobset"*)
    echo "{\\"status\\": $(head -n 1 STATES)}"
    sed -i 1d STATES ;;
  *"get pods"*) cat PODS ;;
  *logs*) cat LOG ;;
esac
"""


@pytest.fixture
def kubectl(tool, tmp_path):
    """A kubectl that records its arguments and answers from files."""
    script = KUBECTL
    for name in ("CALLS", "THERE", "STATES", "PODS", "LOG"):
        (tmp_path / name).touch()
        script = script.replace(name, str(tmp_path / name))
    tool("kubectl", script)
    return tmp_path


def test_the_server_checks_before_anything_starts(make_job, kubectl):
    gke, place = JOBS["TPUs"]
    job = make_job(place)
    write(job, gke.render(job))
    assert gke.submit(job) == "job"
    _, checked, applied = (kubectl / "CALLS").read_text().splitlines()
    file = job.folder / MANIFEST
    assert checked == f"--namespace=default apply --dry-run=server -f {file}"
    assert applied == f"--namespace=default apply -f {file}"


def test_a_jobset_of_the_same_name_is_not_replaced(make_job, kubectl):
    (kubectl / "THERE").write_text("jobset.jobset.x-k8s.io/job\n")
    gke, place = JOBS["TPUs"]
    with pytest.raises(UserError, match=r"there is a JobSet of this name.*delete"):
        gke.submit(make_job(place))
    assert "apply" not in (kubectl / "CALLS").read_text()


def test_the_log_is_followed_until_the_jobset_ends(
    make_job, kubectl, capfd, monkeypatch
):
    monkeypatch.setattr("fmjax.launch.gke.POLL_SECONDS", 0.01)
    (kubectl / "STATES").write_text('{}\n{}\n{"terminalState": "Completed"}\n')
    pod = {
        "metadata": {"name": "job-slice-0-0-x", "creationTimestamp": "2026-01-01"},
        "status": {"phase": "Running"},
    }
    (kubectl / "PODS").write_text(json.dumps({"items": [pod]}))
    lines = "2026-01-01T00:00:01Z step 1\n2026-01-01T00:00:02Z step 2\n"
    (kubectl / "LOG").write_text(lines)
    gke, place = JOBS["TPUs"]
    assert gke.follow(make_job(place), "job") == 0
    assert capfd.readouterr().out.splitlines() == [
        "jobset job: job-slice-0-0-x Running", "step 1", "step 2",
        "jobset job: Completed",
    ]  # fmt: skip


def test_commands_are_those_of_a_shell(make_job, kubectl):
    gke, place = JOBS["TPUs"]
    for command in gke.commands(make_job(place)).values():
        subprocess.run(["bash", "-c", command], check=True)
    assert len((kubectl / "CALLS").read_text().splitlines()) == 3


def test_a_folder_of_a_pod_is_refused(make_job):
    for run_dir in ("file:///home/me/run", "/home/me/run"):
        job = make_job(hardware.of_chips("v5e-16"), run_dir=run_dir)
        with pytest.raises(UserError, match="a folder of a pod is lost"):
            Gke(image="i").check(job)
    Gke(image="i", mounts=(("bucket", "/home/me"),)).check(job)


def test_nodes_without_a_kind_of_chip_are_refused(make_job):
    with pytest.raises(UserError, match="expected a kind and a number"):
        Gke(image="i").check(make_job(hardware.of_nodes(2, 8)))

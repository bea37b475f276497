"""The verb `launch`: what it refuses, writes, prints and submits."""

import pathlib
import re
import shlex
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fmjax.cli.main import main
from fmjax.config.files import shipped_configs
from fmjax.config.load import load_experiment, load_part
from fmjax.launch.launch import KINDS

from .conftest import beside

ROOT = pathlib.Path(__file__).parents[2]
SLURM = ["launch", "slurm", "quickstart.gin", "--nodes", "2", "--gpus", "4"]
ARGUMENTS = {
    "slurm": ["--nodes", "2", "--gpus", "4"],
    "gke": ["--chips", "v5e-8", "gke.image=reg/fmjax:tpu"],
    "tpu-vm": ["--chips", "v5e-8", "tpu_vm.image=reg/fmjax:tpu", "tpu_vm.zone=a"],
    "local": ["--nodes", "2", "--devices", "1"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_dir(kind: str) -> str:
    return "gs://bucket/runs/job" if kind in ("gke", "tpu-vm") else "runs/job"


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_dry_run_shows_all_and_writes_nothing(kind, tmp_path, capsys):
    words = ["launch", kind, "quickstart.gin", *ARGUMENTS[kind], "--dry-run"]
    assert main([*words, "--run_dir", run_dir(kind)]) == 0
    out = capsys.readouterr().out
    assert "submit:" in out
    assert run_dir(kind) in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_what_is_written_is_complete_and_can_be_read_back(kind, tmp_path):
    words = ["launch", kind, "quickstart.gin", "train.seed=5", *ARGUMENTS[kind]]
    words += ["--run_dir", run_dir(kind), "--dry_run", "--out", "files"]
    assert main(words) == 0
    wanted = load_experiment("quickstart.gin", ["train.seed=5"])
    if (tmp_path / "files" / "experiment.gin").exists():
        assert load_experiment(tmp_path / "files" / "experiment.gin") == wanted
    scripts = [*tmp_path.glob("files/*.sh"), *tmp_path.glob("files/*.sbatch")]
    if scripts:
        subprocess.run([beside("shellcheck"), *scripts], check=True)


def test_files_of_a_job_that_may_be_running_are_not_replaced(tmp_path, capsys):
    words = [*SLURM, "--run_dir", "runs/a"]
    assert main([*words, "--dry_run", "--out", "files"]) == 0
    assert main([*words, "--dry_run", "--out", "files"]) == 0  # the same
    kept = (tmp_path / "files" / "experiment.gin").read_text()
    assert main([*words, "train.seed=1", "--dry_run", "--out", "files"]) == 2
    assert "files of another job" in capsys.readouterr().err
    assert (tmp_path / "files" / "experiment.gin").read_text() == kept
    (tmp_path / "launched").mkdir()
    (tmp_path / "files").rename(tmp_path / "launched" / "a")
    assert main([*words, "--dry_run"]) == 0
    assert f"{tmp_path}/launched/a-2/train.sbatch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [name for name in shipped_configs() if name.startswith("cluster/")]
)
def test_the_command_of_every_shipped_cluster_works(name, tmp_path):
    text = (ROOT / "configs" / name).read_text()
    header = text.split("\ninclude")[0].replace("\n#", "\n").replace("\\\n", " ")
    command = re.search(r"fmjax (launch .*)", header)[1]
    words = shlex.split(re.sub(r"/(shared|fsx)\b", f"{tmp_path}/shared", command))
    assert main([*words, "--dry_run"]) == 0
    kind = next(k for k in sorted(KINDS.values(), key=len) if f"/{k}" in name)
    given = [word for word in words if word.startswith(f"{kind}.")]
    assert load_part(kind, name, given).gin_name == kind


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["slurm"], "expected --chips.*or --nodes"),
        (["slurm", "--chips", "v5e-16"], "Slurm has no v5e"),
        (["slurm", "--chips", "b300-8"], "--chips b300: expected one of"),
        (["slurm", "--nodes", "2"], "--gpus: expected the number"),
        (["slurm", "--nodes", "0", "--gpus", "8"], "--nodes 0"),
        (["slurm", "--nodes", "2", "--chips", "h100-8"], "--chips: expected without"),
        (["slurm", "--nodes", "2", "--devices", "2"], "--devices"),
        (["slurm", "--nodes", "2", "--slices", "2"], "--slices 2"),
        # Eight rows for 16 devices, and a mesh that 16 devices do not divide.
        (["slurm", "--nodes", "2", "--gpus", "8"], "train.batch_size = 8"),
        (["slurm", "--nodes", "2", "--gpus", "8", "mesh.tensor=3"], "mesh: 16 devices"),
        (
            ["tpu-vm", "--chips", "v5e-16", "tpu_vm.image=i", "tpu_vm.zone=z",
             "--slices", "2", "mesh.data=1", "mesh.fsdp=-1", "train.batch_size=16"],
            "mesh.data = 1: expected a multiple of the 2 slices",
        ),
        (["gke", "--chips", "v5e-8"], "gke.image has no value"),
        (["gke", "--chips", "v5e-8", "gke.image=i"], "a folder of a pod is lost"),
        (["gke", "--chips", "v5e-8", "gke.images=i"], "gke.*images"),
        (["local", "--devices", "0"], "--devices 0"),
        (["local", "--gpus", "2"], "--gpus"),
        (["local", "--detach"], "--detach: expected with a cluster"),
        (["slurm", "--nodes", "1", "--name", "A_b"], "--name A_b"),
        (["slurm", "--nodes", "1", "slurm.restarts=-1"], "slurm.restarts"),
        (["slurm", "--nodes", "1", "train.setps=3"], "setps"),
        (
            ["slurm", "--nodes", "1", "--cluster_config", "quickstart.gin"],
            "slurm|cluster",
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_by_name_and_nothing_is_written(
    words, named, tmp_path, capsys
):
    kind, *rest = words
    place = "gs://bucket/a" if kind == "tpu-vm" else "runs/a"
    assert main(["launch", kind, "quickstart.gin", *rest, "--run_dir", place]) == 2
    assert re.search(named, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("chips", "slices"), [(64, 2), (32, 1), (128, 4), (16, 2)])
def test_a_mesh_adapts_to_other_slices_within_the_batch(chips, slices, capsys):
    words = ["launch", "tpu-vm", "quickstart.gin", *ARGUMENTS["tpu-vm"][2:]]
    words += ["--chips", f"v5e-{chips}", "--slices", str(slices)]
    words += ["mesh.data=-1", "mesh.fsdp=4", "train.batch_size=128"]
    words += ["train.eval_batch_size=128", "--run_dir", "gs://bucket/run", "--dry_run"]
    assert main(words) == 0
    assert f"--accelerator-type=v5litepod-{chips // slices}" in capsys.readouterr().out


def test_a_bucket_that_cannot_be_written_from_here_is_refused(tmp_path, capsys, tool):
    tool("gcloud", f"touch {tmp_path}/submitted")
    words = ["launch", "tpu-vm", "quickstart.gin", *ARGUMENTS["tpu-vm"], "--detach"]
    words += ["--run_dir", "gs://bucket/run", "--out", "files"]
    # Neither credentials nor, where the tests run, the client.
    assert main(words) == 2
    assert re.search(r"--run_dir.*gs://bucket/run", capsys.readouterr().err)
    assert not (tmp_path / "submitted").exists()
    assert not (tmp_path / "files").exists()
    assert main([*words, "--unchecked"]) == 0
    assert (tmp_path / "submitted").exists()


def test_a_bucket_is_not_tried_where_nothing_is_submitted_or_unchecked(
    tmp_path, capsys, tool
):
    tool("sbatch", "echo 12")
    words = [*SLURM, "--run_dir", "s3://bucket/run", "--detach"]
    assert main([*words, "--dry_run"]) == 0
    assert main([*words, "--unchecked"]) == 0
    capsys.readouterr()
    assert main(words) == 2
    assert "s3://bucket/run" in capsys.readouterr().err


def test_an_address_of_a_folder_is_that_folder(tmp_path, capsys):
    assert main([*SLURM, "--run_dir", f"file://{tmp_path}/a", "--dry_run"]) == 0
    assert f"--run_dir {tmp_path}/a " in capsys.readouterr().out


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*SLURM, "--run_dir", "file/run"]) == 2
    assert "--run_dir" in capsys.readouterr().err


def test_a_config_of_a_cluster_is_shown_whole(capsys):
    assert main(["config", "cluster/slurm_efa.gin", "slurm.partition=gpu"]) == 0
    out = capsys.readouterr().out
    assert "slurm.partition = 'gpu'" in out
    assert "#   FI_PROVIDER=efa: libfabric would take TCP" in out
    assert "slurm.exclusive = True" in out


def test_options_of_xla_are_shown_with_the_config(capsys):
    assert main(["config", "quickstart.gin"]) == 0
    out = capsys.readouterr().out
    assert "#   gpu: xla_gpu_enable_latency_hiding_scheduler = True: collectives" in out


def test_the_dockerfile_is_clean():
    file = ROOT / "launch" / "docker" / "Dockerfile"
    subprocess.run([beside("hadolint"), str(file)], check=True)


def test_the_image_lets_container_runtimes_add_gpus():
    dockerfile = (ROOT / "launch" / "docker" / "Dockerfile").read_text()
    found = dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", dockerfile, re.M))
    # enroot's hook 98-nvidia.sh and NVIDIA's runtime do nothing without the first, and
    # leave CUDA out without the second. GKE mounts the driver into the last.
    assert found["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert "compute" in found["NVIDIA_DRIVER_CAPABILITIES"].split(",")
    assert found["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"


def test_the_versions_of_the_image_are_those_that_fmjax_asks_for():
    lines = (ROOT / "launch" / "docker" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"]]
    dockerfile = (ROOT / "launch" / "docker" / "Dockerfile").read_text()
    installed = re.search(r"\.\[\$\{PLATFORM\},(.*)\]", dockerfile)[1].split(",")
    for extra in ("gpu", "tpu", *installed):
        asked += extras[extra]
    for text in asked:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text

"""Jobs for Slurm: what is written, and what follows from the processes' exit codes."""

import os
import subprocess

import pytest

from fmjax.errors import UserError
from fmjax.launch import hardware
from fmjax.launch.slurm import Slurm

from .conftest import write

# Runs task.sh once a process, each with its own exit code, and ends as srun does.
SRUN = """
[[ $1 == --kill-on-bad-exit=1 ]] || exit 99
shift
worst=0
for SLURM_PROCID in 0 1 2; do
  export SLURM_PROCID
  "$@" || { code=$?; ((code > worst)) && worst=$code; }
done
exit $worst
"""
PROCESS = """
import os, sys
assert sys.argv[1:3] == ["train", sys.argv[2]] and sys.argv[-1] == "--cluster"
code = os.environ["CODES"].split(",")[int(os.environ["SLURM_PROCID"])]
if code == "lost":  # with the node: nothing is written
    os.kill(os.getppid(), 9)
sys.exit(int(code))
"""


@pytest.fixture
def start(make_job, tool, tmp_path):
    """Runs the job as Slurm does, with an exit code for each of three processes."""
    job = make_job(hardware.of_nodes(3, 8))
    write(job, Slurm(restarts=2).render(job))
    tool("srun", SRUN)
    requeued = tmp_path / "requeued"
    tool("scontrol", f'echo "$@" >>{requeued}')
    fake = tmp_path / "fake" / "fmjax"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(PROCESS)
    count = iter(range(100))

    def run(*codes) -> tuple[int, bool]:
        requeued.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", str(tmp_path / "train.sbatch")],
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": str(fake.parent),
                "CODES": ",".join(map(str, codes)),
                "SLURM_JOB_ID": "7",
                "SLURM_RESTART_COUNT": str(next(count)),
            },
            capture_output=True,
            text=True,
        )
        print(done.stdout, done.stderr)
        if requeued.exists():
            assert requeued.read_text() == "requeue 7\n"
        return done.returncode, requeued.exists()

    return run


@pytest.mark.parametrize(
    ("codes", "ended", "requeued"),
    [
        ((0, 0, 0), 0, False),
        ((75, 75, 75), 0, True),
        ((75, 0, 75), 0, True),
        ((2, 2, 2), 2, False),
        ((3, 75, 3), 3, False),
        ((75, 75, 5), 5, False),
        # The others are killed where one has a mistake of its own.
        ((143, 2, 137), 2, False),
        ((143, 1, 137), 1, True),
        ((4, 4, 4), 4, True),
        ((6, 6, 6), 6, True),
        # One is killed for its memory; the others see that it is gone.
        ((75, 75, 137), 137, True),
        ((75, 75, "lost"), 137, True),
    ],
)
def test_exit_codes_decide_what_follows(start, codes, ended, requeued):
    assert start(*codes) == (ended, requeued)


def test_failures_are_counted_and_unfinished_starts_are_not(start):
    assert start(1, 1, 1) == (1, True)
    assert start(75, 75, 75) == (0, True)
    assert start(1, 1, 1) == (1, True)
    assert start(75, 75, 75) == (0, True)
    assert start(1, 1, 1) == (1, False)


def test_options_reach_sbatch(make_job):
    slurm = Slurm(
        partition="gpu",
        account="lab",
        qos="high",
        time="1:00:00",
        grace_seconds=300,
        network="efa",
        environment=("NAME=a value", "NCCL_DEBUG=INFO"),
        options=("--constraint=ib",),
    )
    text = slurm.render(make_job(hardware.of_chips("h100-32")))["train.sbatch"]
    lines = text.splitlines()
    for wanted in (
        "--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--exclusive",
        "--partition=gpu", "--account=lab", "--qos=high", "--time=1:00:00",
        "--requeue", "--signal=TERM@300", "--constraint=ib",
    ):  # fmt: skip
        assert f"#SBATCH {wanted}" in lines
    assert "export NAME='a value'" in lines
    assert "export FI_PROVIDER=efa" in lines
    assert "export NCCL_DEBUG=INFO" in lines


def test_without_gpus_none_are_asked_for(make_job):
    text = Slurm().render(make_job(hardware.of_nodes(2, 0)))["train.sbatch"]
    assert "--gpus" not in text


@pytest.mark.parametrize(
    ("container", "image", "entered"),
    [
        (
            "pyxis",
            "registry#fmjax:gpu",
            "--container-image=registry#fmjax:gpu "
            "--container-mounts={0}:{0},/data:/data",
        ),
        (
            "apptainer",
            "/shared/fmjax.sif",
            "apptainer exec --nv --bind {0}:{0} --bind /data:/data "
            "/shared/fmjax.sif bash",
        ),
    ],
)
def test_a_container_is_entered_by_srun(make_job, container, image, entered):
    job = make_job(run_dir="/data/runs/job")
    slurm = Slurm(container=container, image=image, mounts=("/data:/data",))
    slurm.check(job)
    files = slurm.render(job)
    assert "\nexport FMJAX_CACHE=/data/fmjax-cache\n" in files["train.sbatch"]
    words = files["train.sbatch"].replace("'", "")
    assert entered.format(job.folder) in words
    assert "\npython -m fmjax train" in files["task.sh"]


@pytest.mark.parametrize("container", ["pyxis", "apptainer"])
def test_a_run_directory_that_the_container_does_not_see_is_refused(
    make_job, container
):
    slurm = Slurm(container=container, image="i", mounts=("/data:/data",))
    for run_dir in ("/shared/runs/job", "/database/run"):
        with pytest.raises(UserError, match=f"--run_dir {run_dir}: .*slurm.mounts"):
            slurm.check(make_job(run_dir=run_dir))
    slurm.check(make_job(run_dir="s3://bucket/run"))
    Slurm().check(make_job(run_dir="/shared/runs/job"))


@pytest.mark.parametrize("name", ["a b", "a%j", "it's", 'a"b', "a,b", "a:b"])
def test_a_folder_that_sbatch_would_take_for_another_is_refused(make_job, name):
    job = make_job()
    with pytest.raises(UserError, match="--out"):
        Slurm().check(job.in_folder(job.folder / name))


def test_the_log_is_followed_until_the_job_ends(make_job, tool, capfd, monkeypatch):
    monkeypatch.setattr("fmjax.launch.slurm.POLL_SECONDS", 0.01)
    job = make_job()
    write(job, Slurm().render(job))
    tool("sbatch", f'[[ "$*" == "--parsable {job.folder}/train.sbatch" ]] && echo 12\n')
    states = job.folder / "states"
    states.write_text("PENDING\nRUNNING\nRUNNING\nCOMPLETED\n")
    tool(
        "scontrol",
        f"state=$(head -n 1 {states}); sed -i 1d {states}\n"
        f'[[ $state == RUNNING ]] && echo "a step" >>{job.folder}/slurm-12.out\n'
        'echo "JobId=12 JobName=job JobState=$state Reason=Resources Partition=all"\n',
    )
    slurm = Slurm()
    assert slurm.follow(job, slurm.submit(job)) == 0
    assert capfd.readouterr().out.splitlines() == [
        "job 12: PENDING (Resources)",
        "job 12: RUNNING (Resources)",
        "a step",
        "a step",
        "job 12: COMPLETED (Resources)",
    ]


def test_what_sbatch_refuses_is_told(make_job, tool):
    job = make_job()
    tool("sbatch", "echo 'invalid partition specified: gpu' >&2; exit 1\n")
    with pytest.raises(UserError, match="invalid partition specified: gpu"):
        Slurm().submit(job)


def test_without_slurm_the_tool_is_named(make_job, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"sbatch is not on the PATH.*login node"):
        Slurm().submit(make_job())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"restarts": -1}, "slurm.restarts"),
        ({"grace_seconds": 0}, "slurm.grace_seconds"),
        ({"container": "pyxis"}, "slurm.container and slurm.image"),
        ({"options": ("constraint=ib",)}, "slurm.options"),
        ({"environment": ("A B=1",)}, "slurm.environment"),
        ({"mounts": ("/data",)}, "slurm.mounts"),
    ],
)
def test_fields_are_refused_by_name(fields, named):
    with pytest.raises(UserError, match=named):
        Slurm(**fields)


def test_slurm_has_no_tpus(make_job):
    with pytest.raises(UserError, match="Slurm has no v5e"):
        Slurm().check(make_job(hardware.of_chips("v5e-16")))

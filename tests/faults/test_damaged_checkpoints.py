"""Whatever happens to a file of the newest checkpoint, no wrong bit is restored."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.checkpoint import saved_state
from fmjax.training.checkpoint.checkpoints import DAMAGED, Checkpoints
from fmjax.training.checkpoint.read_model import restore_model
from fmjax.training.checkpoint.saved_state import FOLDER, saved_steps
from fmjax.training.state import State, plan_state

OBJECTIVE = CausalLM(
    GPT(
        TransformerConfig(num_layers=2, embed_dim=16, num_heads=2),
        vocab_size=50,
        max_length=8,
    )
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(saved_state, "_PAUSES_SECONDS", (0.0,))


def plan(width=16):
    objective = OBJECTIVE
    if width != 16:
        config = TransformerConfig(num_layers=2, embed_dim=width, num_heads=2)
        objective = CausalLM(GPT(config, vocab_size=50, max_length=8))
    mesh_config = MeshConfig()
    mesh = mesh_config.build(jax.devices()[:1])
    optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
    return plan_state(
        objective, optimizer, mesh, mesh_config.all_rules, train_steps=5, seed=3
    )


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero(file: pathlib.Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))


def remove(file: pathlib.Path) -> None:
    file.unlink()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory with checkpoints of steps 3 and 5, and their states."""
    folder, states = tmp_path_factory.mktemp("saved"), {}
    first = plan().init()
    checkpoints = Checkpoints(folder, keep_last=2)
    for step in (3, 5):
        params = jax.tree.map(lambda x: x * step, first.params)  # noqa: B023
        state = State(jnp.int32(step), params, {}, first.opt_state)
        states[step] = jax.device_get(state)
        checkpoints.save(state, {"iterator": {"position": step}}, {"config": "x"})
    checkpoints.wait()
    checkpoints.close()
    return folder, states


def all_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = (folder / FOLDER / "5").rglob("*")
    return sorted(path.relative_to(folder) for path in found if path.is_file())


# Truncated and zeroed files are found by what finds flipped bits.
HARMS = [flip, *map(slow, (remove, truncate, zero))]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_gives_the_same_bits_or_the_checkpoint_before(
    saved, tmp_path, harm
):
    folder, states = saved
    shapes = plan().shapes
    fell_back = []
    files = all_files(folder)
    assert len(files) >= 10
    for number, file in enumerate(files):
        run_dir = tmp_path / str(number)
        shutil.copytree(folder, run_dir)
        harm(run_dir / file)
        said: list[str] = []
        checkpoints = Checkpoints(run_dir, keep_last=2)
        found = checkpoints.restore_newest(shapes, said.append)
        checkpoints.close()
        assert found.data == {"iterator": {"position": found.step}}, file
        jax.tree.map(np.testing.assert_array_equal, found.state, states[found.step])
        if found.step == 3:
            fell_back.append(file.parts[2])
            assert len(said) == 1
            assert (run_dir / DAMAGED / "5").is_dir()
            assert saved_steps(run_dir) == [3]
        else:
            assert said == []
        shutil.rmtree(run_dir)
    assert {"state", "data", "meta", "digests"} <= set(fell_back)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_told_of_or_changes_nothing_for_those_who_load(
    saved, tmp_path, harm
):
    folder, states = saved
    mesh, rules = MeshConfig().build(jax.devices()[:1]), MeshConfig().all_rules
    refused = []
    for number, file in enumerate(all_files(folder)):
        run_dir = tmp_path / str(number)
        shutil.copytree(folder, run_dir)
        harm(run_dir / file)
        try:
            # What eval, generate, export and init_from read with.
            found, step = restore_model(run_dir, OBJECTIVE, mesh, rules)
        except UserError as error:
            refused.append((file.parts[2], str(error)))
        else:
            assert step == 5
            want = states[5].params
            jax.tree.map(np.testing.assert_array_equal, found["params"], want)
        shutil.rmtree(run_dir)
    assert all(f"/{FOLDER}/5" in message for _, message in refused)
    assert {"state", "digests"} <= {item for item, _ in refused}


def test_folders_that_are_no_steps_are_passed_over(saved, tmp_path):
    folder, states = saved
    shutil.copytree(folder, tmp_path / "run")
    for name in ("²", "٣", "007", "-1", "9" * 30, "notes"):
        (tmp_path / "run" / FOLDER / name).mkdir()
    (tmp_path / "run" / FOLDER / "8").write_text("no folder")
    assert saved_steps(tmp_path / "run") == [3, 5]
    mesh, rules = MeshConfig().build(jax.devices()[:1]), MeshConfig().all_rules
    found, step = restore_model(tmp_path / "run", OBJECTIVE, mesh, rules)
    assert step == 5
    jax.tree.map(np.testing.assert_array_equal, found["params"], states[5].params)


def test_every_byte_of_the_weights_is_looked_at(saved, tmp_path):
    folder, states = saved
    shapes = plan().shapes
    content = max(
        (folder / file for file in all_files(folder) if "d" in file.parts),
        key=lambda file: file.stat().st_size,
    )
    rng = np.random.default_rng(0)
    for number in range(20):
        run_dir = tmp_path / str(number)
        shutil.copytree(folder, run_dir)
        file = run_dir / content.relative_to(folder)
        raw = bytearray(file.read_bytes())
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(raw))
        checkpoints = Checkpoints(run_dir)
        found = checkpoints.restore_newest(shapes, lambda text: None)
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, found.state, states[found.step])


def test_digests_of_one_process_of_two_are_not_enough(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    file = tmp_path / "run" / FOLDER / "5" / "digests" / "0-of-1.json"
    file.rename(file.with_name("0-of-2.json"))
    checkpoints, said = Checkpoints(tmp_path / "run"), []
    assert checkpoints.restore_newest(plan().shapes, said.append).step == 3
    checkpoints.close()
    assert "digests of 1 processes, not of all" in said[0]


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), MemoryError()])
def test_what_passes_or_is_of_this_machine_is_no_damage(
    saved, tmp_path, monkeypatch, error
):
    shutil.copytree(saved[0], tmp_path / "run")
    checkpoints, said, errors = Checkpoints(tmp_path / "run"), [], [error]
    read = ocp.CheckpointManager.restore

    def restore(*args, **kwargs):
        if errors:
            raise errors.pop()
        return read(*args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    if isinstance(error, MemoryError):
        with pytest.raises(MemoryError):
            checkpoints.restore_newest(plan().shapes, said.append)
    else:
        assert checkpoints.restore_newest(plan().shapes, said.append).step == 5
    checkpoints.close()
    assert said == []
    assert saved_steps(tmp_path / "run") == [3, 5]


def test_what_a_killed_save_left_is_cleared_away(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    whole = tmp_path / "run" / FOLDER / "5"
    shutil.copytree(whole, whole.with_name("7.orbax-checkpoint-tmp"))
    Checkpoints(tmp_path / "run").close()
    assert sorted(f.name for f in (tmp_path / "run" / FOLDER).iterdir()) == ["3", "5"]


def test_none_whole_is_an_error_that_lists_them_and_changes_nothing(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    for step in (3, 5):
        remove(tmp_path / "run" / FOLDER / str(step) / "data" / "metadata")
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint is whole") as error:
        checkpoints.restore_newest(plan().shapes, lambda text: None)
    checkpoints.close()
    assert "  5: " in str(error.value)
    assert "  3: " in str(error.value)
    assert saved_steps(tmp_path / "run") == [3, 5]


def test_another_model_is_a_mistake_and_no_damage(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(UserError, match=r"should be float32 .* found float32"):
        checkpoints.restore_newest(plan(width=32).shapes, lambda text: None)
    checkpoints.close()
    assert saved_steps(tmp_path / "run") == [3, 5]


def test_a_model_is_not_loaded_with_a_wrong_bit(saved, tmp_path):
    folder = saved[0]
    shutil.copytree(folder, tmp_path / "run")
    mesh = MeshConfig().build(jax.devices()[:1])
    rules = MeshConfig().all_rules
    restore_model(tmp_path / "run", OBJECTIVE, mesh, rules)
    digests = tmp_path / "run" / FOLDER / "5" / "digests" / "0-of-1.json"
    other = folder / FOLDER / "3" / "digests" / "0-of-1.json"
    digests.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="is damaged: params/"):
        restore_model(tmp_path / "run", OBJECTIVE, mesh, rules)
    restore_model(tmp_path / "run", OBJECTIVE, mesh, rules, step=3)

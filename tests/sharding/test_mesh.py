"""Meshes from sizes, placements from names, and what is refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fmjax.errors import UserError
from fmjax.sharding.mesh import (
    MeshConfig,
    batch_sharding,
    batch_shards,
    local_rows,
)
from fmjax.sharding.rules import param_specs
from fmjax.training.checks import check_divisible


def test_one_axis_takes_what_is_left():
    config = MeshConfig(data=-1, fsdp=2, tensor=2)
    assert dict(config.build().shape) == {
        "data": 2, "fsdp": 2, "stage": 1, "expert": 1, "context": 1, "tensor": 2,
    }  # fmt: skip
    assert config.sizes(4) == (1, 2, 1, 1, 1, 2)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 0}, "mesh.data = 0"),
        ({"data": -1, "fsdp": -1}, "only one axis"),
        ({"context": 0}, "mesh.context = 0"),
        ({"stage": -2}, "mesh.stage = -2"),
        ({"rules": (("embed", "fdsp"),)}, "'fdsp'"),
    ],
)
def test_impossible_meshes_are_refused(axes, message):
    with pytest.raises(UserError, match=message):
        MeshConfig(**axes)


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(tensor=3)])
def test_sizes_that_do_not_fit_the_devices(config):
    with pytest.raises(UserError, match="devices"):
        config.build()


def test_rules_place_parameters():
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    axes = {"w": ("layers", "embed", "mlp"), "b": ("norm",)}
    shapes = {"w": jnp.zeros((3, 4, 6)), "b": jnp.zeros(4)}
    specs = param_specs(axes, shapes, config.build(), config.all_rules)
    assert specs == {
        "w": PartitionSpec("stage", ("fsdp", "context"), "tensor"),
        "b": PartitionSpec(None),
    }
    own = MeshConfig(data=2, fsdp=2, tensor=2, rules=(("mlp", None),))
    specs = param_specs(axes, shapes, own.build(), own.all_rules)
    assert specs["w"] == PartitionSpec("stage", ("fsdp", "context"), None)


def test_sizes_that_an_axis_does_not_divide_are_named():
    config = MeshConfig(data=-1, tensor=4)
    with pytest.raises(UserError, match=r"mesh.tensor = 4 .* 'mlp' of w, .* size 6"):
        param_specs(
            {"w": ("embed", "mlp")},
            {"w": jnp.zeros((4, 6))},
            config.build(),
            config.all_rules,
        )
    with pytest.raises(UserError, match="no rule for logical axis 'mpl'"):
        param_specs(
            {"w": ("mpl",)}, {"w": jnp.zeros(4)}, config.build(), config.all_rules
        )


def test_an_expert_axis_needs_experts():
    config = MeshConfig(data=-1, expert=2)
    with pytest.raises(
        UserError, match=r"mesh.expert = 2.*transformer.experts = @experts"
    ):
        param_specs(
            {"w": ("embed", "mlp")},
            {"w": jnp.zeros((4, 6))},
            config.build(),
            config.all_rules,
        )
    specs = param_specs(
        {"w": ("expert", "embed", "mlp")},
        {"w": jnp.zeros((4, 4, 6))},
        config.build(),
        config.all_rules,
    )
    assert specs["w"] == PartitionSpec("expert", ("fsdp", "context"), "tensor")


def test_the_batch_lies_over_data_and_fsdp():
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    mesh = config.build()
    assert batch_shards(mesh, config.all_rules) == 4
    sharding = batch_sharding(mesh, config.all_rules)
    assert local_rows(sharding, 8) == range(8)
    x = jax.device_put(jnp.zeros((8, 3)), sharding)
    assert x.sharding.shard_shape(x.shape) == (2, 3)


def test_an_axis_must_be_divided_by_the_product_of_its_mesh_axes():
    config = MeshConfig(data=2, fsdp=2, tensor=2, rules=(("mlp", ("fsdp", "tensor")),))
    arguments = (config.build(), config.all_rules)
    # Two and two divide six, four do not.
    with pytest.raises(
        UserError, match=r"mesh\.fsdp × mesh\.tensor = 4 does not divide axis 'mlp'"
    ):
        param_specs({"w": ("mlp",)}, {"w": jnp.zeros(6)}, *arguments)
    specs = param_specs({"w": ("mlp",)}, {"w": jnp.zeros(8)}, *arguments)
    assert specs == {"w": PartitionSpec(("fsdp", "tensor"))}


def test_a_batch_that_experts_do_not_divide_names_their_axis():
    config = MeshConfig(data=2, expert=4)
    with pytest.raises(UserError, match=r"in 8 \(mesh\.data × mesh\.expert\)"):
        check_divisible("train.batch_size", 12, 1, config.build(), config.all_rules)

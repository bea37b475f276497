"""FLOPs of grouped products, in what libtpu makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from tpu_compiler import tpu_devices

from fmjax.models.layers.grouped_dot import expected_rows, grouped_dot
from fmjax.planning.grouped_products import grouped_flops
from fmjax.planning.hlo_module import parse_module

ROWS, EXPECTED, D, F, E = 2048, 512, 256, 384, 4


@pytest.mark.parametrize("expected", [None, EXPECTED])
def test_the_rows_that_are_expected_count(expected):
    mesh = Mesh(np.array(tpu_devices("v5e:2x2")), ("a",))

    def squares(rows, kernels, sizes):
        if expected is None:
            product = grouped_dot(rows, kernels, sizes)
        else:
            with expected_rows(expected):
                product = grouped_dot(rows, kernels, sizes)
        here = jnp.arange(ROWS)[:, None] < sizes.sum()
        return (jnp.where(here, product, 0).astype(jnp.float32) ** 2).sum()

    everywhere = PartitionSpec()
    gradients = jax.shard_map(
        jax.grad(squares, (0, 1)),
        mesh=mesh,
        in_specs=everywhere,
        out_specs=everywhere,
        check_vma=False,
    )
    shapes = (((ROWS, D), "bfloat16"), ((E, D, F), "bfloat16"), ((E,), "int32"))
    with jax.set_mesh(mesh):
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        compiled = jax.jit(gradients).lower(*arguments).compile()
    found = {}
    for computation, i in parse_module(compiled.as_text()).scheduled():
        if (flops := grouped_flops(computation, i)) is not None:
            found[i.results[0].dims] = flops
    # The product and its gradients: of the rows, and of the kernels.
    of_one = 2 * (expected or ROWS) * D * F
    assert found == {(ROWS, F): of_one, (ROWS, D): of_one, (E, D, F): of_one}

"""What a train step is compiled with on each platform, and what a run may change."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from fmjax.sharding.chips import CHIPS, chip_of
from fmjax.sharding.xla_options import XLA_OPTIONS, xla_options

V5E = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
V5P = SimpleNamespace(platform="tpu", device_kind="TPU v5")
VMEM = "xla_tpu_scoped_vmem_limit_kib"
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"


def test_options_are_of_the_platform_and_of_the_chip():
    assert [*xla_options(jax.devices("cpu")[0], ())] == [YNNPACK]
    assert xla_options(V5E, ())[VMEM] == 98304
    assert xla_options(V5P, ())[VMEM] == 49152
    v4 = SimpleNamespace(platform="tpu", device_kind="TPU v4")
    assert VMEM not in xla_options(v4, ())
    assert xla_options(v4, ())["xla_enable_async_all_gather"] is True
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    assert not any("tpu" in name for name in xla_options(gpu, ()))


def test_a_run_changes_adds_and_leaves_out():
    changes = ((VMEM, 65536), ("xla_enable_async_all_gather", None), ("xla_new", 1))
    options = xla_options(V5E, changes)
    assert options[VMEM] == 65536
    assert options["xla_new"] == 1
    assert "xla_enable_async_all_gather" not in options


def test_this_compiler_makes_products_by_eigen_on_cpus():
    here = jax.devices("cpu")[0]
    ones = jnp.ones((512, 512))

    def compiled(options):
        product = jax.jit(lambda x: jnp.tanh(x @ x), compiler_options=options)
        return product.lower(ones).compile().as_text()

    assert "ynn_fusion" in compiled({})
    assert "ynn_fusion" not in compiled(xla_options(here, ()))


def test_every_option_says_why():
    for options in XLA_OPTIONS.values():
        given = [(o.name, chip) for o in options for chip in o.chips or CHIPS]
        assert len({*given}) == len(given)
        for option in options:
            assert option.reason
            assert option.source
            assert set(option.chips or CHIPS) <= set(CHIPS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "v7x"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_kinds_of_devices_are_chips(kind, name):
    assert chip_of(SimpleNamespace(device_kind=kind)).name == name


def test_clocks_are_peaks_over_the_matrix_units():
    # Units of a chip and their width: 4 of 128 in each core up to v5p, which has two.
    units = {"v4": (8, 128), "v5e": (4, 128), "v5p": (8, 128), "v6e": (4, 256)}
    for name, (count, width) in units.items():
        cycle = count * 2 * width**2
        assert CHIPS[name].clock_hz == pytest.approx(
            CHIPS[name].peak_flops / cycle, 0.01
        )

"""XLA's options per platform: what a train step is compiled with, and why.

They are given to the compiler with the program, so neither XLA_FLAGS nor
LIBTPU_INIT_ARGS have to be set, and a plan for chips that are not here is compiled as
the run will be.
"""

import contextlib
import contextvars
import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import jax

from fmjax.errors import UserError
from fmjax.sharding.chips import chip_of

Value = bool | int | float | str
Changes = Sequence[tuple[str, Value | None]]


@dataclasses.dataclass(frozen=True)
class XlaOption:
    """An option of XLA that differs from the compiler's default.

    Attributes:
      name: of the option.
      value: that it gets.
      reason: for that value.
      source: where the option is recommended or described.
      chips: of `fmjax.sharding.chips` that it is for; None for all of the platform.
    """

    name: str
    value: Value
    reason: str
    source: str
    chips: tuple[str, ...] | None = None


SCOPED_VMEM = "xla_tpu_scoped_vmem_limit_kib"
_compiled_with: contextvars.ContextVar[Mapping[str, Value] | None]
_compiled_with = contextvars.ContextVar("compiled_with", default=None)
_MAXTEXT = "MaxText, benchmarks/xla_flags_library.py"
_JAX_GPU = "docs.jax.dev/en/latest/gpu_performance_tips.html"
_ASYNC = "collectives run beside the products of the same layer"

XLA_OPTIONS: dict[str, tuple[XlaOption, ...]] = {
    "cpu": (
        XlaOption(
            "xla_cpu_experimental_ynn_fusion_type",
            "",
            "products by Eigen instead of YNNPACK: a step of GPT-2 with six layers of "
            "384 takes 7% less time, with four layers of 192 14% less",
            "measured with jaxlib 0.10.2 on two threads of an EPYC, November 2026",
        ),
    ),
    "tpu": (
        XlaOption(
            SCOPED_VMEM,
            98304,
            "products and attention kernels take larger blocks; the default of 16 MiB "
            "is an eighth of the vector memory of these chips",
            _MAXTEXT,
            chips=("v5e", "v6e"),
        ),
        XlaOption(
            SCOPED_VMEM,
            49152,
            "as on v5e: three quarters of the 64 MiB of vector memory of a core",
            "jax.experimental.pallas.tpu.get_tpu_info",
            chips=("v5p",),
        ),
        XlaOption("xla_enable_async_all_gather", True, _ASYNC, _MAXTEXT),
        XlaOption("xla_tpu_enable_async_collective_fusion", True, _ASYNC, _MAXTEXT),
        XlaOption(
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
            True,
            "weights of the next layer are gathered during this one",
            _MAXTEXT,
        ),
        XlaOption(
            "xla_tpu_enable_async_collective_fusion_multiple_steps",
            True,
            "one collective may lie beside several products",
            _MAXTEXT,
        ),
        XlaOption("xla_tpu_overlap_compute_collective_tc", True, _ASYNC, _MAXTEXT),
        XlaOption(
            "xla_jf_spmd_threshold_for_windowed_einsum_mib",
            1_000_000,
            "weights are gathered whole: products in pieces of a ring of few chips are "
            "slower than the gather that they hide (GPT-2 on 2 × 4 v5e: 203 ms a step, "
            "126 ms without them, predicted)",
            "predicted by fmjax plan, libtpu 0.0.42.1, November 2026",
        ),
        XlaOption(
            "xla_tpu_enable_data_parallel_all_reduce_opt",
            True,
            "gradients of a data-parallel axis are summed during the backward pass",
            _MAXTEXT,
        ),
        XlaOption(
            "xla_tpu_data_parallel_opt_different_sized_ops",
            True,
            "the same for gradients of different sizes",
            _MAXTEXT,
        ),
    ),
    "gpu": (
        XlaOption(
            "xla_gpu_enable_latency_hiding_scheduler",
            True,
            "collectives run beside computation",
            _JAX_GPU,
        ),
        XlaOption(
            "xla_gpu_enable_triton_gemm",
            False,
            "cuBLAS's products are faster for the sizes of transformers",
            _JAX_GPU,
        ),
    ),
}


def xla_options(device: jax.Device, changes: Changes) -> dict[str, Value]:
    """Options that a train step is compiled with, by name.

    Args:
      device: one of the mesh's.
      changes: (name, value) pairs to add, or to replace those of the platform; None
        leaves the compiler's default.
    """
    chip = chip_of(device)
    options = {
        option.name: option.value
        for option in XLA_OPTIONS.get(device.platform, ())
        if option.chips is None or (chip and chip.name in option.chips)
    }
    options |= dict(changes)
    return {name: value for name, value in options.items() if value is not None}


def describe_presets() -> list[str]:
    """Comment lines for a config: every option, by platform, and why it is set."""
    lines = ["# Options of XLA on each platform; train.xla_options changes them."]
    for platform, options in XLA_OPTIONS.items():
        for option in options:
            chips = f" ({', '.join(option.chips)})" if option.chips else ""
            name = f"#   {platform}{chips}: {option.name} = {option.value!r}: "
            lines += textwrap.wrap(
                f"{option.reason}; {option.source}",
                88,
                initial_indent=name,
                subsequent_indent="#     ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


@contextlib.contextmanager
def compiled_with(options: Mapping[str, Value] | None) -> Iterator[None]:
    """Context manager: what is traced inside will be compiled with these options."""
    token = _compiled_with.set(options)
    try:
        yield
    finally:
        _compiled_with.reset(token)


def option_of_trace(name: str) -> Value | None:
    """The option that what is being traced will be compiled with; None for none."""
    return (_compiled_with.get() or {}).get(name)


def check_xla_options(device: jax.Device, changes: Changes) -> None:
    """Raises a UserError for options that the compiler refuses; compiles a constant.

    Args:
      device: as for `xla_options`.
      changes: as for `xla_options`.
    """
    options = xla_options(device, changes)
    if not options:
        return
    here = jax.sharding.SingleDeviceSharding(device)
    try:
        jax.jit(
            lambda: 0, out_shardings=here, compiler_options=options
        ).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        said = str(error).partition(": ")[2].strip()
        for name, value in changes:
            if name in said:
                raise UserError(
                    f"train.xla_options: {name} = {value!r}: {said}"
                ) from None
        raise UserError(
            f"this compiler refuses an option of fmjax.sharding.xla_options: {said}. "
            "train.xla_options = (('NAME', None),) leaves it out."
        ) from None

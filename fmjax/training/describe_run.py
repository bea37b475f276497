"""What a run says of itself before its first step."""

from fmjax.sharding.processes import describe_hosts
from fmjax.sharding.xla_options import Changes, xla_options
from fmjax.training.reporting.throughput import describe_peak
from fmjax.training.setup import Setup


def describe_run(setup: Setup, changes: Changes) -> list[str]:
    """Lines for the log: hosts, parameters, peak, options, frozen and copied parts.

    Every process must call it.

    Args:
      setup: of the run.
      changes: train.xla_options.
    """
    plan, device = setup.plan, setup.mesh.devices.flat[0]
    lines = [*describe_hosts(), plan.describe(setup.mesh)]
    if device.platform != "cpu":
        lines.append(describe_peak(device))
    if options := xla_options(device, changes):
        lines.append(
            "XLA options: " + ", ".join(f"{n}={x}" for n, x in options.items())
        )
    if len(plan.rate_groups) > 1:
        groups = (f"× {f:g} of {n:,}" for f, n in plan.rate_groups.items())
        lines.append(f"learning rates by parameters: {', '.join(groups)}")
    if plan.peft is not None:
        lines.append(plan.peft.describe())
    lines += plan.freezing.describe(plan.shapes.params)
    return [*lines, *(copy.describe() for copy in setup.copies)]

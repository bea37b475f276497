"""Environment variables per network of GPUs: what NCCL needs, and why."""

import dataclasses
import textwrap
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Variable:
    """An environment variable of a job's processes.

    Attributes:
      name: of the variable.
      value: that it gets.
      reason: for that value.
      source: where it is recommended or described.
    """

    name: str
    value: str
    reason: str
    source: str


_NCCL = "docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html"
_EVERYWHERE = (
    Variable(
        "NCCL_SOCKET_IFNAME",
        "^docker,lo,veth",
        "for the first contact; interfaces of containers do not reach other nodes",
        _NCCL,
    ),
    Variable("NCCL_DEBUG", "WARN", "what fails is named in the log", _NCCL),
)
NETWORKS: dict[str, tuple[Variable, ...]] = {
    "efa": (
        Variable(
            "FI_PROVIDER",
            "efa",
            "libfabric would take TCP where several providers are installed",
            "docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start-nccl.html",
        ),
        Variable(
            "FI_EFA_USE_HUGE_PAGE",
            "0",
            "with huge pages, processes that fork run out of memory",
            "github.com/aws-samples/awsome-distributed-training, its EFA cheat sheet",
        ),
        *_EVERYWHERE,
    ),
    # NCCL finds InfiniBand's adapters by itself.
    "infiniband": _EVERYWHERE,
}


def network_environment(
    network: str | None, changes: Sequence[str] = ()
) -> dict[str, str]:
    """The variables of a network.

    Args:
      network: one of NETWORKS; None for none.
      changes: "NAME=VALUE", added to them or in their place.
    """
    preset = NETWORKS[network] if network else ()
    found = {variable.name: variable.value for variable in preset}
    return found | dict(each.split("=", 1) for each in changes)


def describe_network(network: str) -> list[str]:
    """Comment lines for a config: every variable of a network, and why it is set."""
    lines = [f"# Variables of the network {network}:"]
    for variable in NETWORKS[network]:
        lines += textwrap.wrap(
            f"{variable.reason}; {variable.source}",
            88,
            initial_indent=f"#   {variable.name}={variable.value}: ",
            subsequent_indent="#     ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines

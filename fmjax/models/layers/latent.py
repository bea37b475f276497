"""Sizes of multi-head latent attention."""

import dataclasses

from fmjax.configurable import configurable
from fmjax.errors import require


@configurable("latent")
@dataclasses.dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, DeepSeek-AI 2024, section 2.1).

    Keys and values of all heads are projections of one normalized latent vector per
    token, and one rotated key that heads share is appended to their keys. The key-value
    cache holds these two. transformer.head_dim is the width of a query: rotary_dim
    features that turn, after those that do not.

    Attributes:
      rank: width of the latent vector of keys and values.
      query_rank: width of a latent vector of queries; None for queries from the input.
      rotary_dim: R, width of the key that heads share, and of the part of each query
        that turns with it.
      value_dim: width of a head's values.
      norm_epsilon: of the norms of latent vectors.
    """

    rank: int = 512
    query_rank: int | None = 1536
    rotary_dim: int = 64
    value_dim: int = 128
    norm_epsilon: float = 1e-6

    def __post_init__(self):
        """Raises UserError for widths below 1."""
        for name in ("rank", "query_rank", "rotary_dim", "value_dim"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")

    def check(self, head_dim: int) -> None:
        """Raises UserError if it does not fit queries of this width."""
        fits = self.rotary_dim < head_dim
        require(
            self, "rotary_dim", fits, f"less than transformer.head_dim = {head_dim}"
        )
        # Values are padded to the width of keys, for kernels take one width.
        fits = self.value_dim <= head_dim
        require(self, "value_dim", fits, f"at most transformer.head_dim = {head_dim}")

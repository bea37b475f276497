"""Contrastive losses over a global batch, computed in chunks of its B² logits.

Each device holds the logits of its own rows with one chunk of the other side, and
recomputes them for the gradients. Embeddings of the global batch are small and are
gathered; logits are not.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt32

# In place of log 0: minus infinity would make gradients NaN.
_NONE = -1e30
# By default TPUs multiply in bfloat16 and GPUs in TF32. With a scale of 100 the errors
# of a logit would be 0.4 and 0.05, while the logit of the matching pair, computed as a
# sum of products, would have no such error.
_PRECISION = jax.lax.Precision.HIGHEST


def softmax_contrast(
    x: Float[Array, "B E"],
    y: Float[Array, "B E"],
    scale: Float[Array, ""],
    counts: Bool[Array, " B"],
    chunks: int,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """InfoNCE in both directions, as in CLIP (Radford et al. 2021, figure 3).

    Row i of x matches row i of y. CLIP's loss is the mean of both results.

    Args:
      x: embeddings of one side, float32; of unit length for cosine similarity.
      y: embeddings of the other side, of the same dtype and length.
      scale: multiplies the inner products (the inverse temperature).
      counts: False for rows of padding, which are not used as negatives.
      chunks: number of chunks that y is split into.

    Returns:
      Cross-entropies [B] of each x against all y, and of each y against all x; zero for
      padding.
    """
    match = scale * (x * y).sum(-1)
    x = x * scale

    def of_chunk(log_z, chunk):
        y, counts_y = chunk
        logits = _products(x, y)  # [B, c]
        among = jax.nn.logsumexp(jnp.where(counts_y, logits, _NONE), axis=1)
        other = jax.nn.logsumexp(jnp.where(counts[:, None], logits, _NONE), axis=0)
        return jnp.logaddexp(log_z, among), other

    start = jnp.full(len(x), _NONE)
    log_z, others = _scan(of_chunk, start, (_whole(y), _whole(counts)), chunks)
    of_x, of_y = log_z - match, others - match
    return jnp.where(counts, of_x, 0.0), jnp.where(counts, of_y, 0.0)


def ranking_contrast(
    x: Float[Array, "B E"],
    y: Float[Array, "B C E"],
    scale: float,
    counts: Bool[Array, " B"],
    chunks: int,
    texts: UInt32[Array, "B G H"] | None = None,
    symmetric: bool = False,
) -> Float[Array, " B"]:
    """Multiple negatives ranking (Henderson et al. 2017, equation 5), an InfoNCE.

    Row i of x matches y[i, 0], among the candidates of all rows: their matches, and
    y[:, 1:], hard negatives (Gao et al. 2021, equation 5).

    Args:
      x: embeddings of the anchors, float32.
      y: embeddings of the candidates.
      scale: multiplies the inner products (the inverse temperature).
      counts: False for rows of padding, which are not used as negatives.
      chunks: number of chunks that the rows of y are split into.
      texts: what tells equal texts, such as hashes, of the anchor and of each
        candidate, G = 1 + C. For an anchor the following are no negatives: a text equal
        to it or to its match, and the match of an equal anchor. None uses all.
      symmetric: whether to average with the loss of each match among all anchors.

    Returns:
      The cross-entropy of each row, [B]; zero for padding.
    """
    match = scale * (x * y[:, 0]).sum(-1)
    rows, x = jnp.arange(len(x)), x * scale

    def of_chunk(log_z, chunk):
        y, counts_y, columns, texts_y = chunk
        logits = jnp.einsum("be,cke->bck", x, y, precision=_PRECISION)
        out = jnp.broadcast_to(~counts_y[:, None], logits.shape)
        if texts is not None:
            out |= _false_negatives(texts, texts_y, rows, columns, logits.shape[-1])
        among = jax.nn.logsumexp(jnp.where(out, _NONE, logits), axis=(1, 2))
        out_y, other = out[..., 0] | ~counts[:, None], jnp.zeros(len(columns))
        if symmetric:
            other = jax.nn.logsumexp(jnp.where(out_y, _NONE, logits[..., 0]), axis=0)
        return jnp.logaddexp(log_z, among), other

    start = jnp.full(len(x), _NONE)
    known = None if texts is None else _whole(texts)
    sides = (_whole(y), _whole(counts), rows, known)
    log_z, others = _scan(of_chunk, start, sides, chunks)
    losses = log_z - match
    if symmetric:
        losses = (losses + others - match) / 2
    return jnp.where(counts, losses, 0.0)


def _false_negatives(
    texts: UInt32[Array, "B G H"],
    texts_y: UInt32[Array, "c G H"],
    rows: Int[Array, " B"],
    columns: Int[Array, " c"],
    candidates: int,
) -> Bool[Array, "B c C"]:
    """Which candidates of which rows are no negatives, see `ranking_contrast`."""

    def equal(one: Array, other: Array) -> Array:
        return (one[:, None] == other[None]).all(-1)

    found = []
    for at in range(candidates):
        known = equal(texts[:, 1], texts_y[:, 1 + at])
        known |= equal(texts[:, 0], texts_y[:, 1 + at])
        if at == 0:
            known |= equal(texts[:, 0], texts_y[:, 0])
            known &= rows[:, None] != columns
        found.append(known)
    return jnp.stack(found, -1)


def sigmoid_contrast(
    x: Float[Array, "B E"],
    y: Float[Array, "B E"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    counts: Bool[Array, " B"],
    chunks: int,
) -> Float[Array, " B"]:
    """Pairwise sigmoid loss, as in SigLIP (Zhai et al. 2023, equation 1).

    Args:
      x: embeddings of one side, float32.
      y: embeddings of the other side; row i matches row i of x.
      scale: multiplies the inner products.
      bias: added to them.
      counts: False for rows of padding.
      chunks: number of chunks that y is split into.

    Returns:
      For each x the sum of binary cross-entropies over all y, [B]; zero for padding.
    """
    rows = jnp.arange(len(x))
    x = x * scale

    def of_chunk(sums, chunk):
        y, counts_y, columns = chunk
        logits = _products(x, y) + bias  # [B, c]
        agree = jnp.where(rows[:, None] == columns, logits, -logits)
        losses = jnp.where(counts_y, -jax.nn.log_sigmoid(agree), 0.0)
        return sums + losses.sum(1), None

    sides = (_whole(y), _whole(counts), rows)
    sums, _ = _scan(of_chunk, jnp.zeros(len(x)), sides, chunks)
    return jnp.where(counts, sums, 0.0)


def view_contrast(
    z: Float[Array, "B 2 E"],
    temperature: float,
    counts: Bool[Array, " B"],
    chunks: int,
) -> Float[Array, " B"]:
    """NT-Xent of two views of each image (SimCLR, Chen et al. 2020, equation 1).

    Each view is classified among all views of the batch except itself: the other view
    of its image and both views of all other images.

    Args:
      z: embeddings of both views, float32, of unit length.
      temperature: divides the inner products.
      counts: False for rows of padding.
      chunks: number of chunks that the images are split into.

    Returns:
      The mean of the cross-entropies of an image's two views, [B]; zero for padding.
    """
    match = (z[:, 0] * z[:, 1]).sum(-1) / temperature
    rows = jnp.arange(len(z))
    own = jnp.eye(2, dtype=bool)[:, None]  # [2, 1, 2]
    x = z / temperature

    def of_chunk(log_z, chunk):
        y, counts_y, columns = chunk
        logits = jnp.einsum("bve,cwe->bvcw", x, y, precision=_PRECISION)
        itself = (rows[:, None] == columns)[:, None, :, None] & own
        left_out = itself | ~counts_y[:, None]
        among = jax.nn.logsumexp(jnp.where(left_out, _NONE, logits), axis=(2, 3))
        return jnp.logaddexp(log_z, among), None

    start = jnp.full((len(z), 2), _NONE)
    log_z, _ = _scan(of_chunk, start, (_whole(z), _whole(counts), rows), chunks)
    return jnp.where(counts, log_z.mean(-1) - match, 0.0)


def is_nearest(
    x: Float[Array, "B E"],
    y: Float[Array, "B E"],
    counts: Bool[Array, " B"],
    chunks: int,
) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
    """Whether the matching row has the largest inner product: retrieval at rank 1.

    No gradient is taken. Ties count as correct.

    Args:
      x: embeddings of one side, float32.
      y: embeddings of the other side; row i matches row i of x.
      counts: False for rows of padding.
      chunks: number of chunks that y is split into.

    Returns:
      For each x among all y, and for each y among all x; False for padding.
    """
    x, y = jax.lax.stop_gradient((x, y))
    match = (x * y).sum(-1)
    # A margin, so that rounding does not turn a tie into an error.
    limit = match + 1e-6
    rows = jnp.arange(len(x))

    def of_chunk(near, chunk):
        y, counts_y, limits, columns = chunk
        products = _products(x, y)
        rival = (rows[:, None] != columns) & counts[:, None] & counts_y
        nearer = (rival & (products > limit[:, None])).any(1)
        return near & ~nearer, ~(rival & (products > limits)).any(0)

    sides = (_whole(y), _whole(counts), _whole(limit), rows)
    of_x, of_y = _scan(of_chunk, counts, sides, chunks)
    return of_x, of_y & counts


def _products(x: Float[Array, "B E"], y: Float[Array, "c E"]) -> Float[Array, "B c"]:
    return jnp.matmul(x, y.T, precision=_PRECISION)


def _whole(x: Array) -> Array:
    """Gathers the rows of all devices on each device."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


def _scan(of_chunk, start, arrays, chunks: int):
    """Scans over chunks of rows; logits are recomputed for the gradients.

    The last chunk is padded with zeros, of which `counts` is False.

    Returns:
      The last carry, and the outputs of all chunks, without the padding.
    """
    rows = len(arrays[0])
    size = -(-rows // min(chunks, rows))
    chunks = -(-rows // size)

    def cut(array: Array) -> Array:
        missing = [(0, chunks * size - rows)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, missing).reshape(chunks, size, *array.shape[1:])

    carry, found = jax.lax.scan(
        jax.checkpoint(of_chunk), start, jax.tree.map(cut, arrays)
    )
    return carry, jax.tree.map(lambda x: x.reshape(-1)[:rows], found)

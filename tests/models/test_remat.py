"""What each policy of rematerialization keeps: residuals, and products done again."""

import collections

import jax
import jax.numpy as jnp
import pytest

from fmjax.errors import UserError
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.block import Context
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer import Stack
from fmjax.models.layers.transformer_config import TransformerConfig

B, T, D, F, H, K, LAYERS = 2, 128, 24, 56, 3, 10, 2
# Of a layer: queries, keys, values, out, two feed-forward; scores and weighted sum.
WEIGHTS, ATTENTION = 6, 2


def gradient_of(remat, scan=True, **fields):
    """A function of x whose gradient is taken, and its parameters' shapes."""
    config = TransformerConfig(
        num_layers=LAYERS,
        embed_dim=D,
        mlp_dim=F,
        num_heads=H,
        head_dim=K,
        bias=False,
        remat=remat,
        scan_layers=scan,
        **fields,
    )
    stack = Stack(config)
    context = Context(jnp.arange(T)[None], AttentionMask(causal=True))
    x = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    params = jax.eval_shape(stack.init, jax.random.key(0), x, context)

    def hidden(params, x):
        return stack.apply(params, x, context)["hidden"]

    return hidden, params, x


def kept(remat, **fields):
    """How many arrays of each shape the forward pass keeps of a layer."""
    hidden, params, x = gradient_of(remat, **fields)
    pull = jax.eval_shape(lambda *a: jax.vjp(hidden, *a)[1], params, x)
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(pull) if leaf.ndim > 3]
    return collections.Counter(s for s in shapes if s[0] == B)


def products(remat, **fields):
    """Matrix products of a layer in the forward and backward pass together."""
    hidden, params, x = gradient_of(remat, scan=False, **fields)

    def pulled(params, x):
        out, pull = jax.vjp(hidden, params, x)
        return pull(out)

    def count(jaxpr):
        return sum(
            (e.primitive.name == "dot_general")
            + sum(count(inner) for inner in jax.core.jaxprs_in_params(e.params))
            for e in jaxpr.eqns
        )

    return count(jax.make_jaxpr(pulled)(params, x).jaxpr) / LAYERS


PROJECTIONS = collections.Counter(
    {(B, T, H * K): 3, (B, T, D): 1 + 1, (B, T, F): 1}  # and the block's input
)


def test_full_keeps_a_blocks_input_alone():
    assert kept("full") == {(B, T, D): 1}


def test_weights_keeps_products_with_weights():
    # The last product is only added, so nothing wants it again.
    assert kept("weights") == PROJECTIONS


def test_dots_keeps_attentions_products_as_well():
    scores, output = (B, H, T, T), (B, H, T, K)
    assert kept("dots") == PROJECTIONS + collections.Counter([scores, output])


@pytest.mark.parametrize("attention", ["splash", "blockwise"])
def test_attention_keeps_what_the_kernel_gives(attention):
    found = kept("attention", attention=attention)
    del found[B, T, D]
    assert found
    assert sum(n for shape, n in found.items() if K in shape) == 1


def test_what_is_named_is_kept_as_well():
    heads, hidden = (B, T, H, K), (B, T, F)
    found = kept("full", remat_save=("query", "mlp_in"))
    assert found == {(B, T, D): 1, heads: 1, hidden: 1}
    found = kept("attention", attention="splash", remat_save=("key", "value"))
    assert sum(n for shape, n in found.items() if K in shape) == 3


def test_latent_attention_has_the_names_of_attention():
    latent = Latent(rank=7, query_rank=None, rotary_dim=4, value_dim=6)
    own = {"latent": latent, "rotary": Rotary(100.0)}
    names = {"query": K, "key": K, "value": latent.value_dim}
    for name, width in names.items():
        found = kept("full", remat_save=(name,), **own)
        assert found == {(B, T, D): 1, (B, T, H, width): 1}


def test_what_is_offloaded_goes_to_the_memory_of_the_host():
    hidden, params, x = gradient_of("full", remat_offload=("mlp_in",))
    text = str(jax.make_jaxpr(lambda *a: jax.vjp(hidden, *a)[1])(params, x))
    assert "pinned_host" in text or "<host>" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remat": "none", "remat_save": ("query",)}, "transformer.remat_save"),
        ({"remat": "dots", "remat_offload": ("query",)}, "transformer.remat_offload"),
        ({"remat": "full", "scan_unroll": 0}, "transformer.scan_unroll = 0"),
    ],
)
def test_options_that_exclude_each_other_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        gradient_of(**fields)


def test_products_are_done_again_unless_they_are_kept():
    # Of each, one forward and two backward; of what is not kept one more, but for the
    # last one of a block, which nothing reads.
    once = 3 * (WEIGHTS + ATTENTION)
    assert products("none") == once
    assert products("full") == once + WEIGHTS - 1 + ATTENTION
    assert products("weights") == once + ATTENTION
    assert products("dots") == once

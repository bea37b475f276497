"""How weights are spread before training, against transformers' own models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn

from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.models.layers.transformer_config import TransformerConfig

# Our paths, and what T5's are called.
_T5 = {
    "attention/query": "layer.0.SelfAttention.q.weight",
    "attention/key": "layer.0.SelfAttention.k.weight",
    "attention/value": "layer.0.SelfAttention.v.weight",
    "cross_attention/query": "layer.1.EncDecAttention.q.weight",
    "cross_attention/key": "layer.1.EncDecAttention.k.weight",
    "mlp/in": "layer.2.DenseReluDense.wi.weight",
}


@pytest.fixture(scope="module")
def t5():
    """The decoder's first layer, ours and theirs, and the tables of tokens."""
    D, H, K, F, V = 96, 6, 24, 256, 512
    options = {"d_model": D, "num_heads": H, "d_kv": K, "d_ff": F, "vocab_size": V}
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**options, num_layers=1)
    )
    # As configs/models/families/t5.gin has it, with the root of its width.
    stack = TransformerConfig(
        num_layers=1,
        embed_dim=D,
        num_heads=H,
        head_dim=K,
        mlp_dim=F,
        norm="rmsnorm",
        activation="relu",
        bias=False,
        position_bias=RelativeBuckets(),
        attention_scale=1.0,
        init_std=D**-0.5,
        scan_layers=False,
    )
    model = Seq2Seq(stack, stack, V, 512, head_scale=True, embed_init_std=1.0)
    zeros = jnp.zeros((1, 1), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), zeros, zeros))["params"]
    return params, dict(theirs.named_parameters())


@pytest.mark.parametrize("path", _T5)
def test_layers_of_t5_start_as_its_own(t5, path):
    params, theirs = t5
    ours = params["decoder_stack"]["layer_0"]
    for part in path.split("/"):
        ours = ours[part]
    want = theirs[f"decoder.block.0.{_T5[path]}"].detach().numpy()
    assert ours.size == want.size
    np.testing.assert_allclose(np.std(ours), want.std(), rtol=0.04)


def test_token_vectors_of_t5_start_as_its_own(t5):
    params, theirs = t5
    want = theirs["shared.weight"].detach().numpy()
    np.testing.assert_allclose(np.std(params["tokens"]["table"]), want.std(), rtol=0.04)

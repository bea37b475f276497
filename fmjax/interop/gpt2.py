"""Hugging Face's GPT-2: its options, and the names of its weights."""

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.options import Options
from fmjax.interop.weights import Source
from fmjax.models.gpt import GPT
from fmjax.models.transformer import TransformerConfig

PREFIX = "transformer."
CONSTANTS = r"h\.\d+\.attn\.(bias|masked_bias)"


def build(options: Options) -> GPT:
    """The model that a config.json of model_type gpt2 describes."""
    dropout = options.take("resid_pdrop", float, 0.1)
    at_embedding = options.take("embd_pdrop", float, 0.1)
    if at_embedding != dropout:
        raise UserError(
            f"config.json: embd_pdrop = {at_embedding} and resid_pdrop = {dropout}; "
            "expected them equal, for transformer.dropout is both."
        )
    options.require("scale_attn_weights", True)
    options.require("scale_attn_by_inverse_layer_idx", False)
    options.require("reorder_and_upcast_attn", False)
    options.require("add_cross_attention", False)
    # Of a classification head, whose weights would be refused by name.
    options.ignore("summary_type", "summary_use_proj", "summary_activation")
    options.ignore("summary_proj_to_labels", "summary_first_dropout")
    model = GPT(
        TransformerConfig(
            num_layers=options.take("n_layer", int, 12),
            embed_dim=options.take("n_embd", int, 768),
            num_heads=options.take("n_head", int, 12),
            mlp_dim=options.take("n_inner", int, None),
            norm="layernorm",
            norm_epsilon=options.take("layer_norm_epsilon", float, 1e-5),
            activation=options.take_activation("activation_function", "gelu_new"),
            gated_mlp=False,
            bias=True,
            dropout=dropout,
            attention_dropout=options.take("attn_pdrop", float, 0.1),
            init_std=options.take("initializer_range", float, 0.02),
        ),
        vocab_size=options.take("vocab_size", int, 50257),
        max_length=options.take("n_positions", int, 1024),
        positions="learned",
        tie_embeddings=options.take("tie_word_embeddings", bool, True),
    )
    options.require("n_ctx", model.max_length)
    return model


def sources(model: GPT) -> dict[str, Source]:
    """Where each parameter comes from; GPT-2's matrices are [inputs, outputs]."""
    c = model.transformer
    D, F, H, K = c.embed_dim, c.mlp_width, c.num_heads, c.head_width
    V, layer, block = model.vocab_size, "h.{layer}", "stack/layers"

    def part(i: int):
        """Query, key or value of the joined projection, [.., 3 D] to [.., H, K]."""
        return lambda w: np.split(w, 3, -1)[i].reshape(*w.shape[:-1], H, K)

    table = {
        "tokens/table": Source("wte.weight", (V, D)),
        "inputs/positions/table": Source("wpe.weight", (model.max_length, D)),
        "stack/final_norm/scale": Source("ln_f.weight", (D,)),
        "stack/final_norm/bias": Source("ln_f.bias", (D,)),
        f"{block}/attention/out": Source(
            f"{layer}.attn.c_proj.weight", (D, D), lambda w: w.reshape(H, K, D)
        ),
        f"{block}/attention/out_bias": Source(f"{layer}.attn.c_proj.bias", (D,)),
        f"{block}/mlp/in": Source(f"{layer}.mlp.c_fc.weight", (D, F)),
        f"{block}/mlp/in_bias": Source(f"{layer}.mlp.c_fc.bias", (F,)),
        f"{block}/mlp/out": Source(f"{layer}.mlp.c_proj.weight", (F, D)),
        f"{block}/mlp/out_bias": Source(f"{layer}.mlp.c_proj.bias", (D,)),
    }
    for norm, name in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        table[f"{block}/{norm}/scale"] = Source(f"{layer}.{name}.weight", (D,))
        table[f"{block}/{norm}/bias"] = Source(f"{layer}.{name}.bias", (D,))
    for i, name in enumerate(("query", "key", "value")):
        path, joined = f"{block}/attention/{name}", f"{layer}.attn.c_attn"
        table[path] = Source(f"{joined}.weight", (D, 3 * D), part(i))
        table[f"{path}_bias"] = Source(f"{joined}.bias", (3 * D,), part(i))
    if not model.tie_embeddings:
        table["language_head/kernel"] = Source("lm_head.weight", (V, D), np.transpose)
    return table

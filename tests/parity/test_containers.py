"""Weights in other files than safetensors give the model that transformers has."""

import json

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import torch
from flax import serialization, traverse_util
from parity.encoder_decoders import T5
from parity.models_of_transformers import (
    LLAMA,
    VOCAB,
    close,
    edit_config,
    random_model,
    text,
)

import fmjax
from fmjax.errors import UserError
from fmjax.interop.hugging_face import import_model

GPT2 = dict(vocab_size=VOCAB, n_positions=28, n_embd=30, n_layer=2, n_head=5)
META = {
    "model.embed_tokens": ("tok_embeddings", "table"),
    "model.norm": ("norm", None),
    "lm_head": ("output", 0),
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}


def has_their_logits(theirs, run, **more):
    tokens, mask = text()
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            **{f"{k}_ids": torch.tensor(v) for k, v in more.items()},
        ).logits
    if more:
        ours = run(
            encoder_tokens=tokens, encoder_padding_mask=mask, decoder_tokens=tokens
        )
        close(ours["logits"], expected)
    else:
        close(run(tokens=tokens, padding_mask=mask)["logits"], expected, mask)


@pytest.mark.parametrize(
    ("archive", "shards"),
    [
        (True, 3),
        pytest.param(True, 1, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(False, 3, marks=pytest.mark.slow),
    ],
)
def test_pytorch_files_are_read(tmp_path, archive, shards):
    model = random_model("GPT2LMHeadModel", GPT2)
    folder = tmp_path / "hf"
    model.config.save_pretrained(folder)
    edit_config(folder, architectures=["GPT2LMHeadModel"])
    # With the head that is the table, as transformers 4 wrote it.
    state = model.state_dict()
    names = list(state)
    parts = [names[i::shards] for i in range(shards)]
    files = [f"pytorch_model-{i:05}-of-{shards:05}.bin" for i in range(shards)]
    files = ["pytorch_model.bin"] if shards == 1 else files
    for file, part in zip(files, parts):
        torch.save(
            {name: state[name] for name in part},
            folder / file,
            _use_new_zipfile_serialization=archive,
        )
    if shards > 1:
        index = {n: file for file, part in zip(files, parts) for n in part}
        text = json.dumps({"weight_map": index})
        (folder / "pytorch_model.bin.index.json").write_text(text)
    import_model(folder, tmp_path / "run")
    has_their_logits(model, fmjax.load(tmp_path / "run"))


def interleaved(rows, head):
    """Rows of heads in Meta's order: numbers 2 i and 2 i + 1 rotate together."""
    found = np.empty_like(rows)
    for start in range(0, len(rows), head):
        for i in range(head // 2):
            found[start + 2 * i] = rows[start + i]
            found[start + 2 * i + 1] = rows[start + head // 2 + i]
    return found


def meta_files(model, folder, parts, table_axis, **more):
    """Writes a model of transformers as Meta does, in parts."""
    config = model.config
    folder.mkdir()
    pieces = [{} for _ in range(parts)]
    kv_heads = config.num_key_value_heads
    for name, tensor in model.state_dict().items():
        layer, _, plain = name.removeprefix("model.layers.").partition(".")
        inside = name.startswith("model.layers.")
        plain = plain if inside else name
        theirs, axis = META[plain.removesuffix(".weight")]
        theirs = f"layers.{layer}.{theirs}" if inside else theirs
        array = tensor.numpy()
        if theirs.endswith(("wq", "wk")):
            array = interleaved(array, config.head_dim)
        axis = table_axis if axis == "table" else axis
        for i, piece in enumerate(pieces):
            part = array
            if axis is not None and theirs.endswith(("wk", "wv")) and parts > kv_heads:
                part = np.split(array, kv_heads, axis)[i * kv_heads // parts]
            elif axis is not None:
                part = np.split(array, parts, axis)[i]
            piece[f"{theirs}.weight"] = torch.from_numpy(part.copy())
    for i, piece in enumerate(pieces):
        piece["rope.freqs"] = torch.ones(3)
        torch.save(piece, folder / f"consolidated.{i:02}.pth")
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": kv_heads,
        "multiple_of": 256,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(params | more))


PARTED = LLAMA | {"vocab_size": 204, "intermediate_size": 52, "hidden_size": 48}


@pytest.mark.parametrize(
    ("parts", "table_axis"),
    [
        (2, 0),
        pytest.param(1, None, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(4, 1, marks=pytest.mark.slow),
    ],
)
def test_parts_of_llama_as_meta_has_them_are_joined(tmp_path, parts, table_axis):
    options = PARTED | {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = random_model("LlamaForCausalLM", options)
    meta_files(model, tmp_path / "meta", parts, table_axis)
    notes = import_model(tmp_path / "meta", tmp_path / "run").notes
    assert "config.json was made of Meta's params.json" in notes
    run = fmjax.load(tmp_path / "run")
    assert run.model.max_length == 2048  # Of Llama 1, by norm_eps.
    has_their_logits(model, run)


def test_what_params_json_does_not_say_is_that_of_the_published_models(tmp_path):
    scaled = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    options = PARTED | {"rope_theta": 500000.0, "rope_scaling": scaled}
    options |= {"max_position_embeddings": 131072, "tie_word_embeddings": True}
    model = random_model("LlamaForCausalLM", options)
    more = {"rope_theta": 500000.0, "use_scaled_rope": True}
    meta_files(model, tmp_path / "meta", 1, None, **more)
    import_model(tmp_path / "meta", tmp_path / "run")
    run = fmjax.load(tmp_path / "run")
    assert run.model.max_length == 131072
    assert run.model.tie_embeddings
    has_their_logits(model, run)


def test_other_models_in_the_files_of_meta_are_refused(tmp_path):
    model = random_model("LlamaForCausalLM", PARTED)
    meta_files(model, tmp_path / "meta", 1, None, sliding_window=7)
    with pytest.raises(UserError, match=r"sliding_window = 7 .*--ignore"):
        import_model(tmp_path / "meta", tmp_path / "run")
    import_model(tmp_path / "meta", tmp_path / "told", ignore=["sliding_window"])
    meta_files(model, tmp_path / "bad", 2, 1)
    last = tmp_path / "bad" / "consolidated.01.pth"
    piece = torch.load(last)
    torch.save(piece | {"layers.0.attention.wq.weight": torch.ones(1, 2)}, last)
    with pytest.raises(UserError, match=r"parts of layers\.0\.attention\.wq"):
        import_model(tmp_path / "bad", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def t5x_tree(model):
    """Parameters of a T5 of transformers by the names of T5X; kernels are turned."""
    state = {name: t.numpy() for name, t in model.state_dict().items()}
    tree = {"token_embedder/embedding": state["shared.weight"]}
    if not model.config.tie_word_embeddings or not model.config.scale_decoder_outputs:
        tree["decoder/logits_dense/kernel"] = state["lm_head.weight"].T
    for side in ("encoder", "decoder"):
        block = f"{side}.block"
        bias = f"{block}.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tree[f"{side}/relpos_bias/rel_embedding"] = state[bias].T
        norm = state[f"{side}.final_layer_norm.weight"]
        tree[f"{side}/{side}_norm/scale"] = norm
        own = "attention" if side == "encoder" else "self_attention"
        parts = [("SelfAttention", own, own)]
        if side == "decoder":
            cross = ("EncDecAttention", "encoder_decoder_attention", "cross_attention")
            parts.append(cross)
        layers = len(getattr(model, side).block)
        for i in range(layers):
            for j, (theirs, ours, named) in enumerate(parts):
                for letter, name in zip("qkvo", ("query", "key", "value", "out")):
                    kernel = state[f"{block}.{i}.layer.{j}.{theirs}.{letter}.weight"].T
                    tree[f"{side}/layers_{i}/{ours}/{name}/kernel"] = kernel
                norm = state[f"{block}.{i}.layer.{j}.layer_norm.weight"]
                tree[f"{side}/layers_{i}/pre_{named}_layer_norm/scale"] = norm
            last = f"{block}.{i}.layer.{len(parts)}"
            norm = state[f"{last}.layer_norm.weight"]
            tree[f"{side}/layers_{i}/pre_mlp_layer_norm/scale"] = norm
            for name in ("wi", "wi_0", "wi_1", "wo"):
                if f"{last}.DenseReluDense.{name}.weight" in state:
                    kernel = state[f"{last}.DenseReluDense.{name}.weight"].T
                    tree[f"{side}/layers_{i}/mlp/{name}/kernel"] = kernel
    return tree


def t5x_files(tree, folder, dtype=None):
    """Writes a checkpoint as T5X does: kernels as zarr arrays, norms in the msgpack."""
    folder.mkdir()
    target = {}
    for name, array in tree.items():
        array = array.astype(dtype or array.dtype)
        leaf = array
        if array.ndim == 2:
            path = f"target.{name.replace('/', '.')}"
            spec = {
                "driver": "zarr",
                "dtype": array.dtype.name,
                "kvstore": {"driver": "file", "path": path},
                "metadata": {
                    "chunks": [-(-array.shape[0] // 2), array.shape[1]],
                    "compressor": {"id": "gzip", "level": 1},
                    "shape": list(array.shape),
                },
            }
            place = spec["kvstore"] | {"path": str(folder / path)}
            opened = tensorstore.open(spec | {"kvstore": place}, create=True).result()
            opened.write(array).result()
            # As T5X notes it for arrays in a bucket.
            leaf = spec | {"kvstore": {"driver": "gcs", "bucket": "x", "path": path}}
        target[tuple(name.split("/"))] = leaf
    state = {"step": np.int32(7)}
    optimizer = {"target": traverse_util.unflatten_dict(target), "state": state}
    content = {"version": 3, "optimizer": optimizer}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


V1_1 = {
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "scale_decoder_outputs": False,
}


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, id="1.0", marks=pytest.mark.slow), pytest.param(V1_1, id="1.1")],
)
def test_checkpoints_of_t5x_are_read(tmp_path, options):
    # T5X's own distance.
    far = {"relative_attention_max_distance": 128}
    model = random_model("T5ForConditionalGeneration", T5 | far | options)
    t5x_files(t5x_tree(model), tmp_path / "t5x")
    notes = import_model(tmp_path / "t5x", tmp_path / "run").notes
    assert "config.json was made of the shapes in T5X's checkpoint" in notes
    has_their_logits(model, fmjax.load(tmp_path / "run"), decoder_input=text()[0])


@pytest.mark.slow
def test_checkpoints_of_t5x_in_bfloat16_are_read(tmp_path):
    far = {"relative_attention_max_distance": 128}
    model = random_model("T5ForConditionalGeneration", T5 | far)
    tree = t5x_tree(model)
    t5x_files(tree, tmp_path / "t5x", ml_dtypes.bfloat16)
    import_model(tmp_path / "t5x", tmp_path / "run")
    table = fmjax.load(tmp_path / "run").params["tokens"]["table"][:VOCAB]
    expected = tree["token_embedder/embedding"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(table, expected.astype(np.float32))


def test_checkpoints_of_t5x_that_are_not_whole_are_refused(tmp_path):
    model = random_model("T5ForConditionalGeneration", T5)
    tree = t5x_tree(model)
    t5x_files(tree, tmp_path / "part")
    (tmp_path / "part" / "target.token_embedder.embedding" / "1.0").unlink()
    with pytest.raises(UserError, match=r"token_embedder\.embedding has 1 chunks of 2"):
        import_model(tmp_path / "part", tmp_path / "run")
    t5x_files(tree | {"encoder/encoder/x/kernel": np.ones((2, 2))}, tmp_path / "scan")
    with pytest.raises(UserError, match=r"encoder/encoder/x/kernel.*not scanned"):
        import_model(tmp_path / "scan", tmp_path / "run")
    (tmp_path / "scan" / "checkpoint").write_bytes(b"model_checkpoint_path: 'x'")
    with pytest.raises(UserError, match="is no checkpoint of T5X"):
        import_model(tmp_path / "scan", tmp_path / "run")

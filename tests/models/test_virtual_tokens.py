"""Prefixes and prompts: packing, caches, kernels, layers, and what is refused."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiers import slow

from fmjax.errors import UserError
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.adapters import read_adapters
from fmjax.models.layers.attention_kernels import blockwise, xla
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.position_bias import Alibi, RelativeBuckets
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer import unstack_layers
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.optim.peft.p_tuning import PTuning
from fmjax.optim.peft.peft import Peft
from fmjax.optim.peft.prefix import Prefix
from fmjax.optim.peft.prompt import Prompt
from fmjax.training.state import abstract_variables

V, T, N = 40, 12, 3
PLAIN = TransformerConfig(
    num_layers=2, embed_dim=16, num_heads=4, mlp_dim=24, dtype="float32"
)
GATED = dataclasses.replace(
    PLAIN, num_kv_heads=2, gated_mlp=True, norm="rmsnorm", rotary=Rotary(1e4)
)
SIZES = {"vocab_size": V, "max_length": T + N, "vocab_multiple": 8}
FREE = SIZES | {"positions": "none"}
ALIBI = dataclasses.replace(PLAIN, position_bias=Alibi())
GPTS = {
    "rotary": GPT(GATED, **FREE),
    "learned": GPT(PLAIN, **SIZES),
    "alibi": GPT(ALIBI, **FREE),
    "window": GPT(dataclasses.replace(GATED, window=4), **FREE),
}
METHODS = {
    "prefix": Prefix(N),
    "prompt": Prompt(N, init="normal"),
    "p_tuning": PTuning(N, hidden_dim=5),
}
RNG = np.random.default_rng(0)
IDS = RNG.integers(3, V, (2, T)).astype(np.int32)


def drawn(model, *methods, objective=CausalLM):
    """Random parameters of a model and its methods, and the plan."""
    axes, shapes = abstract_variables(objective(model))
    plan = Peft(methods=methods).plan(axes["params"], shapes["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
        plan.shapes,
    )
    return params, plan


def logits(model, params, *inputs):
    return np.asarray(jax.jit(model.apply)({"params": params}, *inputs)["logits"])


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("window", "prefix"),
        ("alibi", "prompt"),
        *map(slow, ("rotary", "alibi", "learned"), ["prefix"] * 3),
        slow("rotary", "prompt"),
    ],
)
def test_each_text_of_a_packed_row_sees_what_it_sees_alone(family, method):
    model = GPTS[family]
    params, _ = drawn(model, METHODS[method])
    cuts = (0, 5, 10)
    row = np.zeros((1, T), np.int32)
    segments, positions = row.copy(), row.copy()
    alone = []
    for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
        row[0, begin:end] = IDS[i, : end - begin]
        segments[0, begin:end] = i + 1
        positions[0, begin:end] = range(end - begin)
        alone.append(logits(model, params, TextInputs(row[:, begin:end])))
    text = TextInputs(row, positions=positions, segment_ids=segments)
    found = logits(model, params, text)
    assert found.shape == (1, T, V)
    assert_close(found[:, : cuts[-1]], np.concatenate(alone, axis=1))


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("alibi", "prefix"),
        ("window", "prompt"),
        ("learned", "p_tuning"),
        *map(slow, ("rotary", "window", "learned"), ["prefix"] * 3),
        slow("rotary", "prompt"),
    ],
)
def test_generation_with_a_cache_is_that_of_the_whole_text(family, method):
    model = GPTS[family]
    params, _ = drawn(model, METHODS[method])
    prompts = [IDS[0, :5].tolist(), IDS[1, :3].tolist()]
    new = T - 5
    found = generate_tokens(
        model,
        params,
        prompts,
        max_tokens=new,
        sampling=Sampling(temperature=0.0),
        logprobs=True,
    )
    for prompt, written in zip(prompts, found):
        text = np.array([prompt + written.tokens])
        after = logits(model, params, text[:, :-1])[0, len(prompt) - 1 :]
        scores = np.asarray(jax.nn.log_softmax(after))
        assert written.tokens == scores.argmax(-1).tolist()
        assert_close(np.array(written.logprobs), scores.max(-1))
    if family == "learned":
        with pytest.raises(UserError, match="3 virtual ones make 16 tokens"):
            generate_tokens(
                model,
                params,
                prompts,
                max_tokens=new + 1,
                sampling=Sampling(temperature=0.0),
            )


def test_an_encoder_decoder_generates_with_prefixes_and_a_prompt():
    bias = RelativeBuckets(8, 10)
    c = dataclasses.replace(PLAIN, norm="rmsnorm", position_bias=bias)
    model = Seq2Seq(c, c, **SIZES)
    methods = (METHODS["prefix"], METHODS["prompt"])
    params, plan = drawn(model, *methods, objective=Seq2SeqLM)
    assert not any("cross_attention" in path for path in plan.added)
    read, lengths = IDS[:, :6].copy(), [6, 4]
    prompts = [row[:n].tolist() for row, n in zip(read, lengths)]
    found = generate_tokens(
        model,
        params,
        prompts,
        max_tokens=5,
        sampling=Sampling(temperature=0.0),
    )
    mask = np.arange(6) < np.array(lengths)[:, None]
    shifted = np.array([[model.start_id, *row[:-1]] for row in found])
    with read_adapters() as paths:
        wanted = logits(model, params, TextInputs(read, padding_mask=mask), shifted)
    plan.check_read(paths, "seq2seq")
    assert found == wanted.argmax(-1).tolist()
    # One segment on both sides is a text that is alone.
    source = TextInputs(read, segment_ids=mask.astype(np.int32))
    target = TextInputs(shifted, segment_ids=np.ones_like(shifted))
    assert_close(logits(model, params, source, target), wanted)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_scanned_layers_are_unrolled_ones(method):
    model = GPTS["rotary"]
    params, _ = drawn(model, METHODS[method])
    unrolled = GPT(dataclasses.replace(GATED, scan_layers=False), **FREE)
    stack = unstack_layers(params["stack"], 2)
    _, plan = drawn(unrolled, METHODS[method])
    other = params | {"stack": stack}
    shapes = jax.tree.map(lambda leaf: leaf.shape, (other, plan.shapes))
    assert shapes[0] == shapes[1]
    assert_close(logits(unrolled, other, IDS), logits(model, params, IDS))


@pytest.mark.parametrize("window", [None, 3])
def test_blockwise_attention_takes_a_prefix(window):
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(2, length, heads, 8)).astype(np.float32)
        for length, heads in ((T, 4), (T + N, 2), (T + N, 2))
    )
    segments = np.where(np.arange(T) < 7, 1, 2)[None].repeat(2, 0)
    mask = AttentionMask(True, window, None, segments, segments).behind(N)

    @functools.partial(jax.jit, static_argnums=0)
    def found(kernel, q, k, v):
        def value(q, k, v):
            options = (mask, None, 8**-0.5, None, 0.0, None, 4)
            return jnp.sin(kernel.attention(AttentionCall(q, k, v, *options))).sum()

        return jax.value_and_grad(value, (0, 1, 2))(q, k, v)

    wanted = found(xla, q, k, v)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        found(blockwise, q, k, v),
        wanted,
    )


def test_a_kernel_without_virtual_tokens_is_refused():
    model = GPT(dataclasses.replace(GATED, attention="splash"), **FREE)
    params, _ = drawn(model, METHODS["prefix"])
    with pytest.raises(UserError, match=r"'splash' cannot.*virtual tokens"):
        model.apply({"params": params}, IDS)


def test_prefixes_of_some_layers_leave_the_others_alone():
    model = GPT(dataclasses.replace(ALIBI, scan_layers=False), **FREE)
    params, _ = drawn(model, Prefix(N, paths=("stack/layer_1/attention",)))
    own = params["stack"]["layer_1"]["attention"]
    assert "key_prefix" in own
    apply = jax.jit(functools.partial(model.apply, hidden_states=True))
    found = apply({"params": params}, IDS)
    plain = params | {"stack": dict(params["stack"])}
    plain["stack"]["layer_1"] = params["stack"]["layer_1"] | {
        "attention": {
            name: leaf for name, leaf in own.items() if not name.endswith("_prefix")
        }
    }
    before = apply({"params": plain}, IDS)
    states = zip(found["hidden_states"], before["hidden_states"])
    same = [np.abs(a - b).max() < 1e-6 for a, b in states]
    assert same == [True, True, False]


def test_a_prompt_begins_as_vectors_of_the_vocabulary():
    model = GPT(PLAIN, **SIZES)
    axes, shapes = abstract_variables(CausalLM(model))
    plan = Peft(methods=(Prompt(N, init_ids=7),)).plan(axes["params"], shapes["params"])
    base = nn.unbox(jax.jit(CausalLM(model).init)(jax.random.key(0)))["params"]
    params = plan.fit(plan.init(jax.random.key(1), base))
    table = np.asarray(base["tokens"]["table"])
    for row in np.asarray(params["tokens"]["table_prompt"]["rows"]):
        assert (table[:7] == row).all(1).any()


def test_what_does_not_fit_is_refused():
    disentangled = dataclasses.replace(
        PLAIN, norm_position="post", position_bias=Disentangled(4, 8)
    )
    deberta = Bert(disentangled, **FREE)
    params, _ = drawn(deberta, METHODS["prefix"], objective=MaskedLM)
    with pytest.raises(UserError, match=r"@disentangled.*no positions for keys"):
        deberta.apply({"params": params}, IDS)
    model = GPTS["learned"]
    for method in METHODS.values():
        params, _ = drawn(model, method)
        with pytest.raises(UserError, match=r"3 virtual tokens.*and 13 others"):
            model.apply({"params": params}, np.ones((1, T + 1), np.int32))
    axes, shapes = abstract_variables(CausalLM(model))
    for methods, found in (
        ((Prompt(N), PTuning(N)), "adds 'tokens/table_prompt/rows' twice"),
        ((Prompt(N, paths=("**/mlp/in",)),), "no table"),
        ((Prefix(N, paths=("**/mlp",)),), "no keys and values"),
        ((Prefix(N, paths=("**/attn",)),), "matches no parameter of a block"),
    ):
        with pytest.raises(UserError, match=found):
            Peft(methods=methods).plan(axes["params"], shapes["params"])

"""Generation with the cache against the model run from scratch for every token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fmjax.data.tokenizers import ByteTokenizer, CharacterTokenizer
from fmjax.errors import UserError
from fmjax.experiment import Experiment
from fmjax.inference import generate as generation
from fmjax.inference.generate import generate, generate_tokens
from fmjax.inference.load import Run
from fmjax.inference.sampling import Sampling
from fmjax.models.gpt import GPT
from fmjax.models.transformer import TransformerConfig, unstack_layers
from fmjax.objectives.causal_lm import CausalLM
from fmjax.sharding.mesh import MeshConfig
from fmjax.sharding.rules import named_shardings, param_specs
from fmjax.training.state import abstract_variables

GREEDY = Sampling(temperature=0.0)
# The second fills its bucket, and 14 more ids the last position.
PROMPTS = ([1, 2, 3], [5, 6] * 8, [7])
STYLES = {
    "gpt2": {"transformer": {}, "model": {}},
    "llama": {
        "transformer": {
            "norm": "rmsnorm",
            "gated_mlp": True,
            "activation": "silu",
            "bias": False,
            "rope_theta": 100.0,
            "num_kv_heads": 2,
            "head_dim": 6,
        },
        "model": {"positions": "none", "tie_embeddings": False},
    },
}


@functools.cache
def build(style="gpt2", scan_layers=True, vocab_size=37, max_length=30):
    """A model and weights large enough to make it choose among many tokens."""
    if not scan_layers:
        model, params = build(style, True, vocab_size, max_length)
        config = dataclasses.replace(model.transformer, scan_layers=False)
        stack = unstack_layers(params["stack"], config.num_layers)
        return model.clone(transformer=config), {**params, "stack": stack}
    options = STYLES[style]
    config = TransformerConfig(
        num_layers=3,
        embed_dim=20,
        num_heads=4,
        mlp_dim=28,
        dtype="float32",
        **options["transformer"],
    )
    model = GPT(config, vocab_size, max_length, **options["model"])
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(31)  # both styles then write many different ids

    def draw(path, shape):
        center = jax.tree_util.keystr(path).endswith("['scale']")
        return jnp.float32(center + rng.normal(scale=0.3, size=shape.shape))

    return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))


def from_scratch(model, params, prompt, row, max_tokens, sampling, seed=0):
    """Reads the whole text again for every token, without batch or cache."""
    apply = _applied(model)
    key = jax.random.fold_in(jax.random.key(seed), row)
    ids = list(prompt)
    for _ in range(max_tokens):
        # What is behind a position cannot change it.
        padded = np.zeros((1, model.max_length), np.int32)
        padded[0, : len(ids)] = ids
        logits = apply(params, padded)[0, len(ids) - 1]
        if sampling.temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            draw = jax.random.fold_in(key, len(ids))
            ids.append(int(jax.random.categorical(draw, logits / sampling.temperature)))
    return ids[len(prompt) :]


@functools.cache
def _applied(model):
    return jax.jit(lambda params, x: model.apply({"params": params}, x)["logits"])


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_cached_equals_recomputed(style, scan_layers, temperature):
    model, params = build(style, scan_layers)
    sampling = Sampling(temperature)
    written = generate_tokens(
        model, params, PROMPTS, max_tokens=14, sampling=sampling, seed=3
    )
    for row, prompt in enumerate(PROMPTS):
        expected = from_scratch(model, params, prompt, row, 14, sampling, seed=3)
        assert written[row] == expected
    assert min(len(set(ids)) for ids in written) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch(temperature):
    model, params = build("llama")
    write = functools.partial(
        generate_tokens,
        model,
        params,
        max_tokens=14,
        sampling=Sampling(temperature),
    )
    together = write(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert write([prompt], rows=[row]) == [together[row]]


def test_rows_and_seeds_draw_apart():
    model, params = build()
    draw = functools.partial(
        generate_tokens, model, params, [[1, 2, 3]] * 3, max_tokens=14
    )
    first = draw(sampling=Sampling(1.0), seed=0)
    assert first[0] != first[1]
    assert first == draw(sampling=Sampling(1.0), seed=0)
    assert first[0] != draw(sampling=Sampling(1.0), seed=1)[0]


def test_end_of_document_stops_its_row_alone():
    model, params = build()
    free = generate_tokens(model, params, PROMPTS, max_tokens=14, sampling=GREEDY)
    eos_id = free[0][2]
    stopped = generate_tokens(
        model, params, PROMPTS, max_tokens=14, sampling=GREEDY, eos_id=eos_id
    )
    for have, whole in zip(stopped, free):
        end = whole.index(eos_id) + 1 if eos_id in whole else len(whole)
        assert have == whole[:end]
    assert len({len(ids) for ids in stopped}) > 1


def test_ids_past_the_vocabulary_are_never_written():
    model, params = build()
    table = params["tokens"]["table"]
    # Padding that would win every row, were it not masked.
    loud = table.at[model.vocab_size :].set(100.0 * jnp.sign(table[:1]))
    params = {**params, "tokens": {"table": loud}}
    for sampling in (GREEDY, Sampling(5.0)):
        ids = generate_tokens(model, params, PROMPTS, max_tokens=14, sampling=sampling)
        assert max(map(max, ids)) < model.vocab_size
    ids = generate_tokens(
        model,
        params,
        PROMPTS,
        max_tokens=14,
        sampling=Sampling(5.0, top_k=100, top_p=1.0),
        vocab_size=6,
    )
    assert max(map(max, ids)) == 5


def test_one_compilation_serves_a_bucket_and_all_numbers():
    model, params = build()
    compiled = generation._decode
    run = functools.partial(generate_tokens, model, params, max_tokens=14)
    run([[1] * 3] * 3, sampling=GREEDY)
    before = compiled._cache_size()
    run([[1] * 16] * 3, sampling=Sampling(1), seed=5, eos_id=2)
    assert compiled._cache_size() == before


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1] * 20], {"max_tokens": 11}, "max_length = 30"),
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[37]], {}, "vocab_size"),
        ([[-1]], {}, "vocab_size"),
        ([[1]], {"max_tokens": 0}, "max_tokens = 0"),
        ([[1]], {"sampling": Sampling(1.0, top_p=1.5)}, "top_p = 1.5"),
    ],
)
def test_mistakes_are_named(prompts, options, message):
    model, params = build()
    with pytest.raises(UserError, match=message):
        generate_tokens(
            model, params, prompts, **{"max_tokens": 2, "sampling": GREEDY} | options
        )


def text_run(tokenizer, data=None, vocab_size=300):
    model, params = build(vocab_size=vocab_size)
    return Run(Experiment(CausalLM(model), data), model, params, tokenizer, 0)


@pytest.mark.parametrize(
    ("data", "text", "prompt"),
    [
        (None, "ab", [100, 101]),  # imported: as its tokenizer has it
        (None, "", [1]),
        ("trained", "ab", [1, 100, 101]),  # as documents begin in training
        ("trained", "", [1]),
    ],
)
def test_a_prompt_begins_as_documents_do(data, text, prompt):
    run = text_run(ByteTokenizer(), data)
    ids = generate_tokens(
        run.model,
        run.params,
        [prompt],
        max_tokens=9,
        sampling=GREEDY,
        eos_id=1,
        vocab_size=259,
    )[0]
    assert max(ids) < 259
    expected = ByteTokenizer().decode(ids)
    assert generate(run, [text], max_tokens=9, temperature=0.0) == [expected]


def test_a_continuation_is_spelled_behind_its_prompt():
    class Words(CharacterTokenizer):
        """Drops a space in front, as SentencePiece does."""

        def decode(self, ids):
            return super().decode(ids).removeprefix(" ")

    assert generation._continuation(Words(" "), [0], [0, 0]) == "  "


def test_text_needs_a_tokenizer_and_a_beginning():
    with pytest.raises(UserError, match="no tokenizer"):
        generate(text_run(None), ["a"])
    with pytest.raises(UserError, match="empty prompt"):
        generate(text_run(CharacterTokenizer("ab")), [""])
    with pytest.raises(UserError, match="expected a list of texts"):
        generate(text_run(ByteTokenizer()), "a")
    assert generate(text_run(ByteTokenizer()), []) == []


def test_a_mesh_changes_nothing():
    run = text_run(ByteTokenizer())
    mesh_config = MeshConfig(fsdp=2, tensor=2)
    mesh, rules = mesh_config.build(jax.devices()[:4]), mesh_config.all_rules
    axes, shapes = abstract_variables(run.config.objective)
    specs = param_specs(axes, shapes, mesh, rules)["params"]
    params = jax.device_put(run.params, named_shardings(specs, mesh))
    spread = dataclasses.replace(run, params=params, rules=rules)
    texts = ["a", "words", "more words"]
    for temperature in (0.0, 1.0):
        options = {"max_tokens": 9, "temperature": temperature}
        assert generate(spread, texts, **options) == generate(run, texts, **options)

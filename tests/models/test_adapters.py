"""A model with adapters is the model of the merged weights, in value and gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiers import slow

from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.adapters import read_adapters
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.optim.axes import num_batch_axes, sides
from fmjax.optim.peft.ia3 import IA3
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.merge import merge
from fmjax.optim.peft.peft import Peft
from fmjax.training.state import abstract_variables

V, T = 40, 6
PLAIN = TransformerConfig(
    num_layers=2, embed_dim=16, num_heads=4, mlp_dim=24, dtype="float32"
)
GATED = dataclasses.replace(
    PLAIN, num_kv_heads=2, gated_mlp=True, norm="rmsnorm", rotary=Rotary(1e4)
)
LATENT = dataclasses.replace(
    GATED,
    num_kv_heads=None,
    head_dim=8,
    latent=Latent(rank=6, query_rank=10, rotary_dim=4, value_dim=6),
)
SIZES = {"vocab_size": V, "max_length": T, "vocab_multiple": 8}
IDS = np.arange(2 * T).reshape(2, T).astype(np.int32) % 7 + 3
TEXT = TextInputs(IDS)
UNTIED = {"tie_embeddings": False, "positions": "none"}
BLOCK = ("**/*attention/*", "**/mlp/*")
CASES = {
    "gpt": (CausalLM(GPT(PLAIN, **SIZES)), (TEXT,), BLOCK),
    "llama": (
        CausalLM(GPT(GATED, **SIZES, **UNTIED)),
        (TEXT,),
        ("tokens/table", "language_head/kernel", *BLOCK),
    ),
    "unrolled": (
        CausalLM(GPT(dataclasses.replace(GATED, scan_layers=False), **SIZES, **UNTIED)),
        (TEXT,),
        ("stack/layer_1/attention/*", "stack/layer_0/mlp/out"),
    ),
    "shared": (
        CausalLM(GPT(dataclasses.replace(PLAIN, share_layers=True), **SIZES)),
        (TEXT,),
        BLOCK,
    ),
    "experts": (
        CausalLM(
            GPT(
                dataclasses.replace(GATED, experts=Experts(4, shared_dim=12)),
                **SIZES,
                **UNTIED,
            )
        ),
        (TEXT,),
        ("**/attention/*", "**/mlp/in", "**/mlp/out", "**/mlp/router", "**/shared/*"),
    ),
    "latent": (CausalLM(GPT(LATENT, **SIZES, **UNTIED)), (TEXT,), BLOCK),
    "deberta": (
        MaskedLM(
            Bert(
                dataclasses.replace(
                    PLAIN, norm_position="post", position_bias=Disentangled(4, 8)
                ),
                **SIZES,
                positions="none",
            )
        ),
        (TEXT,),
        BLOCK,
    ),
    "seq2seq": (
        Seq2SeqLM(Seq2Seq(PLAIN, PLAIN, **SIZES, positions="learned")),
        (TEXT, TEXT),
        BLOCK,
    ),
    "vit": (
        Classification(ViT(PLAIN, image_size=8, patch_size=4, num_classes=3)),
        (np.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3).astype(np.float32),),
        (*BLOCK, "classifier/kernel"),
    ),
}
METHODS = {
    "lora": lambda paths: (LoRA(paths=paths, rank=3, alpha=7.0),),
    "rslora": lambda paths: (
        LoRA(paths=paths, rank=3, alpha=2.0, rank_stabilized=True),
    ),
    "dora": lambda paths: (LoRA(paths=paths, rank=3, alpha=4.0, dora=True),),
    "ia3": lambda paths: (
        IA3(outputs=paths[:1], inputs=paths[1:] if len(paths) > 1 else ()),
    ),
}


def planned(case, methods):
    objective, inputs, _ = CASES[case]
    axes, shapes = abstract_variables(objective)
    plan = Peft(methods=methods).plan(axes["params"], shapes["params"])
    return objective, inputs, plan


def drawn(plan, seed=0):
    """Random parameters and adapters, with the scales that the plan gives."""
    rng = np.random.default_rng(seed)
    own = {path: each for path, each in plan.added.items() if not each.trained}
    flat = {}
    for path, leaf in traverse_util.flatten_dict(plan.shapes, sep="/").items():
        if path in own:
            flat[path] = np.asarray(own[path].init(jax.random.key(0)))
        else:
            flat[path] = (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
            if path.endswith(("/magnitude", "_ia3/in", "_ia3/out")):
                flat[path] += 1
    return traverse_util.unflatten_dict(flat, sep="/")


def by_hand(plan, params, methods):
    """The merged weights by the papers' formulas, in float64."""
    flat = {
        path: np.asarray(leaf, np.float64)
        for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    for path, names in plan.base_axes.items():
        lora = {n: flat.get(f"{path}_lora/{n}") for n in ("a", "b", "magnitude")}
        factors = {n: flat.get(f"{path}_ia3/{n}") for n in ("in", "out")}
        if lora["a"] is None and factors["in"] is None and factors["out"] is None:
            continue
        batch, weight = num_batch_axes(names), flat[path]
        count = len(sides(names)[0])
        stacked = weight.shape[:batch]
        inputs = int(np.prod(weight.shape[batch : batch + count]))
        for place in np.ndindex(stacked):
            matrix = weight[place].reshape(inputs, -1)
            if lora["a"] is not None:
                (method,) = methods
                scale = method.alpha / (
                    np.sqrt(method.rank) if method.rank_stabilized else method.rank
                )
                a = lora["a"][place].reshape(inputs, method.rank)
                b = lora["b"][place].reshape(method.rank, -1)
                matrix = matrix + scale * a @ b
                if lora["magnitude"] is not None:
                    length = np.sqrt((matrix**2).sum(0))
                    matrix = lora["magnitude"][place].reshape(-1) * matrix / length
            if factors["in"] is not None:
                matrix = factors["in"][place].reshape(-1, 1) * matrix
            if factors["out"] is not None:
                matrix = matrix * factors["out"][place].reshape(-1)
                folder, _, name = path.rpartition("/")
                bias = f"{folder}/{'bias' if name == 'kernel' else f'{name}_bias'}"
                if bias in flat:
                    flat[bias][place] = flat[bias][place] * factors["out"][place]
            weight[place] = matrix.reshape(weight.shape[batch:])
    kept = {path: flat[path].astype(np.float32) for path in plan.base_axes}
    return traverse_util.unflatten_dict(kept, sep="/")


def outputs(model, params, inputs):
    out = jax.jit(model.apply)({"params": params}, *inputs)
    return {name: np.asarray(x) for name, x in out.items()}


def assert_close(found, wanted, tolerance=2e-5):
    for name, expected in wanted.items():
        size = max(1.0, np.abs(expected).max())
        assert np.abs(found[name] - expected).max() <= tolerance * size, name


@pytest.mark.parametrize(
    ("case", "method"),
    [
        *((case, "lora") for case in CASES if case not in ("llama", "latent")),
        ("gpt", "rslora"),
        slow("llama", "lora"),
        slow("latent", "lora"),
        slow("experts", "dora"),
        *((case, "dora") for case in ("llama", "latent")),
        *((case, "ia3") for case in ("gpt", "latent", "vit")),
    ],
)
def test_adapters_compute_what_the_merged_weights_do(case, method):
    paths = CASES[case][2]
    if method == "dora":
        paths = tuple(path for path in paths if path != "tokens/table")
    if method == "ia3":
        # Products with experts read whole weights alone, and tables are no products.
        others = ("tokens/table", "**/mlp/in", "**/mlp/out", "**/mlp/router")
        paths = tuple(path for path in paths if path not in others)
    methods = METHODS[method](paths)
    objective, inputs, plan = planned(case, methods)
    params = drawn(plan)
    with read_adapters() as read:
        found = outputs(objective.model, params, inputs)
    plan.check_read(read, objective.model.gin_name)
    wanted = outputs(objective.model, by_hand(plan, params, methods), inputs)
    assert_close(found, wanted)
    joined = merge(params, plan.axes)
    assert_close(outputs(objective.model, joined, inputs), wanted)
    plain = traverse_util.unflatten_dict(
        {
            path: traverse_util.flatten_dict(params, sep="/")[path]
            for path in plan.base_axes
        },
        sep="/",
    )
    before = outputs(objective.model, plain, inputs)
    name = next(iter(before))
    assert np.abs(found[name] - before[name]).max() > 1e-2


@pytest.mark.parametrize(
    ("case", "method"),
    [slow("llama", "lora"), ("llama", "dora"), slow("experts", "lora")],
)
def test_gradients_are_those_through_the_merged_weights(case, method):
    paths = tuple(path for path in CASES[case][2] if path != "tokens/table")
    objective, inputs, plan = planned(case, METHODS[method](paths))
    params = drawn(plan)

    def loss(flat, rest, together):
        whole = traverse_util.unflatten_dict(rest | flat, sep="/")
        if together:
            whole = merge(whole, plan.axes)
        logits = objective.model.apply({"params": whole}, *inputs)["logits"]
        return jnp.sin(logits).mean()

    flat = traverse_util.flatten_dict(params, sep="/")
    trained = {path: flat.pop(path) for path, each in plan.added.items()}
    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    found, wanted = (gradient(trained, flat, how) for how in (False, True))
    for path, expected in wanted.items():
        if path.endswith("/scale"):
            continue
        size = np.abs(expected).max()
        assert size > 0, path
        np.testing.assert_allclose(found[path], expected, atol=2e-4 * size, rtol=0)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_a_model_with_new_adapters_is_the_base_to_the_bit(method):
    paths = ("**/attention/*", "**/mlp/*")
    objective, inputs, plan = planned("llama", METHODS[method](paths))
    base = jax.jit(objective.init)(jax.random.key(0))["params"]
    base = jax.tree.map(
        lambda box: box.unbox(), base, is_leaf=lambda x: hasattr(x, "unbox")
    )
    params = jax.jit(plan.fit)(plan.init(jax.random.key(1), base))
    before, after = (outputs(objective.model, p, inputs) for p in (base, params))
    if method == "dora":  # m and |W| are computed in two programs.
        assert_close(after, before, 1e-6)
    else:
        np.testing.assert_array_equal(after["logits"], before["logits"])


def test_dropout_of_adapters_is_of_training_alone():
    rate = 0.5
    objective, _, plan = planned("gpt", (LoRA(paths=BLOCK, rank=3, dropout=rate),))
    params = drawn(plan)
    flat = traverse_util.flatten_dict(params, sep="/")
    kept = {path: x for path, x in flat.items() if not path.endswith("/dropout")}
    assert len(kept) < len(flat)
    without = traverse_util.unflatten_dict(kept, sep="/")
    batch = {"tokens": IDS, "targets": IDS, "weights": np.ones((2, T), np.float32)}
    keys = jax.random.split(jax.random.key(0), 2)
    loss = jax.jit(lambda p, keys: objective.loss({"params": p}, batch, keys).terms)
    (evaluated,), (plain,) = (loss(p, None).values() for p in (params, without))
    np.testing.assert_array_equal(evaluated.sum, plain.sum)
    (dropped,), (again,) = (loss(p, keys).values() for p in (params, without))
    np.testing.assert_array_equal(again.sum, plain.sum)
    assert abs(dropped.sum - plain.sum) > 1e-2

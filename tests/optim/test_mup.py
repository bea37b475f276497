"""µP against microsoft's mup, parameter by parameter; CompleteP against its table."""

import dataclasses
import math
from fractions import Fraction

import jax
import mup
import numpy as np
import pytest
import torch
from flax import traverse_util
from mup.infshape import zip_infshape

import fmjax
from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.multipliers import Multipliers
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.resize import first_stack, resized
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.optim.mup import CompleteP, MuP
from fmjax.optim.optimizers import Adafactor, AdamW, Lamb, Lion, Muon
from fmjax.optim.scaling import Scaling
from fmjax.optim.schedules import Constant
from fmjax.training.experiment import Experiment
from fmjax.training.parametrize import plan_scaling, resolve
from fmjax.training.setup import plan_run
from fmjax.training.state import abstract_variables
from fmjax.training.vocab_size import fill_vocab_size

RATE, DECAY, STD, V, T = 0.01, 0.1, 0.02, 40, 16
BASE, M = 32, 4
ADAMW = AdamW(schedule=Constant(learning_rate=RATE), weight_decay=DECAY)
WIDE = TransformerConfig(
    num_layers=2, embed_dim=BASE * M, num_heads=2 * M, init_std=STD, dtype="float32"
)


def gpt(transformer=WIDE, **fields):
    fields = {"tie_embeddings": False, "vocab_multiple": 1} | fields
    return CausalLM(GPT(transformer, V, T, **fields))


def bert(transformer=WIDE):
    model = Bert(transformer, V, T, pooler="tanh", next_sentence=True, vocab_multiple=1)
    return MaskedLM(model)


MUP = MuP(base_width=BASE)


def parametrized(objective, how=MUP, optimizer=ADAMW):
    return resolve(Experiment(objective, None, optimizer, how))


def factors(experiment):
    return traverse_util.flatten_dict(plan_scaling(experiment), sep="/")


def multipliers(experiment):
    return first_stack(experiment.objective.model).multipliers


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        linear = torch.nn.Linear
        self.query, self.key, self.value, self.out = (
            linear(width, width) for _ in range(4)
        )
        self.mlp_in, self.mlp_out = linear(width, 4 * width), linear(4 * width, width)
        self.attention_norm = torch.nn.LayerNorm(width)
        self.mlp_norm = torch.nn.LayerNorm(width)


class Torch(torch.nn.Module):
    """The parameters of a decoder, and those that BERT has besides."""

    def __init__(self, width):
        super().__init__()
        self.tokens = torch.nn.Embedding(V, width)
        self.positions = torch.nn.Embedding(T, width)
        self.block = Block(width)
        self.final_norm = torch.nn.LayerNorm(width)
        self.head = mup.MuReadout(width, V, bias=False)
        self.pool = torch.nn.Linear(width, width)
        self.sentence = mup.MuReadout(width, 2)


@pytest.fixture(scope="module")
def witness():
    """The model of mup with initial values, and (rate, decay) of each parameter."""
    torch.manual_seed(0)
    model = Torch(BASE * M)
    mup.set_base_shapes(model, Torch(BASE), delta=Torch(2 * BASE))
    for parameter in model.parameters():
        mup.init.normal_(parameter, std=STD)
    groups = mup.MuAdamW(model.parameters(), lr=RATE, weight_decay=DECAY).param_groups
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return model, {name: rates[id(p)] for name, p in model.named_parameters()}


LAYERS = "stack/layers"
OF_MUP = {
    "tokens/table": "tokens.weight",
    "inputs/positions/table": "positions.weight",
    "stack/final_norm/scale": "final_norm.weight",
    "stack/final_norm/bias": "final_norm.bias",
    f"{LAYERS}/attention_norm/scale": "block.attention_norm.weight",
    f"{LAYERS}/attention_norm/bias": "block.attention_norm.bias",
    f"{LAYERS}/mlp_norm/scale": "block.mlp_norm.weight",
    f"{LAYERS}/mlp_norm/bias": "block.mlp_norm.bias",
    f"{LAYERS}/mlp/in": "block.mlp_in.weight",
    f"{LAYERS}/mlp/in_bias": "block.mlp_in.bias",
    f"{LAYERS}/mlp/out": "block.mlp_out.weight",
    f"{LAYERS}/mlp/out_bias": "block.mlp_out.bias",
} | {
    f"{LAYERS}/attention/{name}{ours}": f"block.{name}.{theirs}"
    for name in ("query", "key", "value", "out")
    for ours, theirs in (("", "weight"), ("_bias", "bias"))
}


def test_rates_decays_and_the_head_of_a_decoder_are_those_of_mup(witness):
    model, groups = witness
    experiment = parametrized(gpt())
    found = factors(experiment)
    of_mup = OF_MUP | {"language_head/kernel": "head.weight"}
    assert found.keys() == of_mup.keys()
    for path, name in of_mup.items():
        scale = found[path]
        assert groups[name] == pytest.approx(
            (RATE * scale.rate, DECAY * scale.decay), rel=1e-12
        ), path
    # MuReadout divides its input.
    head = model.head
    hidden = torch.randn(3, BASE * M)
    theirs = head(hidden) / (hidden @ head.weight.T)
    ours = multipliers(experiment).logits
    np.testing.assert_allclose(theirs.detach(), ours, rtol=1e-4)


def test_initial_values_are_as_large_as_mups(witness):
    model, _ = witness
    experiment = parametrized(gpt(dataclasses.replace(WIDE, init_by_depth=False)))
    mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
    state = plan_run(experiment, mesh, rules).init()
    drawn = traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
    theirs = dict(model.named_parameters())
    of_mup = OF_MUP | {"language_head/kernel": "head.weight"}
    for path, name in of_mup.items():
        if theirs[name].ndim > 1:
            expected = theirs[name].detach().numpy().std()
            assert drawn[path].std() == pytest.approx(expected, rel=0.05), path


def test_other_heads_are_mups_readouts_with_the_multiplier_in_the_weight(witness):
    """An update of rate η times the multiplier 1/m is one of rate η/m; Adam's is."""
    model, groups = witness
    found = factors(parametrized(bert()))
    for path, name in (
        ("pool/kernel", "pool.weight"),
        ("pool/bias", "pool.bias"),
        ("sentence_head/bias", "sentence.bias"),
    ):
        scale = found[path]
        assert groups[name] == (RATE * scale.rate, DECAY * scale.decay), path
    rate, decay = groups["sentence.weight"]
    multiplier = 1 / model.sentence.width_mult()
    head = found["sentence_head/kernel"]
    assert head.init == multiplier
    assert RATE * head.rate == pytest.approx(rate * multiplier)
    assert head.rate * head.decay == pytest.approx(rate * decay / (RATE * DECAY))


FAMILIES = ["gemma2_2b", "mixtral_8x7b", "t5_base", "vit_s16", "clip_b32", "mae_b16"]
SLOW_FAMILIES = [
    "gpt2", "bloom_176b", "llama3_8b", "bert_base", "deberta_v3_base", "electra_base",
    "t5_1_1_base", "bart_base", "transformer_base", "siglip_b16", "coca_base",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *FAMILIES,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES),
    ],
)
def test_rates_of_a_family_are_those_of_mup_for_the_same_shapes(name):
    """Each weight as a torch parameter [outputs, inputs] in an optimizer of mup."""
    experiment = load_experiment(f"models/{name}.gin")
    objective = fill_vocab_size(experiment.objective, 512)
    width = first_stack(objective.model).embed_dim
    small = resized(objective.model, width=Fraction(1, 2), asked="test")
    how = MuP(base_width=width // 2)
    experiment = parametrized(objective, how)
    found = factors(experiment)
    groups = {}
    shapes = [
        traverse_util.flatten_dict(abstract_variables(each)[1]["params"], sep="/")
        for each in (
            objective,
            dataclasses.replace(objective, model=small),
        )
    ]
    axes = traverse_util.flatten_dict(abstract_variables(objective)[0]["params"])
    axes = {"/".join(path): names for path, names in axes.items()}
    parameters = {
        path: torch_like(axes[path], *(of[path].shape for of in shapes))
        for path in shapes[0]
    }
    for group in mup.MuAdamW(
        parameters.values(), lr=1.0, weight_decay=1.0
    ).param_groups:
        groups |= {id(p): (group["lr"], group["weight_decay"]) for p in group["params"]}
    for path, parameter in parameters.items():
        rate, decay = groups[id(parameter)]
        infinite = [dim.isinf() for dim in parameter.infshape]
        readout = len(infinite) == 2 and infinite == [False, True]
        if readout and axes[path][-1] != "vocab":
            multiplier = 1 / parameter.infshape.width_mult()
            rate, decay = rate * multiplier, decay / multiplier
        assert (found[path].rate, found[path].decay) == pytest.approx((rate, decay))


def torch_like(names, shape, base):
    """A weight as mup wants it: without stacks, heads × width as one, [out, in]."""

    def flat(sizes):
        sizes = [n for n, name in zip(sizes, names) if name not in ("layers", "expert")]
        kept = [name for name in names if name not in ("layers", "expert")]
        if not kept:
            return []
        last = 2 if kept[-1] == "kv" and kept[-2:-1] in (["heads"], ["kv_heads"]) else 1
        inputs = sizes[:-last]
        return [math.prod(sizes[-last:])] + ([math.prod(inputs)] if inputs else [])

    parameter = torch.nn.Parameter(torch.empty(flat(shape), device="meta"))
    parameter.infshape = zip_infshape(flat(base), flat(shape))
    return parameter


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_completep_is_its_papers_table(alpha):
    L = 8
    deep = dataclasses.replace(WIDE, num_layers=2 * L)
    how = CompleteP(base_width=BASE, base_depth=2, alpha=alpha)
    experiment = parametrized(gpt(deep), how)
    found = factors(experiment)
    rate, eps = L ** (alpha - 1), L**-alpha / M
    hidden = Scaling(M**-0.5, rate / M, float(M), eps)
    vector = Scaling(1.0, rate, 1.0, eps)
    outer = Scaling(1.0, 1.0, 1.0, 1 / M)
    for path, scale in found.items():
        if LAYERS not in path:
            expected = outer
        else:
            expected = vector if "norm" in path or "bias" in path else hidden
        got = dataclasses.astuple(scale)
        assert got == pytest.approx(dataclasses.astuple(expected)), path
    assert multipliers(experiment) == Multipliers(residual=L**-alpha, logits=1 / M)
    c = first_stack(experiment.objective.model)
    assert c.out_init_std == STD


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 4, "global_layers": (0, 5)},
        {"experts": Experts(4, dense_layers=1), "bias": False},
        {"experts": Experts(4, dense_layers=4, dense_dim=64), "bias": False},
    ],
    ids=["global layers", "a dense layer", "more dense layers than in the base"],
)
def test_layers_of_a_kind_are_in_the_ratio_of_all_layers(options, scan_layers):
    L, alpha = 3, 0.5
    deep = dataclasses.replace(
        WIDE, num_layers=2 * L, scan_layers=scan_layers, **options
    )
    how = CompleteP(base_width=BASE, base_depth=2, alpha=alpha)
    experiment = parametrized(gpt(deep), how)
    assert multipliers(experiment).residual == pytest.approx(L**-alpha)
    norms = {
        path: scale.rate
        for path, scale in factors(experiment).items()
        if path.endswith("_norm/scale") and "layer" in path
    }
    expected = dict.fromkeys(norms, L ** (alpha - 1))
    assert norms == pytest.approx(expected)
    first = deep.experts is not None and scan_layers
    assert len(norms) == (2 * (1 + first) if scan_layers else 4 * L)


def test_a_base_of_one_layer_is_refused_for_layers_of_two_kinds():
    deep = dataclasses.replace(WIDE, bias=False, experts=Experts(4, dense_layers=1))
    with pytest.raises(UserError, match=r"base_depth = 1: .*\.dense_layers = 1"):
        parametrized(gpt(deep), CompleteP(base_width=BASE, base_depth=1))


def test_wider_heads_divide_scores_by_their_width_not_its_root():
    how = MuP(base_width=BASE, base_head_dim=8)
    found = multipliers(parametrized(gpt(), how))
    width = WIDE.head_width
    # 1/√d times the multiplier is √d_base / d, of which microsoft's 8/d is d_base = 64.
    assert width**-0.5 * found.attention == pytest.approx(8**0.5 / width)


def test_a_tied_head_divides_its_logits_and_sqrt_d_is_the_bases():
    model = gpt(tie_embeddings=True, embed_scale=True)
    how = MuP(base_width=BASE, logits_multiplier=3.0, embedding_multiplier=2.0)
    experiment = parametrized(model, how)
    expected = Multipliers(tokens=M**-0.5, embedding=2.0, logits=3.0 / M)
    assert multipliers(experiment) == expected
    table = factors(experiment)["tokens/table"]
    assert table == Scaling()


def test_a_multiplier_of_a_tied_head_multiplies_its_logits():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (2, T)).astype(np.int32)
    plain = gpt(tie_embeddings=True).model
    variables = jax.jit(plain.init)(jax.random.key(0), tokens)
    half = dataclasses.replace(WIDE, multipliers=Multipliers(logits=0.5))
    halved = gpt(half, tie_embeddings=True).model
    before, after = (
        jax.jit(m.apply)(variables, tokens)["logits"] for m in (plain, halved)
    )
    np.testing.assert_array_equal(after, 0.5 * before)


def test_layers_that_are_not_scanned_have_the_factors_of_those_that_are():
    how = CompleteP(base_width=BASE, base_depth=1)
    apart = dataclasses.replace(WIDE, scan_layers=False)
    scanned, unrolled = (factors(parametrized(gpt(c), how)) for c in (WIDE, apart))
    for path, scale in unrolled.items():
        joined = path.replace("layer_0", "layers").replace("layer_1", "layers")
        assert scale == scanned[joined]
    assert len(unrolled) > len(scanned)


def test_the_model_at_the_bases_size_is_the_standard_one_to_the_bit():
    plain = gpt(tie_embeddings=True)
    how = MuP(base_width=WIDE.embed_dim)
    experiment = parametrized(plain, how)
    assert experiment.objective == plain
    standard = dataclasses.replace(experiment, parametrization=None)
    for scale in factors(experiment).values():
        assert scale == Scaling()
    states = []
    for each in (experiment, standard):
        plan = plan_run(each, each.mesh.build(), each.mesh.all_rules)
        state = plan.init()
        gradients = jax.tree.map(lambda x: 0.1 * x + 0.01, state.params)
        updates, _ = jax.jit(plan.transformation.update)(
            gradients, state.opt_state, state.params
        )
        states.append((state.params, updates))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_resolving_again_changes_nothing():
    once = parametrized(gpt())
    assert resolve(once) == once
    with pytest.raises(ValueError, match="resolve"):
        plan_scaling(dataclasses.replace(once, objective=gpt()))


def test_lion_has_the_rules_of_adam_and_muon_the_spectral_condition():
    lion = Lion(schedule=ADAMW.schedule)
    muon = Muon(schedule=ADAMW.schedule)
    adam, found = (
        factors(parametrized(gpt())),
        factors(parametrized(gpt(), optimizer=lion)),
    )
    assert found == adam
    found = factors(parametrized(gpt(), optimizer=muon))
    for path, scale in found.items():
        hidden = "/attention/" in path or "/mlp/" in path
        if not hidden or path.endswith("bias"):
            assert scale == adam[path]
            continue
        # An orthogonal matrix times √max(in, out) has that spectral norm.
        fan_in, fan_out = (1, 4) if path.endswith("in") else (1, 1)
        fan_in, fan_out = (4, 1) if "mlp/out" in path else (fan_in, fan_out)
        norms = [
            math.sqrt(fan_out / fan_in) / math.sqrt(max(fan_in, fan_out) * width)
            for width in (BASE * M, BASE)
        ]
        assert scale.rate == pytest.approx(norms[0] / norms[1])
        assert scale.rate * scale.decay == pytest.approx(1.0)


@pytest.mark.parametrize("optimizer", [Adafactor, Lamb])
def test_optimizers_without_a_known_rule_are_refused(optimizer):
    experiment = parametrized(gpt(), optimizer=optimizer(schedule=ADAMW.schedule))
    with pytest.raises(UserError, match=f"@{optimizer.gin_name}.*no rule is known"):
        plan_scaling(experiment)


def test_weight_decay_may_stay_as_it_is():
    how = MuP(base_width=BASE, scale_weight_decay=False)
    scale = factors(parametrized(gpt(), how))[f"{LAYERS}/mlp/in"]
    assert (scale.rate, scale.decay) == (1 / M, 1.0)


def test_a_router_is_an_output_and_experts_are_hidden():
    c = dataclasses.replace(WIDE, bias=False, experts=Experts(4))
    found = factors(parametrized(gpt(c)))
    router, into = found[f"{LAYERS}/mlp/router"], found[f"{LAYERS}/mlp/in"]
    assert (router.init, router.rate) == (1 / M, 1 / M)
    assert (into.init, into.rate) == (M**-0.5, 1 / M)


def test_updates_are_those_of_adamw_with_the_factors_in_numpy():
    """Two updates in float64; ε is large, so that its factor shows."""
    axes = {"a": ("embed", "mlp"), "b": ("mlp",)}
    scaling = {"a": Scaling(1.0, 0.25, 4.0, 0.5), "b": Scaling(1.0, 0.5, 1.0, 0.125)}
    optimizer = dataclasses.replace(ADAMW, eps=0.3, clip_norm=None)
    tx = optimizer.build(axes, 2, None, scaling, rate_factor=2.0)
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=6)}
    expected, moments = dict(params), {n: (0.0, 0.0) for n in params}
    ours = jax.tree.map(np.float32, params)
    state = tx.init(ours)
    for t in (1, 2):
        grads = {n: rng.normal(size=x.shape) for n, x in params.items()}
        updates, state = tx.update(jax.tree.map(np.float32, grads), state, ours)
        ours = jax.tree.map(lambda x, u: x + u, ours, updates)
        for n, g in grads.items():
            m = 0.9 * moments[n][0] + 0.1 * g
            v = 0.95 * moments[n][1] + 0.05 * g * g
            moments[n] = m, v
            s = scaling[n]
            direction = (m / (1 - 0.9**t)) / (
                np.sqrt(v / (1 - 0.95**t)) + 0.3 * s.epsilon
            )
            decay = DECAY * s.decay if n == "a" else 0.0
            expected[n] = expected[n] - 2 * RATE * s.rate * (
                direction + decay * expected[n]
            )
    for n in params:
        np.testing.assert_allclose(ours[n], expected[n], rtol=1e-5, atol=1e-7)


POST = dataclasses.replace(WIDE, norm_position="post")
SCALE = dataclasses.replace(WIDE, attention_scale=1.0, position_bias=RelativeBuckets())
BOUND = dataclasses.replace(WIDE, multipliers=Multipliers(residual=0.5))
DEEP = dataclasses.replace(WIDE, embed_dim=BASE, num_heads=2, num_layers=1)


@pytest.mark.parametrize(
    ("objective", "how", "message"),
    [
        (gpt(), {"base_width": 40}, "base_width = 40.*no whole number"),
        (gpt(), {"base_width": 32, "base_head_dim": 24}, "num_heads.*no whole number"),
        (gpt(), {}, "base_width = None: expected it or mup.base"),
        (
            gpt(),
            {"base_width": 32, "base": gpt().model},
            "base_width = 32: expected it or mup.base, not both",
        ),
        (gpt(), {"base": bert().model}, "mup.base = @bert.*smaller @gpt"),
        (gpt(), {"base": gpt(DEEP).model}, "num_layers is 1 in the base, 2 in"),
        (
            gpt(),
            {"base": GPT(WIDE, V, 8, tie_embeddings=False, vocab_multiple=1)},
            "'position' of .* size 8 in the base, 16 in the model",
        ),
        (
            gpt(),
            {"base": gpt(dataclasses.replace(WIDE, bias=False)).model},
            "the model alone has the parameter 'stack/",
        ),
        (bert(), {"base_width": 32, "embedding_multiplier": 2.0}, "has no effect"),
        (gpt(SCALE), {"base_width": 32, "base_head_dim": 8}, "attention_scale = 1.0"),
        (gpt(BOUND), {"base_width": 32}, "multipliers is bound"),
    ],
)
def test_what_cannot_be_parametrized_is_refused_by_name(objective, how, message):
    with pytest.raises(UserError, match=message):
        parametrized(objective, MuP(**how))


def test_completep_is_refused_for_norms_after_layers_and_without_a_depth():
    with pytest.raises(UserError, match="norm_position = 'post'"):
        parametrized(gpt(POST), CompleteP(base_width=BASE, base_depth=1))
    with pytest.raises(UserError, match=r"completep.base_depth = None"):
        CompleteP(base_width=BASE)
    shared = dataclasses.replace(WIDE, share_layers=True)
    with pytest.raises(UserError, match="share_layers = True with 2 layers, 1 in"):
        parametrized(gpt(shared), CompleteP(base_width=BASE, base_depth=1))


def test_a_multiplier_of_logits_without_a_head_is_refused():
    objective = load_experiment("models/vit_s16.gin").objective
    with pytest.raises(UserError, match="no language head"):
        parametrized(objective, MuP(base_width=192, logits_multiplier=2.0))


def test_a_decay_that_is_zero_cannot_be_left_as_it_is():
    how = MuP(base_width=BASE, scale_weight_decay=False)
    optimizer = dataclasses.replace(ADAMW, weight_decay=0.0)
    experiment = parametrized(gpt(), how, optimizer)
    with pytest.raises(UserError, match="scale_weight_decay = False has no effect"):
        plan_scaling(experiment)


def test_factors_of_all_parameters_are_a_table():
    table = fmjax.parameter_factors(parametrized(gpt()))
    assert table.loc["tokens/table", "rate"] == 1
    hidden = table.loc[f"{LAYERS}/mlp/in"]
    found = hidden[["initial values", "rate", "weight decay"]].tolist()
    assert found == pytest.approx([M**-0.5, 1 / M, M])
    plain = fmjax.parameter_factors(parametrized(gpt(), None))
    assert (plain.drop(columns="shape") == 1).all(axis=None)
    assert (plain["shape"] == table["shape"]).all()

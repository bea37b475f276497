"""Parameters of one run land in another, whatever its layers' layout and its mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from on_meshes import build, random_state

from fmjax.data.tokenizers.characters import CharacterTokenizer
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer import stack_layers, unstack_layers
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.parameter_paths import slots
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.objectives.text_classification import TextClassification
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.training import copy_plan
from fmjax.training.checkpoint.checkpoints import Checkpoints, save_model
from fmjax.training.copy_plan import Source, check_tokenizers, plan_copies
from fmjax.training.init_from import InitFrom
from fmjax.training.start_from import start_from
from fmjax.training.state import State, abstract_variables, plan_state

V, LAYERS = 259, 3
SCANNED = TransformerConfig(num_layers=LAYERS, embed_dim=16, num_heads=2)
UNROLLED = dataclasses.replace(SCANNED, scan_layers=False)
ENCODER = ("stack/** -> encoder_stack/**", "tokens/table")
BERT = MaskedLM(Bert(UNROLLED, V, 8))


def bert_params(config):
    """Random parameters of an encoder, the same numbers whatever the layout."""
    rng = np.random.default_rng(0)
    shapes = abstract_variables(BERT)[1]["params"]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    if config.scan_layers:
        params["stack"] = stack_layers(params["stack"], LAYERS)
    return jax.tree.map(np.asarray, params)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories of that encoder, scanned and unrolled."""
    folders = {}
    for name, config in {"scanned": SCANNED, "unrolled": UNROLLED}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        save_model(folders[name], bert_params(config))
    return folders


def target(config=SCANNED, mesh_config=None, ema=False, vocab_size=V):
    mesh, rules = build(mesh_config)
    model = Seq2Seq(
        config, config, vocab_size, 8, positions="learned", vocab_multiple=16
    )
    objective = Seq2SeqLM(model)
    plan = plan_state(
        objective,
        AdamW(schedule=Constant(learning_rate=1e-3)),
        mesh,
        rules,
        train_steps=3,
        ema=ema,
    )
    return plan, objective, mesh, rules


def source(run, *parameters, vocab_size=V, tokenizer=None, step=None):
    wanted = InitFrom(run=str(run), parameters=parameters or ENCODER, step=step)
    return Source(wanted, vocab_size, tokenizer, BERT)


def started(plan, objective, mesh, rules, *sources):
    copies = plan_copies(sources, plan, V)
    state = random_state(objective, mesh, rules)
    if plan.shapes.ema is not None:
        average = jax.tree.map(jax.numpy.copy, state.params)
        state = dataclasses.replace(state, ema=average)
    before = jax.device_get(state)
    with on_mesh(mesh, rules):
        return before, start_from(copies, state), copies


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), wanted)


@pytest.mark.parametrize(
    ("layout", "config", "mesh_config"),
    [
        ("unrolled", SCANNED, None),
        ("scanned", SCANNED, MeshConfig(data=1, fsdp=4, tensor=2)),
        ("scanned", UNROLLED, MeshConfig(data=1, fsdp=4, tensor=2)),
    ],
)
def test_an_encoder_lands_in_an_encoder_decoder(runs, layout, config, mesh_config):
    made = target(config, mesh_config)
    before, state, copies = started(*made, source(runs[layout]))
    wanted = bert_params(UNROLLED)
    if config.scan_layers:
        wanted["stack"] = stack_layers(wanted["stack"], LAYERS)
    assert_equal(state.params["encoder_stack"], wanted["stack"])
    # The tables are padded to other multiples: only what is real is taken.
    table = before.params["tokens"]["table"].copy()
    assert table.shape[0] < wanted["tokens"]["table"].shape[0]
    table[:V] = wanted["tokens"]["table"][:V]
    assert_equal(state.params["tokens"]["table"], table)
    assert_equal(state.params["decoder_stack"], before.params["decoder_stack"])
    jax.tree.map(
        lambda leaf, shape: leaf.sharding == shape.sharding or pytest.fail("moved"),
        state.params,
        made[0].shapes.params,
    )
    taken = jax.tree.leaves((wanted["stack"], wanted["tokens"]))
    real = sum(leaf.size for leaf in taken)
    assert f"{real:,} parameters" in copies[0].describe()


def test_initial_values_make_room_for_what_is_read(runs):
    plan, objective, mesh, rules = target()
    copies = plan_copies([source(runs["scanned"])], plan, V)
    state = random_state(objective, mesh, rules)
    with on_mesh(mesh, rules):
        start_from(copies, state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params["encoder_stack"]))
    assert not any(
        x.is_deleted() for x in jax.tree.leaves(state.params["decoder_stack"])
    )


def test_averaged_parameters_are_taken_and_begin_the_average(tmp_path):
    params = bert_params(UNROLLED)
    average = jax.tree.map(lambda x: 2 * x, params)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(State(jax.numpy.int32(7), params, {}, (), average), {}, {})
    checkpoints.close()
    made = target(UNROLLED, ema=True)
    _, state, copies = started(*made, source(tmp_path))
    assert_equal(state.params["encoder_stack"], average["stack"])
    assert_equal(state.ema, jax.device_get(state.params))
    assert "(step 7, averaged)" in copies[0].describe()


def test_layers_go_where_patterns_send_them(runs):
    made = target(SCANNED)
    one = "stack/layer_0/{0} -> decoder_stack/layer_2/{0}"
    before, state, _ = started(
        *made,
        source(runs["unrolled"], one.format("attention/**"), one.format("mlp/**")),
        source(runs["scanned"], "stack/final_norm/* -> encoder_stack/final_norm/*"),
    )
    theirs = bert_params(UNROLLED)["stack"]
    ours = unstack_layers(jax.device_get(state.params["decoder_stack"]), LAYERS)
    untouched = unstack_layers(before.params["decoder_stack"], LAYERS)
    for part in ("attention", "mlp"):
        assert_equal(ours["layer_2"][part], theirs["layer_0"][part])
        assert_equal(ours["layer_1"][part], untouched["layer_1"][part])
    assert_equal(state.params["encoder_stack"]["final_norm"], theirs["final_norm"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("stak/** -> encoder_stack/**",), "Did you mean 'stack/[*][*]'"),
        (("stack/** -> encoder/**",), "Did you mean 'encoder_stack/[*][*]'"),
        (
            ("stack/layer_*/** -> encoder_stack/**",),
            r"has \['\*', '\*\*'\] on one side, \['\*\*'\] on the other",
        ),
        (("stack/** -> decoder_stack/**",), "cross_attention.* here, without a source"),
        (("** -> encoder_stack/**",), "inputs/norm/bias.* there, without a place here"),
        ((*ENCODER, "tokens/*"), "'tokens/table' is taken twice"),
        (
            ("stack/*/mlp/in -> encoder_stack/*/mlp/out",),
            r"has the shape \(16, 64\), .*mlp/out' here \(64, 16\)",
        ),
        ((), r"init_from.parameters = \(\): expected one"),
    ],
)
def test_what_does_not_fit_is_told(runs, parameters, message):
    plan, *_ = target()

    def make():
        wanted = InitFrom(run=str(runs["scanned"]), parameters=parameters)
        plan_copies([Source(wanted, V, None, BERT)], plan, V)

    with pytest.raises(UserError, match=message) as info:
        make()
    assert str(info.value).startswith("init_from.parameters")


def test_what_is_left_out_keeps_its_initial_values(runs):
    # Each side has what the other has not: heads, and layers of the decoder.
    mesh, rules = build(None)
    model = Bert(SCANNED, V, 8, language_head=False, pooler="tanh", num_classes=3)
    objective = TextClassification(model)
    optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
    plan = plan_state(objective, optimizer, mesh, rules, train_steps=3)
    left_out = ("pool/**", "classifier/*", "masked_head/**", "stack/layer_1/mlp/**")

    def wanted(*without):
        found = InitFrom(run=str(runs["unrolled"]), without=without)
        return Source(found, V, None, BERT)

    before, state, _ = started(plan, objective, mesh, rules, wanted(*left_out))
    theirs = bert_params(UNROLLED)
    ours, old = jax.device_get(state.params), before.params
    for part in ("pool", "classifier"):
        assert_equal(ours[part], old[part])
    ours, old = (unstack_layers(tree["stack"], LAYERS) for tree in (ours, old))
    assert_equal(ours["layer_1"]["mlp"], old["layer_1"]["mlp"])
    assert_equal(ours["layer_1"]["attention"], theirs["stack"]["layer_1"]["attention"])
    assert_equal(ours["layer_2"], theirs["stack"]["layer_2"])
    with pytest.raises(UserError, match=r"pool/bias.* here, without a source"):
        plan_copies([wanted(*left_out[1:])], plan, V)
    with pytest.raises(UserError, match=r"init_from\.without: 'pol/\*\*' matches no"):
        plan_copies([wanted("pol/**")], plan, V)


def test_a_model_of_another_width_is_refused(runs):
    plan, *_ = target(dataclasses.replace(SCANNED, embed_dim=24))
    with pytest.raises(UserError, match=r"\(16,\), .* here \(24,\)"):
        plan_copies([source(runs["scanned"], ENCODER[0])], plan, V)


def test_a_checkpoint_that_is_not_there_is_told(runs, tmp_path):
    plan, *_ = target()
    with pytest.raises(UserError, match="no checkpoint; found none"):
        plan_copies([source(tmp_path)], plan, V)
    with pytest.raises(UserError, match=r"no checkpoint of step 5; found \[0\]"):
        plan_copies([source(runs["scanned"], step=5)], plan, V)


def test_tables_need_the_same_vocabulary(runs):
    plan, *_ = target()
    with pytest.raises(UserError, match="vocab_size = 200, this run 259"):
        plan_copies([source(runs["scanned"], vocab_size=200)], plan, V)
    own, other = ByteTokenizer(), CharacterTokenizer(("a", "b"))
    for tokenizer in (other, None):
        copies = plan_copies([source(runs["scanned"], tokenizer=tokenizer)], plan, V)
        with pytest.raises(UserError, match="@saved_tokenizer") as info:
            check_tokenizers(copies, own)
        assert own.digest in str(info.value)
        assert str(tokenizer and tokenizer.digest) in str(info.value)
    same = source(runs["scanned"], tokenizer=ByteTokenizer())
    check_tokenizers(plan_copies([same], plan, V), own)
    no_table = source(runs["scanned"], ENCODER[0], tokenizer=other)
    check_tokenizers(plan_copies([no_table], plan, V), own)


@dataclasses.dataclass(frozen=True)
class Distilled(MaskedLM):
    """An encoder with a second set of parameters, which it does not train."""

    def init(self, rng):
        params = super().init(rng)["params"]
        return {"params": params, "teacher": params}


@pytest.mark.parametrize("mesh_config", [None, MeshConfig(data=1, fsdp=4, tensor=2)])
def test_parameters_land_in_another_collection(runs, mesh_config):
    mesh, rules = build(mesh_config)
    objective = Distilled(Bert(SCANNED, V, 8))
    optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
    plan = plan_state(objective, optimizer, mesh, rules, train_steps=3)
    wanted = InitFrom(run=str(runs["unrolled"]), collection="teacher")
    taken = Source(wanted, V, None, BERT)
    before, state, _ = started(plan, objective, mesh, rules, taken)
    found, theirs = jax.device_get(state.extra["teacher"]), bert_params(SCANNED)
    # What pads a vocabulary is not taken: the table's rows and offsets of logits.
    padded = theirs["tokens"]["table"].shape[0]
    found, theirs = jax.tree.map(
        lambda leaf: leaf[:V] if leaf.shape[0] == padded else leaf, (found, theirs)
    )
    assert_equal(found, theirs)
    assert_equal(state.params, before.params)
    unknown = dataclasses.replace(wanted, collection="teachers")
    with pytest.raises(UserError, match=r"init_from\.collection .*Did you mean"):
        plan_copies([Source(unknown, V, None, BERT)], plan, V)


def test_the_paths_of_a_run_are_listed_once_and_not_for_each_tensor(runs, monkeypatch):
    plan, *_ = target()
    calls = []

    def counting(shapes):
        calls.append(shapes)
        return slots(shapes)

    monkeypatch.setattr(copy_plan, "slots", counting)
    copies = plan_copies([source(runs["unrolled"])], plan, V)
    assert len(copies[0].pieces) > len(calls) == 2

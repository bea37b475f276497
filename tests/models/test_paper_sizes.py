"""Models at the sizes of their papers: counted, given rows, laid over large meshes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from jax.sharding import AbstractMesh
from models.decoder_sizes import DECODERS, llama, of_transformers
from models.encoder_sizes import ENCODERS
from models.test_vision_sizes import COUNTS as VISION

from fmjax.config import files as config_files
from fmjax.config.load import load_experiment
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.models.language.bert import Bert
from fmjax.models.parameter_paths import slots
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.optim.freezing import plan_freezing
from fmjax.sharding.mesh import AXES, MeshConfig
from fmjax.sharding.rules import param_specs
from fmjax.training.copy_plan import counterparts
from fmjax.training.state import abstract_variables


def gpt2(layers, width, heads):
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads}
    return of_transformers("GPT2LMHeadModel", **sizes, n_positions=1024)


def gpt3(layers, width):
    return gpt2_formula(layers, width, 50257, 2048, bias=1)


def gpt2_formula(layers, width, vocabulary, length, bias):
    """Tables, then a layer's 12 D² and its norms and offsets, then a norm."""
    D = width
    matrices = 4 * D * D + 2 * D * 4 * D
    offsets = bias * (4 * D + 4 * D + D)
    layer = matrices + offsets + 2 * (1 + bias) * D
    return (vocabulary + length) * D + layers * layer + (1 + bias) * D


def opt(layers, width, heads, vocabulary=50272, **more):
    return of_transformers(
        "OPTForCausalLM",
        num_hidden_layers=layers,
        hidden_size=width,
        word_embed_proj_dim=width,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        **more,
    )


def galactica_1_3b():
    """Without the offsets of norms, which OPT has even where it has no biases."""
    return opt(24, 2048, 32, 50000, enable_bias=False) - (2 * 24 + 1) * 2048


def bloom(layers, width, heads):
    sizes = {"n_layer": layers, "hidden_size": width, "n_head": heads}
    return of_transformers("BloomForCausalLM", **sizes, vocab_size=250880)


def mixtral():
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    return llama(32, 4096, 32, 14336, kv_heads=8, kind="Mixtral", **experts)


def gemma2(layers, width, heads, kv_heads, head, mlp):
    return llama(
        layers, width, heads, mlp, 256000, kv_heads, "Gemma2", head_dim=head
    )  # fmt: skip


def encoder(architecture, layers, width, heads, mlp=None, vocabulary=30522, **more):
    return of_transformers(
        architecture,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width if mlp is None else mlp,
        vocab_size=vocabulary,
        **more,
    )


def roberta(layers, width, heads):
    rows = {"max_position_embeddings": 514, "type_vocab_size": 1}
    sizes = (layers, width, heads, 4 * width, 50265)
    return encoder("RobertaForMaskedLM", *sizes, **rows)


def electra(layers, width, heads):
    """Both models, less the vectors of tokens, positions and types that they share."""
    shared = (30522 + 512 + 2 + 2) * width
    sizes = {"embedding_size": width, "max_position_embeddings": 512}
    kept = encoder("ElectraForPreTraining", layers, width, heads, **sizes)
    made = encoder("ElectraForMaskedLM", layers, 256, 4, **sizes)
    return kept + made - shared


def deberta(layers, width, heads):
    """Likewise, with ELECTRA's head of a layer and a number."""
    shared = (128100 + 2) * width
    options = {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "max_position_embeddings": 512,
        "position_biased_input": False,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    }
    sizes = (width, heads, 4 * width, 128100)
    kept = encoder("DebertaV2Model", layers, *sizes, **options)
    made = encoder("DebertaV2ForMaskedLM", layers // 2, *sizes, **options)
    return kept + width * width + width + width + 1 + made - shared


def t5(layers, width, mlp, heads, head, kind="relu"):
    return of_transformers(
        "T5ForConditionalGeneration",
        num_layers=layers,
        d_model=width,
        d_ff=mlp,
        num_heads=heads,
        d_kv=head,
        feed_forward_proj=kind,
        vocab_size=32128,
    )


def t5_1_1(layers, width, mlp, heads):
    """Version 5 of transformers ties a head that 1.1 has for itself."""
    return t5(layers, width, mlp, heads, 64, "gated-gelu") + 32128 * width


def bart(architecture, layers, width, heads, mlp, vocabulary, **more):
    sizes = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", layers), ("attention_heads", heads))
    }
    return of_transformers(
        architecture,
        **sizes,
        d_model=width,
        encoder_ffn_dim=mlp,
        decoder_ffn_dim=mlp,
        vocab_size=vocabulary,
        **more,
    )


def marian():
    """Transformers keeps the offset of the logits as a buffer."""
    return bart("MarianMTModel", 6, 512, 8, 2048, 58101) + 58101


def encoder_decoder(encoders, decoders, width, vocabulary):
    """Norms and offsets everywhere, one table, no positions and no final norms."""
    D = width
    attention = 4 * D * D + 4 * D
    feed_forward = 2 * D * 4 * D + 4 * D + D
    norm = 2 * D
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    return vocabulary * D + encoders * encoder_layer + decoders * decoder_layer


def alexatm():
    D = 4096
    learned, final_norms = 2 * 1024 * D, 2 * 2 * D
    return encoder_decoder(46, 32, D, 150_000) + learned + final_norms


def alexatm_from_encoder():
    """With a norm of the sum of vectors on either side."""
    return alexatm() + 2 * 2 * 4096


QWEN3 = {"kv_heads": 8, "kind": "Qwen3", "head_dim": 128}
COUNTS = DECODERS | ENCODERS | {
    "gpt2": lambda: gpt2(12, 768, 12),
    "gpt2_medium": lambda: gpt2(24, 1024, 16),
    "gpt2_large": lambda: gpt2(36, 1280, 20),
    "gpt2_xl": lambda: gpt2(48, 1600, 25),
    "gpt3_6_7b": lambda: gpt3(32, 4096),
    "gpt3_175b": lambda: gpt3(96, 12288),
    "opt_30b": lambda: opt(48, 7168, 56),
    "bloom_176b": lambda: bloom(70, 14336, 112),
    "llama_tiny": lambda: llama(4, 192, 6, 512, 8192, 2),
    "llama_7b": lambda: llama(32, 4096, 32, 11008),
    "llama3_8b": lambda: llama(32, 4096, 32, 14336, 128256, 8),
    "galactica_1_3b": galactica_1_3b,
    "llama3_70b": lambda: llama(80, 8192, 64, 28672, 128256, 8),
    "llama3_1_70b": lambda: llama(80, 8192, 64, 28672, 128256, 8),
    "mistral_7b": lambda: llama(32, 4096, 32, 14336, kv_heads=8, kind="Mistral"),
    "mixtral_8x7b": mixtral,
    "qwen2_7b": lambda: llama(28, 3584, 28, 18944, 152064, 4, "Qwen2"),
    "qwen3_8b": lambda: llama(36, 4096, 32, 12288, 151936, **QWEN3),
    "gemma2_2b": lambda: gemma2(26, 2304, 8, 4, 256, 9216),
    "gemma2_9b": lambda: gemma2(42, 3584, 16, 8, 256, 14336),
    "gemma2_27b": lambda: gemma2(46, 4608, 32, 16, 128, 36864),
    "bert_base": lambda: encoder("BertForPreTraining", 12, 768, 12),
    "bert_large": lambda: encoder("BertForPreTraining", 24, 1024, 16),
    "roberta_base": lambda: roberta(12, 768, 12),
    "roberta_large": lambda: roberta(24, 1024, 16),
    "electra_base": lambda: electra(12, 768, 12),
    "electra_large": lambda: electra(24, 1024, 16),
    "deberta_v3_base": lambda: deberta(12, 768, 12),
    "deberta_v3_large": lambda: deberta(24, 1024, 16),
    "t5_small": lambda: t5(6, 512, 2048, 8, 64),
    "t5_base": lambda: t5(12, 768, 3072, 12, 64),
    "t5_large": lambda: t5(24, 1024, 4096, 16, 64),
    "t5_3b": lambda: t5(24, 1024, 16384, 32, 128),
    "t5_11b": lambda: t5(24, 1024, 65536, 128, 128),
    "t5_1_1_small": lambda: t5_1_1(8, 512, 1024, 6),
    "t5_1_1_base": lambda: t5_1_1(12, 768, 2048, 12),
    "t5_1_1_large": lambda: t5_1_1(24, 1024, 2816, 16),
    "t5_1_1_xl": lambda: t5_1_1(24, 2048, 5120, 32),
    "t5_1_1_xxl": lambda: t5_1_1(24, 4096, 10240, 64),
    "bart_base": lambda: bart(
        "BartForConditionalGeneration", 6, 768, 12, 3072, 50265
    ),
    "bart_large": lambda: bart(
        "BartForConditionalGeneration", 12, 1024, 16, 4096, 50265
    ),
    "marian": marian,
    "alexatm_20b": alexatm,
    "alexatm_20b_from_encoder": alexatm_from_encoder,
    "transformer_base": lambda: encoder_decoder(6, 6, 512, 37000),
    "transformer_big": lambda: encoder_decoder(6, 6, 1024, 37000),
    # Of the run papers/nanogpt_shakespeare/gpu.gin.
    "nanogpt": lambda: gpt2_formula(6, 384, 65, 256, bias=0),
}  # fmt: skip


@functools.cache
def built(name, folder):
    """A model's experiment on top of another's choices, and what it would hold."""
    translates = name.startswith(("marian", "transformer_", "m2m_100_"))
    data = "multi30k" if translates else "python_stdlib"
    files = ["quickstart.gin", f"data/{data}.gin", f"models/{name}.gin"]
    (folder / "run.gin").write_text("".join(f"include '{f}'\n" for f in files))
    macros = ["PAIRS_DIR=some/folder"] if translates else []
    macros += ["ENCODER=some/run"] if name.endswith("from_encoder") else []
    macros += ["gpt.vocab_size=8192"] if name == "llama_tiny" else []
    experiment = load_experiment(folder / "run.gin", macros)
    if name == "nanogpt":
        run = "papers/nanogpt_shakespeare/gpu.gin"
        experiment = load_experiment(run, ["TEXT_FILE=some/text.txt"])
    return experiment, *abstract_variables(experiment.objective)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Resolves a model, once a module."""
    folder = tmp_path_factory.mktemp("runs")
    return lambda name: built(name, folder)


def test_every_model_that_ships_is_counted():
    models = config_files.configs_folder() / "models"
    assert {path.stem for path in models.glob("*.gin")} == {*COUNTS, *VISION}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name, build):
    experiment, _, shapes = build(name)
    model = experiment.objective.model
    padding = model.padded_vocab_size - model.vocab_size
    count = 0
    for leaf in jax.tree.leaves(shapes["params"]):
        if model.padded_vocab_size in leaf.shape:
            count -= padding * leaf.size // model.padded_vocab_size
        count += leaf.size
    assert count == COUNTS[name]()
    header = (config_files.configs_folder() / "models" / f"{name}.gin").read_text()
    assert name == "nanogpt" or f"{count:,} parameters" in header.replace("\n# ", " ")
    experiment.optimizer.schedule.build(experiment.train.steps)


def test_alexatm_starts_from_an_encoder_and_keeps_it_for_100_000_steps(build):
    # Soltan et al. 2022, section 3.
    experiment, _, ours = build("alexatm_20b_from_encoder")
    model = experiment.objective.model
    encoder = Bert(model.encoder, model.vocab_size, model.max_length, num_token_types=0)
    _, theirs = abstract_variables(MaskedLM(encoder))
    here, there = (
        traverse_util.flatten_dict(jax.tree.map(jnp.shape, tree["params"]), sep="/")
        for tree in (ours, theirs)
    )
    (start,) = experiment.init_from
    pairs = counterparts(start, slots(there), slots(here))
    taken = {
        slots(here)[goal].array: there[slots(there)[origin].array]
        for goal, origin in pairs.items()
    }
    sides = ("encoder_stack/", "encoder_inputs/", "tokens/")
    assert taken == {n: shape for n, shape in here.items() if n.startswith(sides)}
    freezing = plan_freezing(experiment.freeze, ours["params"])
    steps = traverse_util.flatten_dict(freezing.first_steps, sep="/")
    assert steps == {name: 100_000 if name in taken else 0 for name in here}
    assert experiment.train.steps == 500_000


# nanoGPT's rows are its runs'.
@pytest.mark.parametrize("name", sorted(COUNTS.keys() - {"nanogpt"}))
def test_each_model_takes_the_rows_that_come_with_it(name, build):
    experiment, *_ = build(name)
    data, objective = experiment.data, experiment.objective
    # No vocabulary is trained on text for this; its specials are what matters.
    asked = data.train.tokenizer
    pieces = Bytes(specials=asked.specials, sentinels=asked.sentinels)
    task = dataclasses.replace(data.train, tokenizer=pieces)
    data = dataclasses.replace(data, train=task)
    rows = data.row_shapes()
    objective.check(rows, objective.model.vocab_size)
    if check_data := getattr(objective, "check_data", None):
        check_data(data)
    if name.startswith("t5"):
        assert (rows["encoder_tokens"], rows["targets"]) == ((512,), (114,))


# Devices along axes of the mesh, and how much more than its share one device holds.
MESHES = {
    "gpt3_175b": ({"fsdp": 8, "tensor": 8}, 1.01),
    "bloom_176b": ({"fsdp": 8, "tensor": 8}, 1.01),
    "opt_30b": ({"fsdp": 8, "tensor": 8}, 1.01),
    "llama3_70b": ({"fsdp": 8, "tensor": 8}, 1.01),
    "alexatm_20b": ({"fsdp": 8, "tensor": 8}, 1.01),
    "t5_11b": ({"fsdp": 8, "tensor": 8}, 1.01),
    # Only experts, 45 of 47 billion, lie over their axis.
    "mixtral_8x7b": ({"fsdp": 8, "expert": 8}, 1.3),
    "gpt_oss_120b": ({"fsdp": 8, "expert": 8}, 1.3),
    "deepseek_v3": ({"fsdp": 8, "expert": 8}, 1.3),
}


@pytest.mark.parametrize("name", MESHES)
def test_large_models_spread_over_large_meshes(name, build):
    axes_of_mesh, bound = MESHES[name]
    mesh_config = MeshConfig(**({"data": 1} | axes_of_mesh))
    mesh = AbstractMesh(mesh_config.sizes(64), AXES)
    _, axes, shapes = build(name)
    specs = param_specs(axes, shapes, mesh, mesh_config.all_rules)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    held = 0
    for leaf, spec in zip(
        jax.tree.leaves(shapes),
        jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, tuple)),
    ):
        shard = jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape)
        own = math.prod(shard)
        held += own
        # What every device holds whole is norms and the like.
        assert own < leaf.size or leaf.size < total / 10_000
    assert held <= bound * total / 64

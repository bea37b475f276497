"""Rates fall from layer to layer, the same in scanned and in unrolled stacks."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.optim.layer_decay import decay_by_layer
from fmjax.optim.optimizers import AdamW
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.peft import Peft
from fmjax.optim.scaling import Scaling
from fmjax.optim.schedules import Constant
from fmjax.training.state import abstract_variables

C = TransformerConfig(num_layers=3, embed_dim=8, num_heads=2, dtype="float32")
SIZES = {"vocab_size": 16, "max_length": 8, "vocab_multiple": 8}
DECAY = 0.5
GPTS = {
    scanned: CausalLM(
        GPT(dataclasses.replace(C, scan_layers=scanned), **SIZES, tie_embeddings=False)
    )
    for scanned in (True, False)
}


def rates(objective, peft=None):
    _, shapes = abstract_variables(objective, peft)
    found = decay_by_layer(None, shapes["params"], DECAY, "adamw.layer_decay")
    flat = traverse_util.flatten_dict(found, sep="/")
    return {path: scale.rate for path, scale in flat.items()}


def expect(found, **wanted):
    for path, rate in wanted.items():
        assert found[path.replace("__", "/")] == rate, path


def test_layers_heads_and_tables_have_their_powers():
    layers = (DECAY**3, DECAY**2, DECAY)
    expect(
        rates(GPTS[True], Peft(methods=(LoRA(),))),
        stack__layers__attention__query=layers,
        stack__layers__mlp_norm__scale=layers,
        stack__layers__attention__query_lora__a=layers,
        stack__final_norm__scale=1,
        tokens__table=DECAY**4,
        inputs__positions__table=DECAY**4,
        language_head__kernel=1,
    )
    expect(
        rates(GPTS[False]),
        stack__layer_0__mlp__in=DECAY**3,
        stack__layer_2__mlp__in=DECAY,
        stack__final_norm__scale=1,
        tokens__table=DECAY**4,
    )
    bert = Bert(C, **SIZES, pooler="tanh", num_classes=2)
    expect(
        rates(MaskedLM(bert)),
        inputs__norm__scale=DECAY**4,
        pool__kernel=1,
        classifier__kernel=1,
        masked_head__transform__kernel=1,
    )
    short = dataclasses.replace(C, num_layers=1)
    expect(
        rates(Seq2SeqLM(Seq2Seq(C, short, **SIZES, positions="learned"))),
        tokens__table=DECAY**4,
        encoder_stack__layers__mlp__in=layers,
        decoder_stack__layers__cross_attention__key=(DECAY,),
    )
    vit = ViT(C, image_size=8, patch_size=4, num_classes=3)
    found = rates(Classification(vit))
    expect(found, classifier__kernel=1, stack__layers__mlp__in=layers)
    assert {r for p, r in found.items() if p.startswith("patches/")} == {DECAY**4}
    experts = dataclasses.replace(C, experts=Experts(4, dense_layers=1))
    expect(
        rates(CausalLM(GPT(experts, **SIZES))),
        stack__dense__layers__mlp__in=(DECAY**3,),
        stack__layers__mlp__in=(DECAY**2, DECAY),
    )
    shared = dataclasses.replace(C, share_layers=True)
    expect(
        rates(CausalLM(GPT(shared, **SIZES))),
        stack__shared_layer__mlp__in=DECAY,
        tokens__table=DECAY**2,
    )


@pytest.mark.parametrize("scanned", [True, False])
def test_updates_are_multiplied_and_no_more(scanned):
    axes, shapes = abstract_variables(GPTS[scanned])
    axes, shapes = axes["params"], shapes["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        return rng.normal(size=leaf.shape).astype(np.float32)

    params, gradients = jax.tree.map(draw, shapes), jax.tree.map(draw, shapes)
    optimizer = AdamW(schedule=Constant(learning_rate=0.1))
    before = jax.tree.map(lambda _: Scaling(rate=3.0), shapes)
    updates = []
    for scaling in (
        before,
        decay_by_layer(before, shapes, DECAY, "adamw.layer_decay"),
    ):
        tx = optimizer.build(axes, 10, scaling=scaling)
        updates.append(jax.jit(tx.update)(gradients, tx.init(params), params)[0])
    plain, decayed = (traverse_util.flatten_dict(u, sep="/") for u in updates)
    for path, rate in rates(GPTS[scanned]).items():
        factors = np.array(rate, np.float32)
        ones = (1,) * (plain[path].ndim - factors.ndim)
        factors = factors.reshape(*factors.shape, *ones)
        np.testing.assert_allclose(decayed[path], factors * plain[path], rtol=1e-6)


def test_a_model_without_layers_and_wrong_factors_are_refused():
    with pytest.raises(UserError, match=r"adamw\.layer_decay.*no layers"):
        decay_by_layer(
            None,
            {"dense": jax.ShapeDtypeStruct((2,), "float32")},
            0.9,
            "adamw.layer_decay",
        )
    with pytest.raises(UserError, match=r"adamw\.layer_decay = 1\.1"):
        AdamW(schedule=Constant(learning_rate=0.1), layer_decay=1.1)

"""FLOPs of steps that freeze, against the products that XLA compiles for them."""

import functools

import jax
import numpy as np
import pytest
from hlo_products import product_flops
from tiers import slow

from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.caption_decoder import CaptionDecoder
from fmjax.models.multimodal.coca import CoCa
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.contrastive_captioning import ContrastiveCaptioning
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.objectives.terms import total
from fmjax.optim.freezing import Freeze
from fmjax.optim.optimizers import AdamW
from fmjax.optim.parametrization import combine
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.reporting.step_flops import StepFlops
from fmjax.training.state import plan_state

B, T, V, SIZE = 4, 8, 32, 8
TEXTS = {"vocab_size": V, "max_length": T, "vocab_multiple": 16}
IDS = jax.ShapeDtypeStruct((B, T), np.int32)
WEIGHTS = jax.ShapeDtypeStruct((B, T), np.float32)


def block(scan):
    return TransformerConfig(
        num_layers=2, embed_dim=16, num_heads=2, dtype="float32", scan_layers=scan
    )


def gpt(scan):
    objective = CausalLM(GPT(block(scan), **TEXTS))
    return objective, {"tokens": IDS, "targets": IDS, "weights": WEIGHTS}


def seq2seq(scan):
    model = Seq2Seq(block(scan), block(scan), **TEXTS, positions="learned")
    return Seq2SeqLM(model), {
        "encoder_tokens": IDS,
        "decoder_positions": IDS,
        "targets": IDS,
        "weights": WEIGHTS,
    }


def captioning(scan):
    image = ViT(block(scan), SIZE, 4, pooling="none")
    text = CaptionDecoder(block(scan), block(scan), start_id=0, **TEXTS)
    return ContrastiveCaptioning(CoCa(image, text, embed_dim=8, caption_queries=4)), {
        "images": jax.ShapeDtypeStruct((B, SIZE, SIZE, 3), np.float32),
        "tokens": IDS,
        "padding_mask": jax.ShapeDtypeStruct((B, T), bool),
        "weights": jax.ShapeDtypeStruct((B,), np.float32),
    }


def setting(make, scan, *paths):
    """The objective, its plan with these paths frozen, and shapes of a batch."""
    objective, batch = make(scan)
    mesh = MeshConfig().build(jax.devices()[:1])
    plan = plan_state(
        objective,
        AdamW(schedule=Constant(learning_rate=1e-3)),
        mesh,
        MeshConfig().all_rules,
        train_steps=3,
        freeze=[Freeze(paths=paths)] if paths else [],
    )
    return objective, plan, batch


@functools.cache
def compiled_flops(make, scan, *paths):
    """Of the loss and its gradient by what is trained, as XLA compiles them."""
    objective, plan, batch = setting(make, scan, *paths)
    params = plan.shapes.params

    def step(trained, params, batch):
        def loss(trained):
            variables = {"params": combine(trained, params)}
            return total(objective.loss(variables, batch, None).terms)

        return jax.value_and_grad(loss)(trained)

    trained = plan.freezing.partition(params, 0)
    program = jax.jit(step).lower(trained, params, batch).compile()
    return product_flops(program.as_text())


@pytest.mark.parametrize("scan", [slow(False), True])
@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (gpt, ("stack/**", "inputs/**")),
        (gpt, ("tokens/**", "inputs/**", "stack/final_norm/*")),
        (gpt, ("tokens/**", "inputs/**", "stack/*/*norm*/*", "stack/layer_*/mlp/**")),
        (seq2seq, ("tokens/**", "encoder_stack/**", "encoder_inputs/**")),
        slow(captioning, ("image/**", "text/tokens/**", "text/language_head/**")),
    ],
)
def test_what_freezing_saves_is_what_xla_leaves_out(make, paths, scan):
    objective, plan, batch = setting(make, scan, *paths)
    compiled = compiled_flops(make, scan, *paths) / compiled_flops(make, scan)
    rows = {name: array.shape[1:] for name, array in batch.items()}
    formula = B * objective.train_flops_per_row(plan.shapes.params, rows)
    found = StepFlops(objective, plan, rows, B)(0, batch) / formula
    np.testing.assert_allclose(found, compiled, rtol=1e-2)
    assert found < 0.99

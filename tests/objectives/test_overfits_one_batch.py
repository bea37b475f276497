"""Each objective learns one batch by heart in 30 training steps."""

import numpy as np
import pytest
from on_meshes import build, rows_of
from tiers import slow
from tiny_objectives import OBJECTIVES

from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import batch_sharding, global_batch, on_mesh
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

STEPS = 30
# What is left of the first loss, at most, where it is not half. Patches, words and
# tokens that are hidden or replaced are others in each step, so that less is learned
# by heart. A masked autoencoder that reads nothing would keep 0.88, by the closed
# form of its best guess: the mean of each normalized patch over the images.
LEFT = {
    "masked_autoencoding": 0.65,
    "masked_vision_language": 0.6,
    "replaced_token_detection": 0.7,
}
# Contrast overshoots at the rate of the others.
SLOWER = ("image_text_contrast", "image_text_contrast_sigmoid", "nt_xent")


def losses(name):
    """The losses before the first update and before the last one."""
    objective, batch = OBJECTIVES[name]
    rate = 2e-3 if name in SLOWER else 8e-3
    optimizer = AdamW(schedule=Constant(learning_rate=rate), weight_decay=0.0)
    mesh, rules = build(None)
    plan = plan_state(objective, optimizer, mesh, rules, train_steps=STEPS)
    step = make_train_step(objective, plan, lambda _: rate, mesh, rules, seed=0)
    state, seen = plan.init(), []
    with on_mesh(mesh, rules):
        placed = global_batch(batch, batch_sharding(mesh, rules), rows_of(batch))
        for _ in range(STEPS):
            state, metrics = step(state, placed)
            seen.append(float(metrics["loss"]))
    return seen[0], seen[-1]


# Another loss of a model that another one trains; and losses of two terms, of which
# others learn one each: contrast and the next token, tokens that are hidden.
ALIKE = (
    "contrastive_captioning",
    "image_text_contrast_sigmoid",
    "replaced_token_detection",
    "text_classification_regression",
    "text_classification_sigmoid",
)


@pytest.mark.parametrize(
    "name", [slow(name) if name in ALIKE else name for name in OBJECTIVES]
)
def test_one_batch_is_learned_by_heart(name):
    before, after = losses(name)
    assert np.isfinite(before)
    assert after < LEFT.get(name, 0.5) * before

import jax
import pytest

from fmjax.optim import axes

HIDDEN = [
    ("embed", "heads", "kv"),
    ("embed", "kv_heads", "kv"),
    ("heads", "kv", "embed"),
    ("embed", "mlp"),
    ("mlp", "embed"),
]
TABLES = [
    ("vocab", "embed"),
    ("embed", "vocab"),
    ("position", "embed"),
    ("relative_position", "heads"),
    ("patch", "embed"),
]
VECTORS = [
    ("norm",),
    ("embed",),
    ("mlp",),
    ("vocab",),
    ("kv",),
    ("heads", "kv"),
    ("kv_heads", "kv"),
    ("heads", "norm"),
    (),
]


@pytest.mark.parametrize("stack", [(), ("layers",)])
@pytest.mark.parametrize("names", HIDDEN + TABLES + VECTORS)
def test_names_tell_the_kind_of_a_leaf(names, stack):
    assert axes.is_matrix(stack + names) is (names not in VECTORS)
    assert axes.is_hidden_matrix(stack + names) is (names in HIDDEN)


def test_heads_and_head_width_are_one_side():
    assert axes.sides(("embed", "heads", "kv")) == ((0,), (1, 2))
    assert axes.sides(("layers", "heads", "kv", "embed")) == ((1, 2), (3,))
    assert axes.sides(("layers", "kv_heads", "kv")) == ((1, 2),)
    assert axes.sides(("layers", "embed", "mlp")) == ((1,), (2,))


def test_decay_mask_spares_biases_and_norms():
    tree = {
        "query": {"kernel": ("layers", "embed", "heads", "kv")},
        "bias": ("layers", "heads", "kv"),
        "norm": {"scale": ("layers", "norm")},
        "tokens": ("vocab", "embed"),
    }
    mask = axes.decay_mask(tree)
    assert mask == {
        "query": {"kernel": True},
        "bias": False,
        "norm": {"scale": False},
        "tokens": True,
    }
    assert all(isinstance(leaf, bool) for leaf in jax.tree.leaves(mask))

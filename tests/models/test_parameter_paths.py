"""What patterns of parameter paths match, and what they say when they match nothing."""

import pytest

from fmjax.errors import UserError
from fmjax.models.parameter_paths import Pattern, Slot, slots

SHAPES = {
    "tokens/table": (8, 4),
    "stack/layers/attention/query": (2, 4, 4),
    "stack/final_norm/scale": (4,),
}
UNROLLED = {
    "tokens/table": (8, 4),
    "stack/layer_0/attention/query": (4, 4),
    "stack/layer_1/attention/query": (4, 4),
    "stack/final_norm/scale": (4,),
}


def found(text, shapes=SHAPES):
    return list(Pattern(text, "freeze.paths").find(slots(shapes), "the model"))


def test_scanned_layers_are_called_as_unrolled_ones_are():
    assert slots(SHAPES).keys() == slots(UNROLLED).keys()
    at = slots(SHAPES)["stack/layer_1/attention/query"]
    assert at == Slot("stack/layers/attention/query", 1)
    assert slots(UNROLLED)["tokens/table"] == Slot("tokens/table", None)


@pytest.mark.parametrize("shapes", [SHAPES, UNROLLED], ids=["scanned", "unrolled"])
@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("**", [0, 1, 2, 3]),
        ("stack/**", [1, 2, 3]),
        ("stack/layers/**", [1, 2]),
        ("stack/layer_*/attention/query", [1, 2]),
        ("stack/layer_1/**", [2]),
        ("*/table", [0]),
        ("**/query", [1, 2]),
        ("**/tokens/table", [0]),
        ("stack/*/scale", [3]),
        ("stack/**/scale", [3]),
        ("stack/final_norm/**/scale", [3]),
        ("tok*/t*", [0]),
    ],
)
def test_what_a_pattern_matches(text, want, shapes):
    assert sorted(found(text, shapes)) == sorted(list(UNROLLED)[i] for i in want)


@pytest.mark.parametrize(
    ("source", "target", "path", "want"),
    [
        ("stack/**", "encoder/**", "stack/layer_3/norm", "encoder/layer_3/norm"),
        ("**/query", "a/**/b/query", "x/y/query", "a/x/y/b/query"),
        ("**/query", "a/**/query", "query", "a/query"),
        ("stack/layer_*/*", "b/layers/*", "stack/layer_3/in", "b/layer_3/in"),
    ],
)
def test_what_wildcards_stand_for_goes_into_another_pattern(source, target, path, want):
    texts = Pattern(source, "x").match(path)
    assert Pattern(target, "x").fill(texts) == want


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("stak/**", "'stack/**'"),
        ("stack/layers/attention/kuery", "'stack/layer_*/attention/query'"),
        ("token/table", "'tokens/table'"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(text, nearest):
    with pytest.raises(
        UserError, match=r"freeze.paths: .*matches no parameter"
    ) as info:
        found(text)
    assert f"Did you mean {nearest}?" in str(info.value)
    assert "It has stack, tokens." in str(info.value)


@pytest.mark.parametrize("text", ["", "stack//query", "/stack/**", "stack/a**"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UserError, match="is no pattern"):
        Pattern(text, "freeze.paths")

"""A custom seqio task: sums such as "12+7=19"."""

import functools

import seqio
import tensorflow as tf


def sums(split, shuffle_files=False, seed=None):
    """Examples of a split: sums of two numbers below 50; every tenth is validation."""
    texts = [f"{a}+{b}={a + b}" for a in range(50) for b in range(50)]
    held_out = texts[::10]
    kept = held_out if split == "validation" else sorted({*texts} - {*held_out})
    return tf.data.Dataset.from_tensor_slices({"targets": kept})


vocabulary = seqio.ByteVocabulary(extra_ids=0)
seqio.TaskRegistry.add(
    "own_sums",
    source=seqio.FunctionDataSource(sums, splits=("train", "validation")),
    preprocessors=[
        functools.partial(seqio.preprocessors.tokenize, with_eos=False),
        seqio.preprocessors.append_eos,
    ],
    output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
)

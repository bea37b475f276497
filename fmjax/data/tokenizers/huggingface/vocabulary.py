"""A tokenizer as a seqio.Vocabulary: the same ids in Python and in TensorFlow."""

import functools

import numpy as np

from fmjax.data.seqio_import import import_seqio


@functools.cache
def vocabulary_class():
    """The class of seqio vocabularies, defined here because seqio loads slowly.

    An instance has the attribute `tokenizer`.
    """
    seqio = import_seqio()
    import tensorflow as tf

    class HuggingFaceVocabulary(seqio.Vocabulary):
        """A seqio.Vocabulary; TensorFlow calls back into Python to tokenize."""

        def __init__(self, tokenizer):
            super().__init__()
            self.tokenizer = tokenizer

        eos_id = property(lambda self: self.tokenizer.eos_id)
        bos_id = property(lambda self: self.tokenizer.bos_id)
        unk_id = property(lambda self: self.tokenizer.special_id("unk"))
        pad_id = property(lambda self: self.tokenizer.pad_id or 0)
        _base_vocab_size = property(lambda self: self.tokenizer.vocab_size)

        def _encode(self, s):
            return self.tokenizer.encode(s)

        def _decode(self, ids):
            return self.tokenizer.decode(ids)

        def _encode_tf(self, s):
            def encode(text) -> np.ndarray:
                # `text` is bytes in a graph and an array of bytes outside.
                text = np.asarray(text).item().decode("utf-8", errors="replace")
                return np.array(self.tokenizer.encode(text), np.int32)

            text = tf.convert_to_tensor(s, tf.string)
            return tf.ensure_shape(tf.numpy_function(encode, [text], tf.int32), [None])

        def _decode_tf(self, ids):
            def decode(ids: np.ndarray) -> np.ndarray:
                rows = ids.reshape(-1, ids.shape[-1])
                texts = [self.tokenizer.decode(row).encode() for row in rows]
                return np.array(texts, object).reshape(ids.shape[:-1])

            texts = tf.numpy_function(decode, [ids], tf.string)
            return tf.ensure_shape(texts, ids.shape[:-1])

        def __eq__(self, other):
            return (
                isinstance(other, HuggingFaceVocabulary)
                and self.tokenizer.digest == other.tokenizer.digest
            )

        __hash__ = None

    return HuggingFaceVocabulary

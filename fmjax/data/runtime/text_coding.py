"""Units of texts: documents, pairs, labelled texts and conversations."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fmjax.data.sources.division import TextExample
from fmjax.data.sources.examples import Skipped
from fmjax.data.tasks.documents import Tokenized, tokenized_examples
from fmjax.data.tokenizers.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextCoding:
    """Tokenizes texts; see `UnitCoding`.

    Its arrays are
      tokens: of all texts, uint16 or int32 [N].
      lengths: tokens of each text, int32 [texts]; of a pair, inputs before targets
        before hard negatives.
      sizes: bytes of each document, of a pair's targets, or of the first of two
        labelled texts, int64 [documents]; -1 if they are not known.
      labels: of all documents, int64 [labels]; only with labels.
      label_counts: number of labels of each document, int32 [documents]; only with
        labels.
      loss_mask: which tokens of conversations are trained, uint8 [N]; only of these.

    Attributes:
      longest: see `tokenized_examples`.
    """

    longest: int | None = None

    def encoded(
        self,
        examples: Iterable[TextExample],
        name: str,
        tokenizer: Tokenizer,
        skipped: Skipped,
    ) -> Iterator[Tokenized]:
        """Yields the tokenized documents; see `tokenized_examples`."""
        return tokenized_examples(examples, name, tokenizer, skipped, self.longest)

    def pack(
        self, examples: Sequence[Tokenized], tokenizer: Tokenizer
    ) -> dict[str, np.ndarray]:
        """The arrays that hold the documents."""
        texts = []
        for document in examples:
            if document.inputs is not None:
                texts.append(document.inputs)
            texts += [document.tokens, *document.negatives]
            if document.second is not None:
                texts.append(document.second)
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
        sizes = [-1 if d.size is None else d.size for d in examples]
        arrays = {
            "tokens": np.concatenate(texts).astype(dtype),
            "lengths": np.array([len(text) for text in texts], np.int32),
            "sizes": np.array(sizes, np.int64),
        }
        masks = [d.loss_mask for d in examples if d.loss_mask is not None]
        if masks:
            return arrays | {"loss_mask": np.concatenate(masks).astype(np.uint8)}
        labels = [d.labels for d in examples if d.labels is not None]
        if labels:
            counts = np.array([len(each) for each in labels], np.int32)
            arrays |= {"labels": np.concatenate(labels), "label_counts": counts}
        return arrays

    def unpack(self, arrays: dict[str, np.ndarray]) -> Iterator[Tokenized]:
        """Yields the documents."""
        ends = np.cumsum(arrays["lengths"])[:-1]
        texts = np.split(arrays["tokens"].astype(np.int32), ends)
        sizes = [None if size < 0 else size for size in arrays["sizes"].tolist()]
        if "loss_mask" in arrays:
            masks = np.split(arrays["loss_mask"].astype(bool), ends)
            for text, size, mask in zip(texts, sizes, masks, strict=True):
                yield Tokenized(text, size, loss_mask=mask)
            return
        step = len(texts) // len(sizes)
        groups = [texts[i : i + step] for i in range(0, len(texts), step)]
        if "labels" in arrays:
            own = np.cumsum(arrays["label_counts"])[:-1]
            labels = np.split(arrays["labels"], own)
            for (first, *second), size, each in zip(groups, sizes, labels, strict=True):
                second = second[0] if second else None
                yield Tokenized(first, size, second=second, labels=each)
            return
        for (first, *others), size in zip(groups, sizes, strict=True):
            if others:
                yield Tokenized(others[0], size, first, tuple(others[1:]))
            else:
                yield Tokenized(first, size)

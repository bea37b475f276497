"""The configurable `text_task`: documents or pairs of a text source, tokenized."""

import dataclasses
from pathlib import Path

from fmjax.configurable import configurable, runtime_field
from fmjax.data.folders import is_built
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.sources.stdlib import PythonStdlib
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.tfds import Tfds
from fmjax.data.tasks.member import Member
from fmjax.data.tasks.registration import check_name, registered, rekey
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.tokenizers import DESCRIPTOR, Tokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece

# Part of every cache's key: the names of the seqio preprocessors of a text task.
_PREPROCESSORS = ("rekey", "tokenize", "append_eos")


@configurable("text_task")
@dataclasses.dataclass(frozen=True)
class TextTask:
    """Documents, or pairs of texts, of a source, tokenized and followed by EOS.

    Attributes:
      source: source of the documents.
      tokenizer: tokenizer of the documents.
      name: name of the task in seqio's registry and in the cache.
      license: license of the data, as in its own documents, for the model card of an
        export, such as 'cc-by-4.0'.
      description: what the data is, for the model card.
    """

    source: TextFiles | RecordFiles | PairFiles | RecordPairs | PythonStdlib | Tfds
    tokenizer: SentencePiece | Characters | Bytes | SavedTokenizer
    name: str = "text"
    license: str | None = runtime_field(None)
    description: str | None = runtime_field(None)

    def __post_init__(self):
        check_name("text_task", self.name)

    def build_tokenizer(self, root: Path) -> Tokenizer:
        """Loads or trains the tokenizer; `root` is the cache's root."""
        return self.tokenizer.build(self.source, root)

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only load files."""
        folder = self.tokenizer.cached_in(self.source, root)
        return folder is None or is_built(folder, DESCRIPTOR)

    def has_inputs(self, root: Path) -> bool:
        """Whether examples are pairs."""
        del root
        return "inputs" in self.source.features()

    def members(self, root: Path) -> tuple[Member, ...]:
        """The task as a single member of rate 1."""
        tokenizer = self.build_tokenizer(root).digest
        keys = {
            split: {
                "source": self.source.fingerprint(split),
                "preprocessors": _PREPROCESSORS,
                "tokenizer": tokenizer,
            }
            for split in self.source.splits
        }
        if isinstance(self.source, PairFiles) and (excluded := self.source.excluded()):
            keys["train"]["excluded"] = excluded
        sizes = {split: self.source.size(split) for split in self.source.splits}
        return (Member(self.name, 1.0, keys, sizes, self),)

    def seqio(self, name: str, tokenizer: Tokenizer):
        """The seqio.Task, added to seqio's registry or updated there."""
        del name
        seqio = import_seqio()
        vocabulary = tokenizer.seqio_vocabulary()
        add_eos = tokenizer.eos_id is not None
        return registered(
            "text_task",
            self,
            tokenizer,
            preprocessors=[
                rekey(self.source.features()),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
            ],
            output_features={
                name: seqio.Feature(vocabulary, add_eos=add_eos)
                for name in ("inputs", "targets")
                if name in self.source.features()
            },
        )

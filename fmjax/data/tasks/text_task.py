"""The configurable `text_task`: documents or pairs of a text source, tokenized."""

import dataclasses
from pathlib import Path

from fmjax.configurable import configurable, runtime_field
from fmjax.data.folders import is_built
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.conversation_files import ConversationFiles
from fmjax.data.sources.labelled_files import LabelledFiles
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.data.sources.labelled_words import LabelledWords
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.sources.record_pairs import RecordPairs
from fmjax.data.sources.stdlib import PythonStdlib
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.tfds import Tfds
from fmjax.data.sources.token_division import PIECE
from fmjax.data.sources.token_files import TokenFiles
from fmjax.data.tasks.conversations import check_template
from fmjax.data.tasks.member import LabelKind, Member
from fmjax.data.tasks.registration import (
    check_name,
    label_feature,
    registered,
    rekey,
    tokenize,
)
from fmjax.data.tokenizers.chat_tokens import ChatEncoder
from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer
from fmjax.data.tokenizers.token_ids import TokenIds
from fmjax.data.tokenizers.tokenizers import DESCRIPTOR, Tokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError
from fmjax.say_once import say_once

_Labelled = LabelledRecords | LabelledFiles | LabelledWords
# Number of conversations that the chat template is checked on at every start.
_CHECKED = 8


@configurable("text_task")
@dataclasses.dataclass(frozen=True)
class TextTask:
    """Documents, pairs of texts, or labelled texts of a source, tokenized.

    Documents and texts of pairs are followed by EOS.

    Attributes:
      source: source of the documents.
      tokenizer: tokenizer of the documents.
      name: name of the task in seqio's registry and in the cache.
      license: license of the data, as in its own documents, for the model card of an
        export, such as 'cc-by-4.0'.
      description: what the data is, for the model card.
    """

    source: (
        TextFiles
        | RecordFiles
        | PairFiles
        | RecordPairs
        | LabelledRecords
        | LabelledFiles
        | LabelledWords
        | ConversationFiles
        | TokenFiles
        | PythonStdlib
        | Tfds
    )
    tokenizer: SentencePiece | Characters | Bytes | SavedTokenizer | TokenIds
    name: str = "text"
    license: str | None = runtime_field(None)
    description: str | None = runtime_field(None)

    def __post_init__(self):
        check_name("text_task", self.name)
        is_tokenized = isinstance(self.source, TokenFiles)
        if isinstance(self.tokenizer, TokenIds) and not is_tokenized:
            raise UserError(
                "text_task.tokenizer = @token_ids() is for ids, such as those of "
                f"@token_files(), not for the text of @{self.source.gin_name}(). Bind "
                "another tokenizer, such as @sentencepiece()."
            )
        own = self.tokenizer
        is_made = isinstance(own, SentencePiece) and own.file is None
        if is_tokenized and (is_made or isinstance(own, Characters)):
            raise UserError(
                f"text_task.tokenizer = @{own.gin_name}() would be made of text, but "
                "@token_files() has ids. Bind the one that the files were tokenized "
                "with: @saved_tokenizer(), @sentencepiece() with sentencepiece.file, "
                "@bytes(), or @token_ids() with its size alone."
            )

    def build_tokenizer(self, root: Path) -> Tokenizer:
        """Loads or trains the tokenizer; `root` is the cache's root."""
        tokenizer = self.tokenizer.build(self.source, root)
        if isinstance(self.source, TokenFiles):
            self._check_eos(tokenizer)
        if isinstance(self.source, ConversationFiles):
            if (own := self.source.own_template) is not None:
                tokenizer.chat_template = own  # saved with the run, for its prompts
            encoder = ChatEncoder(tokenizer)
            if self.is_chat():
                check_template(self.source.first(_CHECKED), encoder)
        return tokenizer

    def tokenizer_is_built(self, root: Path) -> bool:
        """Whether `build_tokenizer` would only load files."""
        folder = self.tokenizer.cached_in(self.source, root)
        return folder is None or is_built(folder, DESCRIPTOR)

    def has_inputs(self, root: Path) -> bool:
        """Whether examples are pairs."""
        del root
        return "inputs" in self.source.features()

    def is_chat(self) -> bool:
        """Whether examples are conversations of which only a part is trained."""
        source = self.source
        return isinstance(source, ConversationFiles) and source.loss == "assistant"

    def text_count(self, root: Path) -> int:
        """The number of texts of an example: 2 for pairs, and hard negatives."""
        negatives = getattr(self.source, "negatives", ())
        return 1 + self.has_inputs(root) + len(negatives)

    def label_kind(self) -> LabelKind | None:
        """The labels of examples; None if they have none."""
        source = self.source
        if not isinstance(source, _Labelled):
            return None
        if not isinstance(source, LabelledRecords):
            of_words = isinstance(source, LabelledWords)
            return LabelKind(source.class_names(), False, 1, of_words=of_words)
        texts = 1 if source.second_text is None else 2
        return LabelKind(source.class_names(), source.several, texts, source.numbers)

    def label_texts(self) -> tuple[str, ...]:
        """The texts that are targets of pairs, where these are labels; else none."""
        source = self.source
        return source.class_names() if isinstance(source, RecordPairs) else ()

    def members(self, root: Path) -> tuple[Member, ...]:
        """The task as a single member of rate 1."""
        tokenizer = self.build_tokenizer(root)
        keys = {
            split: {
                "source": self.source.fingerprint(split),
                "preprocessors": self._preprocessors,
                "tokenizer": tokenizer.digest,
            }
            for split in self.source.splits
        }
        if isinstance(self.source, ConversationFiles) and tokenizer.chat_template:
            # Of the run that the tokenizer is of; digests do not depend on it.
            for key in keys.values():
                key["chat_template"] = tokenizer.chat_template
        if isinstance(self.source, PairFiles) and (excluded := self.source.excluded()):
            keys["train"]["excluded"] = excluded
        sizes = {split: self.source.size(split) for split in self.source.splits}
        return (Member(self.name, 1.0, keys, sizes, self),)

    def seqio(self, name: str, tokenizer: Tokenizer):
        """The seqio.Task, added to seqio's registry or updated there."""
        del name
        seqio = import_seqio()
        fields = self.source.features()
        vocabulary = tokenizer.seqio_vocabulary()
        add_eos = "append_eos" in self._preprocessors and tokenizer.eos_id is not None
        texts = {
            name: seqio.Feature(vocabulary, add_eos=add_eos)
            for name in ("inputs", "targets", "second")
            if name in fields
        }
        output_features = dict(texts)
        if "labels" in fields:
            output_features["labels"] = label_feature(self.label_kind().numbers)
        made = {
            "rekey": rekey(fields),
            "tokenize": tokenize(texts),
            "append_eos": seqio.preprocessors.append_eos,
        }
        return registered(
            "text_task",
            self,
            tokenizer,
            preprocessors=[made[name] for name in self._preprocessors],
            output_features=output_features,
        )

    def _check_eos(self, tokenizer: Tokenizer) -> None:
        own, eos_id = self.source.eos_id, tokenizer.eos_id
        if own is not None and own != eos_id:
            raise UserError(
                f"token_files.eos_id = {own}, but that of text_task.tokenizer is "
                f"{eos_id}; expected the same."
            )
        if own is None and eos_id is not None:
            say_once(
                f"token_files.eos_id = None: flat streams are cut every {PIECE:,} "
                f"tokens, with EOS ({eos_id}) at each cut. If they have EOS between "
                f"documents, bind token_files.eos_id={eos_id}."
            )

    @property
    def _preprocessors(self) -> tuple[str, ...]:
        """Names of the seqio preprocessors, which are part of every cache's key."""
        if isinstance(self.source, _Labelled):
            return ("rekey", "tokenize")
        return ("rekey", "tokenize", "append_eos")

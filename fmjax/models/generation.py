"""Generation settings of a model: what ends a text, what may be written, defaults."""

import dataclasses
import math
from typing import Literal

from fmjax.configurable import configurable
from fmjax.errors import require

_IDS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens")
_IDS += ("begin_suppress_tokens",)


@configurable("generation")
@dataclasses.dataclass(frozen=True)
class Generation:
    """How a model generates text, unless the caller says otherwise.

    Fields have the names and meanings of transformers' GenerationConfig, from which an
    import fills them in. "Length" there counts the prompt of a decoder-only model, or
    the start token of an encoder-decoder, together with what is generated.

    Attributes:
      eos_token_id: ids each of which ends a text; () for the tokenizer's EOS.
      forced_bos_token_id: the id that follows a text of length 1: of an encoder-decoder
        the first that is generated.
      forced_eos_token_id: ids of which one is the last where max_tokens ends a text.
      suppress_tokens: ids that are never generated.
      begin_suppress_tokens: ids that are not generated first (after a forced BOS,
        second).
      bad_words_ids: sequences of ids that are never completed.
      min_length: no EOS below this length.
      min_new_tokens: no EOS before this many generated ids.
      max_length: the length at which a text is cut, where max_tokens is not given.
      max_new_tokens: the number of generated ids at which it is cut; goes before
        max_length.
      repetition_penalty: r divides positive logits of ids that the text has already,
        and multiplies negative ones (Keskar et al. 2019); 1 leaves them.
      no_repeat_ngram_size: no n-gram of this size occurs twice in a text; 0 allows all.
      temperature: default of sampling; 0 is greedy. None means 1.
      top_k: default of sampling; None for all tokens.
      top_p: default of sampling; None for all tokens.
      num_beams: default number of beams; 1 samples.
      length_penalty: alpha of beam search, whose scores are log-probabilities over
        length^alpha. (fmjax's own `length_penalty` argument is that of Wu et al. 2016.)
      early_stopping: when beam search ends: True as soon as num_beams texts ended;
        False where, at its present length, no beam is better than the worst of them;
        "never" where none can become better.
      renormalize_logits: whether beam search normalizes probabilities again after
        ids were excluded.
    """

    eos_token_id: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    max_length: int | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    renormalize_logits: bool = False

    def __post_init__(self):
        forced = self.forced_bos_token_id
        ids = [("forced_bos_token_id", () if forced is None else (forced,))]
        ids += [(name, getattr(self, name)) for name in _IDS]
        ids += [("bad_words_ids", word) for word in self.bad_words_ids]
        for name, value in ids:
            require(self, name, all(i >= 0 for i in value), "ids of 0 or more")
        for name in ("min_length", "min_new_tokens", "no_repeat_ngram_size"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("max_length", "max_new_tokens", "top_k", "num_beams"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")
        require(self, "bad_words_ids", all(self.bad_words_ids), "no empty word")
        positive = 0 < self.repetition_penalty < math.inf
        require(self, "repetition_penalty", positive, "a positive number")
        cold = self.temperature is None or 0 <= self.temperature < math.inf
        require(self, "temperature", cold, "0 or more, or None")
        share = self.top_p is None or 0 < self.top_p <= 1
        require(self, "top_p", share, "0 < top_p ≤ 1, or None")
        finite = math.isfinite(self.length_penalty)
        require(self, "length_penalty", finite, "a finite number")

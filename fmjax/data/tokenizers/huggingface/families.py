"""What transformers' tokenizer classes leave unsaid in the files they save."""

import dataclasses
from collections.abc import Mapping

from fmjax.errors import UserError, suggest

# The specials that have a name, in the order in which new ids are given out.
NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclasses.dataclass(frozen=True)
class Family:
    """A class of tokenizers.

    Attributes:
      vocabulary: the form of its vocabulary where there is no tokenizer.json:
        'wordpiece', 'byte_level', 'qwen2' and 'clip' (byte-level too), 'sentencepiece',
        'xlm_roberta' (its pieces moved), 'marian' (two models); None: it needs one.
      specials: the tokens behind the names of NAMES, unless the files say otherwise.
      single: what stands around one text, A, in names of NAMES.
      pair: what stands around two; a 1 behind a part is its token type.
      mask_takes_space: the mask swallows white space before it.
      legacy: SentencePiece's text behind a special begins as a word does.
      extra_ids: T5's sentinels, <extra_id_0> the last id of all.
      canonical: capitals, punctuation and all but single spaces go before a
        SentencePiece model cuts a text (SigLIP).
    """

    vocabulary: str | None
    specials: Mapping[str, str]
    single: str = "A"
    pair: str = "A B1"
    mask_takes_space: bool = False
    legacy: bool = True
    extra_ids: int = 0
    canonical: bool = False


_BERT = {
    "unk": "[UNK]",
    "sep": "[SEP]",
    "pad": "[PAD]",
    "cls": "[CLS]",
    "mask": "[MASK]",
}
_ENDS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_ROBERTA = _ENDS | {"sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
_END_OF_TEXT = {"unk": "<|endoftext|>", "eos": "<|endoftext|>"}
_CLS_SEP = {"single": "cls A sep", "pair": "cls A sep B1 sep1"}
_CLS_SEP_SEP = {"single": "cls A sep", "pair": "cls A sep sep B sep"}
_BERT_FAMILY = Family("wordpiece", _BERT, **_CLS_SEP)
_ROBERTA_FAMILY = Family("byte_level", _ROBERTA, **_CLS_SEP_SEP, mask_takes_space=True)

FAMILIES = {
    "BartTokenizer": _ROBERTA_FAMILY,
    "BertTokenizer": _BERT_FAMILY,
    "BloomTokenizer": Family(None, _ENDS | {"pad": "<pad>"}),
    "CLIPTokenizer": Family(
        "clip",
        _END_OF_TEXT | {"bos": "<|startoftext|>", "pad": "<|endoftext|>"},
        "bos A eos",
        "bos A eos eos B eos",
    ),
    "DebertaV2Tokenizer": Family(
        "sentencepiece", _BERT | {"bos": "[CLS]", "eos": "[SEP]"}, **_CLS_SEP
    ),
    "ElectraTokenizer": _BERT_FAMILY,
    "GPT2Tokenizer": Family("byte_level", _END_OF_TEXT | {"bos": "<|endoftext|>"}),
    "GemmaTokenizer": Family(
        "sentencepiece",
        {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
        "bos A",
        "bos A bos1 B1",
    ),
    "LlamaTokenizer": Family(
        "sentencepiece", _ENDS, "bos A", "bos A bos1 B1", legacy=False
    ),
    "MarianTokenizer": Family(
        "marian",
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        "A eos",
        "A B eos",
    ),
    "Qwen2Tokenizer": Family("qwen2", _END_OF_TEXT | {"pad": "<|endoftext|>"}),
    "RobertaTokenizer": _ROBERTA_FAMILY,
    "SiglipTokenizer": Family(
        "sentencepiece",
        {"eos": "</s>", "unk": "<unk>", "pad": "</s>"},
        "A eos",
        "A eos B eos",
        legacy=False,
        canonical=True,
    ),
    "T5Tokenizer": Family(
        "sentencepiece",
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        "A eos",
        "A eos B eos",
        extra_ids=100,
    ),
    "XLMRobertaTokenizer": Family(
        "xlm_roberta", _ROBERTA, **_CLS_SEP_SEP, mask_takes_space=True
    ),
}

# Any class whose files say everything.
UNNAMED = Family(None, {})

_BY_MODEL_TYPE = {
    "bart": "BartTokenizer",
    "bert": "BertTokenizer",
    "bloom": "BloomTokenizer",
    "clip": "CLIPTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "electra": "ElectraTokenizer",
    "gemma2": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "llama": "LlamaTokenizer",
    "marian": "MarianTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "opt": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "siglip": "SiglipTokenizer",
    "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


def class_name(named: object, model_type: object) -> str | None:
    """The class that the files name, or else the one that a model type goes with.

    Args:
      named: tokenizer_class of tokenizer_config.json, if any.
      model_type: that of config.json, if any.
    """
    if named is None:
        return _BY_MODEL_TYPE.get(model_type)
    return str(named).removesuffix("Fast")


def vocabulary_family(named: object, model_type: object) -> Family:
    """The family that tells how to read a vocabulary without tokenizer.json.

    Raises:
      UserError: for another class, or none.
    """
    name = class_name(named, model_type)
    family = FAMILIES.get(name, UNNAMED)
    if family.vocabulary is not None:
        return family
    readable = [key for key, value in FAMILIES.items() if value.vocabulary]
    raise UserError(
        f"tokenizer_config.json: tokenizer_class = {named!r} (config.json: model_type "
        f"= {model_type!r}) without a tokenizer.json is not supported; expected one "
        f"of {', '.join(readable)}.{suggest(str(name), readable)}"
    )

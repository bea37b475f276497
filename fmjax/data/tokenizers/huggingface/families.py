"""Tokenizer classes of transformers: the settings that their files do not contain."""

import dataclasses
from collections.abc import Mapping

from fmjax.data.tokenizers.huggingface.languages import M2M_100, MBART, MBART50
from fmjax.errors import UserError, suggest

# Names of special tokens, in the order in which they get new ids.
NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Classes whose SentencePiece models are read as transformers does, see `unigram`.
UNIGRAMS = ("albert", "camembert", "mbart", "mbart50", "pegasus")


@dataclasses.dataclass(frozen=True)
class Family:
    """A tokenizer class of transformers.

    Attributes:
      vocabulary: format of the vocabulary if there is no tokenizer.json: 'wordpiece',
        'byte_level', 'qwen2' and 'clip' (byte-level as well), 'sentencepiece',
        'xlm_roberta' (SentencePiece with shifted ids), 'm2m_100' (with ids of its own),
        'marian' (two models), or one of UNIGRAMS; None if a tokenizer.json is required.
      specials: default special tokens, by the names of NAMES.
      single: template of one text A, with names of NAMES for special tokens, and
        'lang' for that of the language.
      pair: template of two texts A and B; a digit after a part is its token type.
      mask_takes_space: whether the mask token removes white space before it.
      legacy: whether text after a special token gets SentencePiece's dummy prefix.
      extra_ids: number of T5's sentinels; <extra_id_0> has the highest id.
      canonical: whether text is converted to lower case without punctuation and
        repeated spaces before SentencePiece tokenizes it (SigLIP).
      languages: codes of languages by the value of language_codes, the default first;
        empty if the vocabulary has no tokens of languages.
      language: the default language of a text.
      language_token: format of the token of a language.
    """

    vocabulary: str | None
    specials: Mapping[str, str]
    single: str = "A"
    pair: str = "A B1"
    mask_takes_space: bool = False
    legacy: bool = True
    extra_ids: int = 0
    canonical: bool = False
    languages: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    language: str = ""
    language_token: str = "{}"


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

_FROM_XLM_R = Family(None, _ROBERTA, **_CLS_SEP_SEP, mask_takes_space=True)

FAMILIES = {
    "AlbertTokenizer": Family(
        "albert",
        _BERT | {"unk": "<unk>", "pad": "<pad>", "bos": "[CLS]", "eos": "[SEP]"},
        **_CLS_SEP,
    ),
    "BartTokenizer": _ROBERTA_FAMILY,
    "BertTokenizer": _BERT_FAMILY,
    "BloomTokenizer": Family(None, _ENDS | {"pad": "<pad>"}),
    "CLIPTokenizer": Family(
        "clip",
        _END_OF_TEXT | {"bos": "<|startoftext|>", "pad": "<|endoftext|>"},
        "bos A eos",
        "bos A eos eos B eos",
    ),
    "CamembertTokenizer": Family(
        "camembert", _ROBERTA, **_CLS_SEP_SEP, mask_takes_space=True
    ),
    "DebertaV2Tokenizer": Family(
        "sentencepiece", _BERT | {"bos": "[CLS]", "eos": "[SEP]"}, **_CLS_SEP
    ),
    "DistilBertTokenizer": _BERT_FAMILY,
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
    "M2M100Tokenizer": Family(
        "m2m_100",
        _ENDS | {"sep": "</s>", "pad": "<pad>"},
        "lang A eos",
        "lang A B eos",
        languages=M2M_100,
        language="en",
        language_token="__{}__",
    ),
    "MBart50Tokenizer": Family(
        "mbart50",
        _ROBERTA,
        "lang A eos",
        "lang A B eos",
        mask_takes_space=True,
        languages={"": MBART50},
        language="en_XX",
    ),
    "MBartTokenizer": Family(
        "mbart",
        _ROBERTA,
        "A eos lang",
        "A B eos lang",
        mask_takes_space=True,
        languages={"": MBART},
        language="en_XX",
    ),
    "MPNetTokenizer": Family(
        "wordpiece",
        _ROBERTA | {"unk": "[UNK]"},
        **_CLS_SEP_SEP,
        mask_takes_space=True,
    ),
    "MarianTokenizer": Family(
        "marian",
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        "A eos",
        "A B eos",
    ),
    "NllbTokenizer": _FROM_XLM_R,
    "PegasusTokenizer": Family(
        "pegasus",
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
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

# Any other class; its files must define all settings.
UNNAMED = Family(None, {})

_BY_MODEL_TYPE = {
    "albert": "AlbertTokenizer",
    "bart": "BartTokenizer",
    "bert": "BertTokenizer",
    "bloom": "BloomTokenizer",
    "camembert": "CamembertTokenizer",
    "clip": "CLIPTokenizer",
    "clip_text_model": "CLIPTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "gemma2": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "llama": "LlamaTokenizer",
    "m2m_100": "M2M100Tokenizer",
    "marian": "MarianTokenizer",
    "mbart": "MBartTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "mpnet": "MPNetTokenizer",
    "mt5": "T5Tokenizer",
    "opt": "GPT2Tokenizer",
    "pegasus": "PegasusTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "siglip": "SiglipTokenizer",
    "t5": "T5Tokenizer",
    "umt5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


def class_name(named: object, model_type: object) -> str | None:
    """The tokenizer class of the files, or the default one of the model type.

    Args:
      named: tokenizer_class of tokenizer_config.json; None if missing.
      model_type: model_type of config.json; None if missing.
    """
    if named is None:
        return _BY_MODEL_TYPE.get(model_type)
    return str(named).removesuffix("Fast")


def vocabulary_family(named: object, model_type: object) -> Family:
    """The family with which a vocabulary without tokenizer.json is read.

    Args as in `class_name`.

    Raises:
      UserError: the class is missing or not supported.
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

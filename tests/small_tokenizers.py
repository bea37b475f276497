"""Small tokenizers trained on ten languages, code and emoji, as transformers has them.

Each function writes the older files of one kind (vocab.txt, vocab.json and merges.txt,
SentencePiece models) into a folder and returns it; `definition` a tokenizer.json.
"""

import io
import json
import string
from pathlib import Path

import sentencepiece as spm
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the cat sat on the mat.",
    "Der schnelle braune Fuchs springt über den faulen Hund; Straßen sind naß.",
    "Le renard brun saute par-dessus le chien paresseux à l'été, où ça?",
    "El zorro marrón rápido salta sobre el perro perezoso: ¿mañana?",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好。",
    "素早い茶色の狐がのろまな犬を飛び越える。カタカナとひらがな。",
    "الثعلب البني السريع يقفز فوق الكلب الكسول.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "def f(x: int) -> int:\treturn x ** 2 + 1  # a comment",
    'for (int i = 0; i < 10; ++i) { printf("%d\\n", i); }',
    "smile 😀 family 👨‍👩‍👧 flags 🇩🇪 thumbs 👍🏽 done 🦆",
]

# White space, characters that Unicode writes in several ways, control characters,
# scripts and signs that no corpus had, words too long for WordPiece.
TEXTS = [
    *CORPUS,
    "",
    "a",
    "  two leading",
    "trailing  ",
    "two  spaces   three",
    "new\nlines\n\nhere\n",
    "tab\tand\r\nreturn",
    "ﬁne ＦＵＬＬ width ① ½ ﾊﾝｶｸ",
    "cafe\u0301 Å A\u030a",
    "zero\u200bwidth\u00a0nbsp\u3000wide\ufeffmark",
    "control\x00\x07\x1b characters",
    "UPPER lower MiXeD don't we'll I'm",
    "1234567 3.14 1,000",
    "unknown ꙮ 𝔘𝔫𝔦 𐍈 ☃",
    "x" * 150,
    "नमस्ते दुनिया مرحبا بالعالم 你好，世界！",
]
# Specials inside a text.
MARKED = [
    "a</s>b </s> c",
    "<s>x <pad> y<unk>z",
    "[CLS] a [MASK] b[SEP]c",
    "x <mask> y<mask>z",
    "<|endoftext|> a<|endoftext|>b",
    "<extra_id_0> a <extra_id_1>b <extra_id_99>",
    "<bos>a<eos>",
    "A CAT <|startoftext|>a dog<|endoftext|>",
    ">>fra<< the cat",
    "de_DE a en_XX  b __de__ c__en__d",
    "<mask_1> a <mask_2>b <unk_7> c <s>NOTUSED ``d''",
]


def wordpiece(folder: Path, lowercase: bool = True) -> Path:
    """BERT's vocab.txt."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials)
    tokenizer.train_from_iterator(CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    return folder


def mpnet(folder: Path) -> Path:
    """MPNet's vocab.txt, BERT's with special tokens of its own."""
    file = wordpiece(folder) / "vocab.txt"
    specials = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]"]
    rest = file.read_text(encoding="utf-8").splitlines()[5:]
    file.write_text("\n".join([*specials, *rest, "<mask>"]) + "\n", encoding="utf-8")
    return folder


def byte_level(folder: Path, specials: tuple[str, ...]) -> Path:
    """GPT-2's vocab.json and merges.txt."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    return folder


def clip(folder: Path) -> Path:
    """CLIP's vocab.json and merges.txt, whose words end in </w>."""
    end = "</w>"
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=end))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix=end
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Every byte ends a word too, and specials come last.
    saved = json.loads(tokenizer.to_str())["model"]
    pieces = [*saved["vocab"], *(f"{byte}{end}" for byte in alphabet)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in saved["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def sentencepiece(folder: Path, name: str, lines=CORPUS, **settings) -> Path:
    """A SentencePiece model under a name."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_writer=model,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **settings,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model.getvalue())
    return folder


def t5(folder: Path) -> Path:
    """T5's spiece.model."""
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    return sentencepiece(
        folder, "spiece.model", vocab_size=430, character_coverage=0.99, **ids
    )


def siglip(folder: Path) -> Path:
    """SigLIP's spiece.model."""
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    lines = [
        line.lower().translate(str.maketrans("", "", string.punctuation))
        for line in CORPUS
    ]
    return sentencepiece(
        folder, "spiece.model", lines, vocab_size=400, character_coverage=0.99, **ids
    )


def llama(folder: Path) -> Path:
    """Llama 2's tokenizer.model: bytes for what is rare, nothing normalized."""
    return sentencepiece(
        folder,
        "tokenizer.model",
        vocab_size=620,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
    )


def gemma(folder: Path) -> Path:
    """Gemma's tokenizer.model: as Llama's, with no space put in front."""
    return sentencepiece(
        folder,
        "tokenizer.model",
        vocab_size=620,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
        **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
        user_defined_symbols=["<start_of_turn>"],
    )


def deberta(folder: Path) -> Path:
    """DeBERTa-v2's spm.model, which lacks the mask."""
    return sentencepiece(
        folder,
        "spm.model",
        vocab_size=430,
        character_coverage=0.99,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": "[PAD]", "bos_piece": "[CLS]"},
        **{"eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    )


def xlm_roberta(folder: Path) -> Path:
    """XLM-R's sentencepiece.bpe.model, whose ids its tokenizer moves."""
    return sentencepiece(
        folder, "sentencepiece.bpe.model", vocab_size=430, character_coverage=0.99
    )


def albert(folder: Path) -> Path:
    """ALBERT's spiece.model."""
    return sentencepiece(
        folder,
        "spiece.model",
        vocab_size=430,
        character_coverage=0.99,
        control_symbols="[CLS],[SEP],[MASK]",
        **{"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1},
    )


def m2m_100(folder: Path) -> Path:
    """M2M-100's model, and the ids of its pieces, in an order of their own."""
    model = xlm_roberta(folder) / "sentencepiece.bpe.model"
    sp = spm.SentencePieceProcessor(str(model))
    pieces = [sp.id_to_piece(i) for i in range(3, sp.get_piece_size())]
    # Some go missing, as of languages that a dictionary is without.
    kept = [piece for piece in sorted(pieces, reverse=True) if piece not in "xyz"]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *kept]
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    return folder


def marian(folder: Path) -> Path:
    """Marian's two models, and the one vocabulary of both, in an order of its own."""
    ids = {"eos_id": 0, "unk_id": 1, "bos_id": -1, "pad_id": -1}
    sentencepiece(folder, "source.spm", CORPUS[:5], vocab_size=150, **ids)
    sentencepiece(folder, "target.spm", CORPUS[1:8], vocab_size=170, **ids)
    pieces = set()
    for name in ("source.spm", "target.spm"):
        sp = spm.SentencePieceProcessor(str(folder / name))
        pieces |= {sp.id_to_piece(i) for i in range(2, sp.get_piece_size())}
    # Reversed by spelling, so that no id is a model's own; and some pieces go missing.
    kept = [piece for piece in sorted(pieces, reverse=True) if piece not in "xyz"]
    vocabulary = ["</s>", "<unk>", *kept, ">>fra<<", "<pad>"]
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    return folder


def definition(folder: Path, kind: str, lines=CORPUS) -> Path:
    """A tokenizer.json of BERT's kind ('wordpiece'), RoBERTa's, T5's or Llama 2's."""
    if kind == "byte_fallback":
        tokenizer = _of_llama(llama(folder / "llama") / "tokenizer.model")
    else:
        model, pre_tokenizer, decoder, trainer = {
            "wordpiece": (
                models.WordPiece(unk_token="[UNK]"),
                pre_tokenizers.BertPreTokenizer(),
                decoders.WordPiece(),
                trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"]),
            ),
            "byte_level": (
                models.BPE(),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                decoders.ByteLevel(),
                trainers.BpeTrainer(
                    vocab_size=420,
                    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                ),
            ),
            "metaspace": (
                models.Unigram(),
                pre_tokenizers.Sequence(
                    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
                ),
                decoders.Metaspace(),
                trainers.UnigramTrainer(vocab_size=430, unk_token="<unk>"),
            ),
        }[kind]
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
        tokenizer.train_from_iterator(lines, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _of_llama(model: Path) -> tokenizers.Tokenizer:
    """The pieces of a SentencePiece model, its bytes among them."""
    sp = spm.SentencePieceProcessor(str(model))
    pieces = [(sp.id_to_piece(i), sp.get_score(i)) for i in range(len(sp))]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram(pieces, unk_id=sp.unk_id(), byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer

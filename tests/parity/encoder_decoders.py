"""Small models of each family of encoder-decoders; names with a comma are variants."""

from parity.case import Case
from parity.decoders import LENGTH, VOCAB

T5 = dict(
    vocab_size=VOCAB,
    d_model=30,
    d_kv=8,
    d_ff=44,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=5,
    # Distances of the text go beyond the buckets.
    relative_attention_num_buckets=8,
    relative_attention_max_distance=14,
)
BART = dict(
    vocab_size=VOCAB,
    d_model=30,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=5,
    # Not as many as layers.
    decoder_attention_heads=6,
    encoder_ffn_dim=44,
    decoder_ffn_dim=42,
    max_position_embeddings=LENGTH,
)
MARIAN = {**BART, "pad_token_id": VOCAB - 1, "decoder_start_token_id": VOCAB - 1}
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
ENCODER_DECODERS = {
    "t5": Case("T5ForConditionalGeneration", T5, heads="texts answers"),
    "t5, gated": Case("T5ForConditionalGeneration", GATED),
    "t5, gated silu": Case(
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-silu"},
    ),
    "bart": Case("BartForConditionalGeneration", BART, heads="texts answers"),
    "bart, scaled": Case(
        "BartForConditionalGeneration",
        {**BART, "scale_embedding": True, "activation_function": "relu"},
    ),
    "bart, bare": Case("BartModel", BART),
    "t5, bare": Case("T5Model", GATED),
    "mt5": Case("MT5ForConditionalGeneration", T5, heads="texts answers", alike=True),
    "mt5, bare": Case("MT5Model", T5),
    "mbart": Case(
        "MBartForConditionalGeneration", BART, heads="texts answers", alike=True
    ),
    "mbart, bare": Case("MBartModel", {**BART, "scale_embedding": True}),
    "pegasus": Case(
        "PegasusForConditionalGeneration", {**BART, "scale_embedding": True}, alike=True
    ),
    "pegasus, bare": Case("PegasusModel", BART),
    "m2m_100": Case("M2M100ForConditionalGeneration", BART),
    "m2m_100, bare, of odd width": Case(
        "M2M100Model",
        {**BART, "d_model": 45, "decoder_attention_heads": 3, "encoder_layerdrop": 0.0},
    ),
    "umt5": Case("UMT5ForConditionalGeneration", T5, heads="texts answers"),
    "umt5, gated, bare": Case("UMT5Model", GATED),
    "marian": Case("MarianMTModel", {**MARIAN, "scale_embedding": True}),
    "marian, swish": Case("MarianMTModel", {**MARIAN, "activation_function": "swish"}),
}

"""Small models of each family of encoders of texts; names with a comma are variants."""

from parity.case import Case
from parity.decoders import ALL, LENGTH, VOCAB
from parity.encoder_decoders import T5

BERT = dict(
    vocab_size=VOCAB,
    hidden_size=30,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=44,
    max_position_embeddings=LENGTH,
)
# Buckets and distances that the text goes beyond.
DEBERTA = {
    **BERT,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
    "max_relative_positions": 20,
    "layer_norm_eps": 1e-5,
}
MODERNBERT = {
    **BERT,
    "num_hidden_layers": 4,
    "hidden_size": 40,
    # Distances of the text go beyond the window.
    "local_attention": 9,
    "pad_token_id": 0,
}
ROBERTA = {**BERT, "max_position_embeddings": LENGTH + 2, "pad_token_id": 1}
ELECTRA = {**BERT, "embedding_size": 14}
DISTILBERT = dict(
    vocab_size=VOCAB,
    dim=30,
    n_layers=3,
    n_heads=5,
    hidden_dim=44,
    max_position_embeddings=LENGTH,
)
CLASSES = {"num_labels": 7}
ENCODERS = {
    "bert": Case("BertForMaskedLM", BERT, heads=ALL),
    "bert, pairs": Case("BertForPreTraining", {**BERT, "hidden_act": "gelu_new"}),
    "bert, pairs alone": Case("BertForNextSentencePrediction", BERT),
    "bert, bare": Case("BertModel", {**BERT, "type_vocab_size": 3}),
    "bert, classes": Case("BertForSequenceClassification", {**BERT, **CLASSES}),
    "roberta": Case("RobertaForMaskedLM", ROBERTA, heads=ALL),
    "roberta, other padding": Case(
        "RobertaForMaskedLM",
        {**ROBERTA, "pad_token_id": 4, "max_position_embeddings": LENGTH + 5},
    ),
    "roberta, classes": Case(
        "RobertaForSequenceClassification", {**ROBERTA, **CLASSES}
    ),
    "roberta, bare": Case("RobertaModel", ROBERTA),
    "xlm-roberta": Case("XLMRobertaForMaskedLM", ROBERTA, heads=ALL, alike=True),
    "xlm-roberta, classes": Case(
        "XLMRobertaForSequenceClassification",
        {**ROBERTA, **CLASSES},
    ),
    "camembert": Case("CamembertForMaskedLM", ROBERTA, heads=ALL, alike=True),
    "camembert, bare": Case("CamembertModel", ROBERTA),
    "distilbert": Case("DistilBertForMaskedLM", DISTILBERT, heads=ALL, alike=True),
    "distilbert, classes": Case(
        "DistilBertForSequenceClassification",
        {**DISTILBERT, **CLASSES, "activation": "relu"},
    ),
    "distilbert, bare": Case("DistilBertModel", DISTILBERT),
    "mpnet": Case("MPNetForMaskedLM", ROBERTA, heads=ALL),
    "mpnet, classes": Case("MPNetForSequenceClassification", {**ROBERTA, **CLASSES}),
    "mpnet, bare": Case("MPNetModel", ROBERTA),
    "albert": Case("AlbertForMaskedLM", {**ELECTRA, "hidden_act": "relu"}, heads=ALL),
    "albert, pairs": Case("AlbertForPreTraining", ELECTRA),
    "albert, classes": Case("AlbertForSequenceClassification", {**ELECTRA, **CLASSES}),
    "albert, bare": Case("AlbertModel", ELECTRA),
    "modernbert": Case("ModernBertForMaskedLM", MODERNBERT, heads=ALL),
    "modernbert, classes": Case(
        "ModernBertForSequenceClassification",
        {**MODERNBERT, **CLASSES, "classifier_pooling": "mean"},
    ),
    "modernbert, classes, first token": Case(
        "ModernBertForSequenceClassification",
        {**MODERNBERT, **CLASSES, "num_hidden_layers": 2},
    ),
    "modernbert, bare": Case(
        "ModernBertModel",
        {**MODERNBERT, "layer_types": ["full_attention", "sliding_attention"] * 2},
    ),
    "t5, encoder": Case("T5EncoderModel", T5, heads="tokens"),
    "t5, encoder, gated": Case(
        "T5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}
    ),
    "mt5, encoder": Case("MT5EncoderModel", T5, heads="tokens"),
    "umt5, encoder": Case("UMT5EncoderModel", T5, heads="tokens"),
    "electra": Case("ElectraForPreTraining", ELECTRA, heads=ALL),
    "electra, one width": Case(
        "ElectraForPreTraining", {**ELECTRA, "embedding_size": 30}
    ),
    "electra, generator": Case("ElectraForMaskedLM", ELECTRA),
    "electra, classes": Case(
        "ElectraForSequenceClassification", {**ELECTRA, **CLASSES}
    ),
    "electra, bare": Case("ElectraModel", ELECTRA),
    "deberta": Case(
        "DebertaV2ForMaskedLM", {**DEBERTA, "position_biased_input": False}, heads=ALL
    ),
    "deberta, positions, types": Case(
        "DebertaV2ForMaskedLM",
        {**DEBERTA, "type_vocab_size": 2, "position_buckets": 16},
    ),
    "deberta, no buckets": Case(
        "DebertaV2ForMaskedLM",
        {**DEBERTA, "position_buckets": -1, "max_relative_positions": 12},
    ),
    "deberta, other names of the head": Case(
        "DebertaV2ForMaskedLM",
        {**DEBERTA, "legacy": False},
    ),
    "deberta, classes": Case(
        "DebertaV2ForSequenceClassification", {**DEBERTA, **CLASSES}
    ),
    "deberta, bare": Case("DebertaV2Model", DEBERTA),
}

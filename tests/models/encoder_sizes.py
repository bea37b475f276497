"""Parameters of encoders and encoder-decoders at their papers' sizes."""

from models.test_vision_sizes import of_transformers


def roberta(kind, layers, width, heads, vocabulary, **more):
    return of_transformers(
        f"{kind}ForMaskedLM",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=vocabulary,
        max_position_embeddings=514,
        **more,
    )


def albert(width, heads):
    return of_transformers(
        "AlbertForMaskedLM",
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )


def modernbert(layers, width, heads, mlp):
    """With a norm of the first layer, which transformers has not."""
    there = of_transformers(
        "ModernBertForMaskedLM",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=mlp,
    )
    return there + width


def mt5(layers, width, mlp, heads, kind="MT5", vocabulary=250112):
    """Version 5 of transformers ties the head, which published files do not."""
    tied = of_transformers(
        f"{kind}ForConditionalGeneration",
        num_layers=layers,
        d_model=width,
        d_ff=mlp,
        num_heads=heads,
        vocab_size=vocabulary,
    )
    return tied + vocabulary * width


def bart(kind, layers, mlp, vocabulary):
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", layers), ("ffn_dim", mlp))
    }
    name = f"{kind}ForConditionalGeneration"
    return of_transformers(name, **sizes, vocab_size=vocabulary)


ENCODERS = {
    "xlm_roberta_base": lambda: roberta(
        "XLMRoberta", 12, 768, 12, 250002, type_vocab_size=1
    ),
    "xlm_roberta_large": lambda: roberta(
        "XLMRoberta", 24, 1024, 16, 250002, type_vocab_size=1
    ),
    "camembert_base": lambda: roberta(
        "Camembert", 12, 768, 12, 32005, type_vocab_size=1
    ),
    "distilbert_base": lambda: of_transformers("DistilBertForMaskedLM"),
    "albert_base": lambda: albert(768, 12),
    "albert_xxlarge": lambda: albert(4096, 64),
    "mpnet_base": lambda: roberta("MPNet", 12, 768, 12, 30527),
    "modernbert_base": lambda: modernbert(22, 768, 12, 1152),
    "modernbert_large": lambda: modernbert(28, 1024, 16, 2624),
    "mt5_small": lambda: mt5(8, 512, 1024, 6),
    "mt5_base": lambda: mt5(12, 768, 2048, 12),
    "mt5_xxl": lambda: mt5(24, 4096, 10240, 64),
    "umt5_base": lambda: mt5(12, 768, 2048, 12, "UMT5", 256384),
    "mbart_large": lambda: bart("MBart", 12, 4096, 250027),
    "pegasus_large": lambda: bart("Pegasus", 16, 4096, 96103),
    "m2m_100_418m": lambda: bart("M2M100", 12, 4096, 128112),
    "m2m_100_1_2b": lambda: bart("M2M100", 24, 8192, 128112),
}

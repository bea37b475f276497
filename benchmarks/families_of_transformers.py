"""Language families of `transformers`: models by size, batches, and PyTorch losses.

Heads are applied to masked tokens only, as in the papers' own code and in fmjax. No
model has dropout.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fmjax.interop.containers.folder import read_folder
from fmjax.interop.saved_model import read_model
from fmjax.interop.tensor_files import TensorFiles
from fmjax.objectives.replaced_token_detection import ReplacedTokenDetection

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a model and its batch.

    Attributes:
      layers: blocks; an encoder-decoder has half of them on each side.
      width: of the residual stream.
      heads: attention heads.
      vocab: entries of the vocabulary.
      batch: rows.
      length: tokens of a row; targets of an encoder-decoder have a quarter of that, and
        images have about as many patches.
    """

    layers: int
    width: int
    heads: int
    vocab: int
    batch: int
    length: int

    @property
    def masked(self) -> int:
        """Tokens of a row that are masked."""
        return round(0.15 * self.length)

    @property
    def gated_mlp(self) -> int:
        """Hidden width of a gated layer with as many weights as 4 · width ungated."""
        return math.ceil(8 * self.width / 3 / 32) * 32


ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def saved_and_read(model: torch.nn.Module) -> tuple[Any, dict]:
    """fmjax's objective and parameters, loaded from the files that the model saves."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        source = Path(folder)
        saved = read_model(source, TensorFiles(source, read_folder(source)))
    return saved.objective, saved.params


@dataclasses.dataclass(frozen=True)
class Family:
    """A family: makes both models of a size, and PyTorch's loss.

    Attributes:
      make: size → the model of `transformers`.
      batch: (size, random generator) → arrays that both models read.
      loss: (model, **batch) → PyTorch's loss.
      read: model → fmjax's objective and parameters with the same weights.
      tolerance: relative tolerance of the first loss.
      unit: what throughput counts, "tokens", "images" or "pairs".
    """

    make: Callable[[Size], torch.nn.Module]
    batch: Callable[[Size, np.random.Generator], Arrays]
    loss: Callable[..., torch.Tensor]
    read: Callable[[torch.nn.Module], tuple[Any, dict]] = saved_and_read
    # Wider on GPUs, where the models compute in bfloat16, which has 8 significant bits.
    tolerance: float = 1e-2 if torch.cuda.is_available() else 1e-4
    unit: str = "tokens"

    def read_by_a_step(self, batch: Arrays) -> int:
        """Number of tokens, images or pairs of a batch."""
        if self.unit != "tokens":
            return len(next(iter(batch.values())))
        if "encoder_tokens" in batch:
            return batch["encoder_tokens"].size + batch["targets"].size
        return batch["tokens"].size

    def ours(self, model: torch.nn.Module, size: Size) -> tuple[Any, dict]:
        """fmjax's objective and parameters, with the same weights."""
        objective, params = self.read(model)
        if hasattr(objective, "max_predictions"):
            objective = dataclasses.replace(objective, max_predictions=size.masked)
        return objective, params


def causal_batch(size: Size, rng: np.random.Generator) -> Arrays:
    ids = rng.integers(1, size.vocab, (size.batch, size.length + 1), dtype=np.int32)
    weights = np.ones((size.batch, size.length), np.float32)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def causal_loss(model, tokens, targets, weights):
    logits = model(tokens, use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def masked_batch(size: Size, rng: np.random.Generator) -> Arrays:
    shape = (size.batch, size.length)
    targets = rng.integers(1, size.vocab, shape, dtype=np.int32)
    order = rng.permuted(np.broadcast_to(np.arange(size.length), shape), axis=1)
    masked = order < size.masked
    return {
        "tokens": np.where(masked, 0, targets),
        "targets": targets,
        "weights": masked.astype(np.float32),
    }


def detection_batch(size: Size, rng: np.random.Generator) -> Arrays:
    batch = masked_batch(size, rng)
    return {**batch, "segment_ids": np.ones_like(batch["tokens"])}


def predict_masked(body, head, tokens, targets, weights):
    """Hidden vectors, logits and loss of a PyTorch model at the masked positions."""
    # Every row has the same number, so that shapes do not depend on values.
    masked = round(0.15 * tokens.shape[1])
    places = weights.topk(masked, dim=1).indices.sort(1).values
    hidden = body(tokens).last_hidden_state
    picked = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    logits = head(picked).float()
    loss = cross_entropy(logits.flatten(0, 1), targets.gather(1, places).flatten())
    return places, logits, loss


def masked_loss(model, tokens, targets, weights):
    body = getattr(model, model.base_model_prefix)
    head = model.cls if hasattr(model, "cls") else model.lm_head
    return predict_masked(body, head, tokens, targets, weights)[2]


def detection_loss(models, tokens, targets, weights, segment_ids):
    generator, discriminator = models

    def head(hidden):
        return generator.generator_lm_head(generator.generator_predictions(hidden))

    places, logits, loss = predict_masked(
        generator.electra, head, tokens, targets, weights
    )
    gumbel = -torch.empty_like(logits).exponential_().log()
    drawn = (logits.detach() + gumbel).argmax(-1)
    corrupted = targets.scatter(1, places, drawn)
    replaced = (corrupted != targets).float()
    scores = discriminator(corrupted).logits.float()
    return loss + 50 * binary_cross_entropy_with_logits(scores, replaced)


def pair_batch(size: Size, rng: np.random.Generator) -> Arrays:
    source, target = (size.batch, size.length), (size.batch, size.length // 4)
    return {
        "encoder_tokens": rng.integers(1, size.vocab, source, dtype=np.int32),
        "targets": rng.integers(1, size.vocab, target, dtype=np.int32),
        "weights": np.ones(target, np.float32),
        "decoder_positions": np.broadcast_to(
            np.arange(target[1], dtype=np.int32), target
        ),
    }


def pair_loss(model, encoder_tokens, targets, weights, decoder_positions):
    start = torch.full_like(targets[:, :1], model.config.decoder_start_token_id)
    decoder_tokens = torch.cat([start, targets[:, :-1]], 1)
    logits = model(
        input_ids=encoder_tokens, decoder_input_ids=decoder_tokens, use_cache=False
    ).logits
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def gpt2(size: Size) -> torch.nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=size.vocab,
            n_positions=size.length,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **ENDS,
        )
    )


def opt(size: Size) -> torch.nn.Module:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=size.vocab,
            max_position_embeddings=size.length,
            hidden_size=size.width,
            word_embed_proj_dim=size.width,
            ffn_dim=4 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            dropout=0.0,
            **ENDS,
        )
    )


def bloom(size: Size) -> torch.nn.Module:
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(
            vocab_size=size.vocab,
            hidden_size=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            **ENDS,
        )
    )


def of_size(options: dict[str, Any], size: Size) -> dict[str, Any]:
    """Options of a configuration, with functions of the size evaluated."""
    return {name: f(size) if callable(f) else f for name, f in options.items()}


def head_dim(size: Size) -> int:
    return size.width // size.heads


def llama(kind: str, mlp: float = 1.0, **options) -> Callable:
    """size → a Llama-like model; `mlp` scales the hidden width of Llama's MLP."""

    def make(size: Size) -> torch.nn.Module:
        model = getattr(transformers, f"{kind}ForCausalLM")
        config = model.config_class(
            vocab_size=size.vocab,
            max_position_embeddings=size.length,
            hidden_size=size.width,
            intermediate_size=round(mlp * size.gated_mlp),
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            tie_word_embeddings=False,
            **ENDS,
            **of_size(options, size),
        )
        return model(config)

    return make


def encoder(architecture: str, **options) -> Callable:
    """size → a BERT-like model of this architecture."""

    def make(size: Size, width: int | None = None) -> torch.nn.Module:
        width = width or size.width
        more = {"max_position_embeddings": size.length} | of_size(options, size)
        model = getattr(transformers, architecture)
        config = model.config_class(
            vocab_size=size.vocab,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads * width // size.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **more,
        )
        return model(config)

    return make


def electra(size: Size) -> torch.nn.ModuleList:
    """A generator of a third of the width, as in the paper, and a discriminator."""
    width = {"embedding_size": lambda size: size.width}
    discriminator = encoder("ElectraForPreTraining", **width)(size)
    third = size.width // size.heads * max(1, size.heads // 3)
    generator = encoder("ElectraForMaskedLM", **width)(size, third)
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = (
        discriminator.electra.embeddings.word_embeddings.weight
    )
    return torch.nn.ModuleList([generator, discriminator])


def read_electra(models: torch.nn.ModuleList) -> tuple[Any, dict]:
    """fmjax's objective and parameters, from the generator and the discriminator."""
    (small, from_small), (large, params) = map(saved_and_read, models)
    model = large.model.clone(generator=small.model.transformer)
    params["generator_stack"] = from_small["stack"]
    params["masked_head"] = from_small["masked_head"]
    return ReplacedTokenDetection(model), params


def t5(size: Size) -> torch.nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=size.vocab,
            d_model=size.width,
            d_kv=size.width // size.heads,
            d_ff=size.gated_mlp,
            num_layers=size.layers // 2,
            num_heads=size.heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    )


def bart(kind: str, architecture: str) -> Callable:
    """size → a BART or Marian model."""

    def make(size: Size) -> torch.nn.Module:
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=size.vocab,
            max_position_embeddings=size.length,
            d_model=size.width,
            encoder_layers=size.layers // 2,
            decoder_layers=size.layers // 2,
            encoder_attention_heads=size.heads,
            decoder_attention_heads=size.heads,
            encoder_ffn_dim=4 * size.width,
            decoder_ffn_dim=4 * size.width,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            decoder_start_token_id=2,
            pad_token_id=1,
            eos_token_id=2,
        )
        return getattr(transformers, architecture)(config)

    return make


FAMILIES = {
    "gpt2": Family(gpt2, causal_batch, causal_loss),
    "opt": Family(opt, causal_batch, causal_loss),
    # ALiBi.
    "bloom": Family(bloom, causal_batch, causal_loss),
    "llama": Family(llama("Llama"), causal_batch, causal_loss),
    "mistral": Family(
        llama("Mistral", sliding_window=lambda size: size.length // 4),
        causal_batch,
        causal_loss,
    ),
    "qwen2": Family(llama("Qwen2"), causal_batch, causal_loss),
    # Norms of queries and keys.
    "qwen3": Family(llama("Qwen3", head_dim=head_dim), causal_batch, causal_loss),
    # Soft caps, norms after layers, sliding windows in every second layer.
    "gemma2": Family(
        llama(
            "Gemma2",
            head_dim=head_dim,
            query_pre_attn_scalar=head_dim,
            sliding_window=lambda size: size.length // 4,
        ),
        causal_batch,
        causal_loss,
    ),
    # Experts have half of Llama's hidden width; each token is routed to two of them.
    "mixtral": Family(
        llama("Mixtral", 0.5, num_local_experts=8, num_experts_per_tok=2),
        causal_batch,
        causal_loss,
    ),
    "bert": Family(encoder("BertForMaskedLM"), masked_batch, masked_loss),
    "roberta": Family(
        # Positions start after the id of padding, which is 1.
        encoder(
            "RobertaForMaskedLM",
            max_position_embeddings=lambda size: size.length + 2,
        ),
        masked_batch,
        masked_loss,
    ),
    "electra": Family(
        # Wide tolerance: the samples of the generators differ.
        electra,
        detection_batch,
        detection_loss,
        read_electra,
        tolerance=0.02,
    ),
    "deberta": Family(
        encoder(
            "DebertaV2ForMaskedLM",
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            position_buckets=lambda size: size.length // 2,
            max_relative_positions=lambda size: size.length,
        ),
        masked_batch,
        masked_loss,
    ),
    "t5": Family(t5, pair_batch, pair_loss),
    "bart": Family(bart("Bart", "BartForConditionalGeneration"), pair_batch, pair_loss),
    # Sinusoidal positions, as in Vaswani et al. 2017.
    "marian": Family(bart("Marian", "MarianMTModel"), pair_batch, pair_loss),
}

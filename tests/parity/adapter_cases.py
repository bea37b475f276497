"""Models of transformers with adapters of peft, and what both are called with."""

import numpy as np
import peft
import torch
from parity.decoders import DECODERS
from parity.encoder_decoders import T5
from parity.encoders import BERT
from parity.image_encoders import VISION
from parity.models_of_transformers import text, with_noise
from peft import IA3Config, LNTuningConfig, LoraConfig

MLM = ("BertForMaskedLM", BERT)
CLASSES = ("BertForSequenceClassification", BERT)
SEQ2SEQ = ("T5ForConditionalGeneration", T5)
IMAGES = ("ViTForImageClassification", VISION)
DINO = {name: value for name, value in VISION.items() if name != "intermediate_size"}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def lora(**options):
    # Neither 8 nor 16, which are defaults; and B is not zero.
    return LoraConfig(**{"r": 3, "lora_alpha": 5, "init_lora_weights": False} | options)


CASES = {
    "llama": (
        DECODERS["llama"],
        lora(
            target_modules="all-linear",
            rank_pattern={"layers.1.self_attn.q_proj": 5, "o_proj": 2},
            alpha_pattern={"down_proj": 9},
            use_rslora=True,
        ),
    ),
    "llama, dora of one layer": (
        DECODERS["llama"],
        lora(
            target_modules=["q_proj", "down_proj"],
            use_dora=True,
            layers_to_transform=[1],
        ),
    ),
    "llama, table and head": (
        DECODERS["llama"],
        lora(
            target_modules=["embed_tokens", "lm_head", "o_proj"],
            modules_to_save=["model.norm"],
        ),
    ),
    "llama, dora of the head": (
        DECODERS["llama"],
        lora(target_modules=["lm_head", "o_proj"], use_dora=True),
    ),
    "llama, regular expression": (
        DECODERS["llama"],
        lora(target_modules=r".*layers\.0\.self_attn\.(q|k)_proj"),
    ),
    "llama, ia3": (
        DECODERS["llama"],
        IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            modules_to_save=["embed_tokens"],
        ),
    ),
    "llama, norms": (DECODERS["llama"], LNTuningConfig(task_type="CAUSAL_LM")),
    # Weights minus one; norms of heads; biases.
    "gemma2, norms": (
        DECODERS["gemma2"],
        LNTuningConfig(target_modules=r".*norm"),
    ),
    "qwen3, norms of heads": (
        DECODERS["qwen3"],
        LNTuningConfig(target_modules=["q_norm", "k_norm"]),
    ),
    "bloom, norms": (DECODERS["bloom"], LNTuningConfig()),
    "gpt2": (
        DECODERS["gpt2"],
        lora(
            target_modules=["c_attn", "c_proj", "c_fc"],
            fan_in_fan_out=True,
            bias="all",
        ),
    ),
    "gpt2, dora": (
        DECODERS["gpt2"],
        lora(
            target_modules=["c_attn"],
            fan_in_fan_out=True,
            use_dora=True,
            bias="lora_only",
        ),
    ),
    "gpt2, tied table": (
        DECODERS["gpt2"],
        lora(target_modules=["c_attn", "wte", "wpe"], fan_in_fan_out=True),
    ),
    "gpt2, tied head": (
        DECODERS["gpt2"],
        lora(target_modules=["c_attn", "lm_head"], fan_in_fan_out=True),
    ),
    "gpt2, whole table": (
        DECODERS["gpt2"],
        lora(target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["wte"]),
    ),
    "gpt2, whole head": (
        DECODERS["gpt2"],
        lora(
            target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["lm_head"]
        ),
    ),
    "gpt2, ia3": (DECODERS["gpt2"], IA3Config()),
    "gpt2, rslora": (
        DECODERS["gpt2"],
        lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_rslora=True),
    ),
    "gpt2, norms": (
        DECODERS["gpt2"],
        LNTuningConfig(
            target_modules=["ln_1", "ln_2", "ln_f"], modules_to_save=["wpe"]
        ),
    ),
    "mixtral": (
        DECODERS["mixtral"],
        lora(
            target_modules=["q_proj"],
            target_parameters=[*EXPERTS, "mlp.gate.weight"],
            rank_pattern={EXPERTS[0]: 4},
            alpha_pattern={EXPERTS[0]: 7},
        ),
    ),
    "mixtral, rslora": (
        DECODERS["mixtral"],
        lora(target_modules=["o_proj"], target_parameters=EXPERTS[1:], use_rslora=True),
    ),
    "mixtral, dora": (
        DECODERS["mixtral"],
        lora(target_modules=["q_proj", "v_proj"], use_dora=True),
    ),
    "mixtral, ia3": (
        DECODERS["mixtral"],
        IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
    ),
    "mixtral, norms": (
        DECODERS["mixtral"],
        LNTuningConfig(
            target_modules=["input_layernorm", "post_attention_layernorm", "norm"]
        ),
    ),
    "qwen2_moe": (
        DECODERS["qwen2_moe"],
        lora(target_modules=["gate_proj"], target_parameters=EXPERTS[1:]),
    ),
    "deepseek_v3": (DECODERS["deepseek_v3"], lora(target_modules="all-linear")),
    "phi3": (DECODERS["phi3"], lora(target_modules="all-linear")),
    "bloom": (DECODERS["bloom"], lora(target_modules=["query_key_value"])),
    "falcon": (
        DECODERS["falcon"],
        lora(target_modules=["query_key_value"], use_dora=True),
    ),
    "gpt_neox": (
        DECODERS["gpt_neox"],
        lora(target_modules=["query_key_value", "lm_head"]),
    ),
    "bert": (MLM, lora(target_modules=["query", "dense"])),
    "bert, ia3": (
        MLM,
        IA3Config(
            target_modules=["key", "value", "output.dense"],
            feedforward_modules=["output.dense"],
        ),
    ),
    "bert, rslora": (
        MLM,
        lora(target_modules=["query", "intermediate.dense"], use_rslora=True),
    ),
    "bert, dora": (MLM, lora(target_modules=["value", "dense"], use_dora=True)),
    "bert, norms": (MLM, LNTuningConfig(target_modules=["LayerNorm"])),
    "bert, classes, norms": (
        CLASSES,
        LNTuningConfig(
            task_type="SEQ_CLS", target_modules=r".*encoder.*output\.LayerNorm"
        ),
    ),
    "bert, classes": (CLASSES, lora(task_type="SEQ_CLS", bias="lora_only")),
    "t5": (
        SEQ2SEQ,
        lora(target_modules=["q", "v", "wo", "wi"], rank_pattern={"decoder.*v": 1}),
    ),
    "t5, rslora": (SEQ2SEQ, lora(target_modules=["k", "o"], use_rslora=True)),
    "t5, dora": (SEQ2SEQ, lora(target_modules=["q", "wo"], use_dora=True)),
    "t5, norms": (SEQ2SEQ, LNTuningConfig(task_type="SEQ_2_SEQ_LM")),
    "t5, ia3": (SEQ2SEQ, IA3Config()),
    "vit": (
        IMAGES,
        lora(target_modules="all-linear", modules_to_save=["classifier"]),
    ),
    "vit, rslora": (IMAGES, lora(target_modules=["q_proj", "fc2"], use_rslora=True)),
    "vit, dora": (IMAGES, lora(target_modules=["v_proj", "fc1"], use_dora=True)),
    "vit, ia3": (
        IMAGES,
        IA3Config(
            target_modules=["q_proj", "k_proj", "v_proj", "fc2"],
            feedforward_modules=["fc2"],
        ),
    ),
    "vit, norms": (
        IMAGES,
        LNTuningConfig(
            target_modules=r".*layernorm(_before|_after|)",
            modules_to_save=["classifier"],
        ),
    ),
    "dinov2": (
        ("Dinov2ForImageClassification", DINO),
        lora(target_modules=["q_proj", "fc1"], modules_to_save=["classifier"]),
    ),
}


def inputs(model):
    """Arguments of their call and of ours, and where outputs are compared."""
    name = type(model.get_base_model()).__name__
    if "Image" in name:
        pixels = np.random.default_rng(0).normal(size=(2, 3, 21, 21))
        pixels = pixels.astype(np.float32)
        images = pixels.transpose(0, 2, 3, 1)
        return {"pixel_values": torch.tensor(pixels)}, {"images": images}, None
    tokens, mask = text()
    if "T5" in name:
        return *text_arguments(tokens, mask, written=tokens[:, :7]), None
    return *text_arguments(tokens, mask), None if "Sequence" in name else mask


def text_arguments(tokens, mask, written=None):
    """Arguments of their call and of ours; `written` are the decoder's tokens."""
    theirs = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask).long(),
    }
    if written is None:
        return theirs, {"tokens": tokens, "padding_mask": mask}
    theirs["decoder_input_ids"] = torch.tensor(written)
    ours = {
        "encoder_tokens": tokens,
        "encoder_padding_mask": mask,
        "decoder_tokens": written,
    }
    return theirs, ours


def logits_of(run, **arrays):
    out = run(**arrays)
    return out[next(name for name in ("logits", "class_logits") if name in out)]


def random_adapter(base, config):
    """peft's model with random adapters, and random values of what is saved whole."""
    torch.manual_seed(1)
    return with_noise(peft.get_peft_model(base, config).eval(), 0.1)

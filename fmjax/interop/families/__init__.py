"""Families of models: for each a table of options and a table of weights."""

from fmjax.interop.families.albert import ALBERT
from fmjax.interop.families.bart import BART, MARIAN
from fmjax.interop.families.beit import BEIT
from fmjax.interop.families.bert import BERT
from fmjax.interop.families.bloom import BLOOM
from fmjax.interop.families.clip import CLIP, CLIP_IMAGE, CLIP_TEXT
from fmjax.interop.families.cohere import COHERE
from fmjax.interop.families.deberta import DEBERTA
from fmjax.interop.families.deepseek import DEEPSEEK_V3
from fmjax.interop.families.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from fmjax.interop.families.dinov3 import DINOV3
from fmjax.interop.families.distilbert import DISTILBERT
from fmjax.interop.families.electra import ELECTRA, ELECTRA_ENCODER
from fmjax.interop.families.falcon import FALCON
from fmjax.interop.families.gemma import GEMMA, GEMMA2, GEMMA3
from fmjax.interop.families.glm4 import GLM4
from fmjax.interop.families.gpt2 import GPT2
from fmjax.interop.families.gpt_neox import GPT_NEOX
from fmjax.interop.families.gpt_oss import GPT_OSS
from fmjax.interop.families.gptj import GPT_NEO, GPTJ
from fmjax.interop.families.granite import GRANITE
from fmjax.interop.families.llama import LLAMA, MISTRAL
from fmjax.interop.families.mbart import M2M_100, MBART, PEGASUS
from fmjax.interop.families.mixtral import MIXTRAL
from fmjax.interop.families.modernbert import MODERNBERT
from fmjax.interop.families.mpnet import MPNET
from fmjax.interop.families.olmo import OLMO, OLMO2, OLMO3
from fmjax.interop.families.opt import OPT
from fmjax.interop.families.phi import PHI, PHI3
from fmjax.interop.families.qwen import QWEN2, QWEN3
from fmjax.interop.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from fmjax.interop.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from fmjax.interop.families.siglip import SIGLIP, SIGLIP2
from fmjax.interop.families.smollm3 import SMOLLM3
from fmjax.interop.families.stablelm import STABLELM
from fmjax.interop.families.starcoder2 import STARCODER2
from fmjax.interop.families.t5 import (
    MT5,
    MT5_ENCODER,
    T5,
    T5_ENCODER,
    UMT5,
    UMT5_ENCODER,
)
from fmjax.interop.families.vit import DEIT, VIT, VIT_MSN
from fmjax.interop.families.vit_mae import VIT_MAE, VIT_MAE_ENCODER

# A model that fits several families is written as the first of them.
FAMILIES = (
    *(GPT2, OPT, BLOOM, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, MIXTRAL),
    *(BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, ELECTRA, ELECTRA_ENCODER, DEBERTA),
    *(DISTILBERT, ALBERT, MPNET, MODERNBERT),
    *(
        T5,
        MT5,
        UMT5,
        T5_ENCODER,
        MT5_ENCODER,
        UMT5_ENCODER,
        BART,
        MARIAN,
        MBART,
        PEGASUS,
        M2M_100,
    ),
    *(VIT, VIT_MSN, DEIT, DINOV2, DINOV2_WITH_REGISTERS, DINOV3, BEIT),
    *(VIT_MAE, VIT_MAE_ENCODER),
    *(CLIP, SIGLIP, SIGLIP2, CLIP_IMAGE, CLIP_TEXT),
    *(GEMMA, GEMMA3, PHI, PHI3, QWEN2_MOE, QWEN3_MOE),
    *(GPT_NEOX, GPTJ, GPT_NEO, OLMO, OLMO2, OLMO3, SMOLLM3, GRANITE, STARCODER2),
    *(STABLELM, FALCON, COHERE, GLM4, GPT_OSS, DEEPSEEK_V3),
)

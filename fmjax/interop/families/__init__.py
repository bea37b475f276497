"""Families of models: for each a table of options and a table of weights."""

from fmjax.interop.families.bart import BART, MARIAN
from fmjax.interop.families.bert import BERT
from fmjax.interop.families.bloom import BLOOM
from fmjax.interop.families.clip import CLIP
from fmjax.interop.families.cohere import COHERE
from fmjax.interop.families.deberta import DEBERTA
from fmjax.interop.families.deepseek import DEEPSEEK_V3
from fmjax.interop.families.dinov2 import DINOV2
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
from fmjax.interop.families.mixtral import MIXTRAL
from fmjax.interop.families.olmo import OLMO, OLMO2, OLMO3
from fmjax.interop.families.opt import OPT
from fmjax.interop.families.phi import PHI, PHI3
from fmjax.interop.families.qwen import QWEN2, QWEN3
from fmjax.interop.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from fmjax.interop.families.roberta import ROBERTA
from fmjax.interop.families.siglip import SIGLIP
from fmjax.interop.families.smollm3 import SMOLLM3
from fmjax.interop.families.stablelm import STABLELM
from fmjax.interop.families.starcoder2 import STARCODER2
from fmjax.interop.families.t5 import T5
from fmjax.interop.families.vit import DEIT, VIT
from fmjax.interop.families.vit_mae import VIT_MAE, VIT_MAE_ENCODER

# A model that fits several families is written as the first of them.
FAMILIES = (
    *(GPT2, OPT, BLOOM, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, MIXTRAL),
    *(GEMMA, GEMMA3, PHI, PHI3, QWEN2_MOE, QWEN3_MOE),
    *(GPT_NEOX, GPTJ, GPT_NEO, OLMO, OLMO2, OLMO3, SMOLLM3, GRANITE, STARCODER2),
    *(STABLELM, FALCON, COHERE, GLM4, GPT_OSS, DEEPSEEK_V3),
    *(BERT, ROBERTA, ELECTRA, ELECTRA_ENCODER, DEBERTA),
    *(T5, BART, MARIAN),
    *(VIT, DEIT, DINOV2, VIT_MAE, VIT_MAE_ENCODER),
    *(CLIP, SIGLIP),
)

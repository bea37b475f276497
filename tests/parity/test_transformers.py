"""Imported models against Hugging Face's transformers, on random weights."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

import fmjax  # noqa: E402
from fmjax.inference.generate import generate_tokens  # noqa: E402
from fmjax.inference.sampling import Sampling  # noqa: E402
from fmjax.interop.hugging_face import import_model  # noqa: E402

torch.set_num_threads(2)

# Sizes that nothing divides by chance, so that no transposition goes unnoticed.
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
GPT2 = dict(vocab_size=203, n_positions=28, n_embd=30, n_layer=3, n_head=5, **ENDS)
LLAMA = dict(
    vocab_size=203,
    hidden_size=36,
    intermediate_size=50,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=28,
    **ENDS,
)
CONFIGS = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied, gelu, inner": (
        "GPT2",
        {
            **GPT2,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "n_inner": 44,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "llama": ("Llama", LLAMA),
    "llama, wide heads": (
        "Llama",
        {
            **LLAMA,
            "tie_word_embeddings": True,
            "head_dim": 10,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama, all heads": ("Llama", {**LLAMA, "num_key_value_heads": None}),
}


def random_model(family, options):
    """A model whose every weight, norms and offsets too, is random."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    cls = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}[family]
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    return model


def tokens_and_mask(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(203, size=(4, 28))
    mask = np.arange(28) < np.array([[28], [17], [1], [9]])
    return tokens, mask


def assert_close(ours, theirs):
    theirs = theirs.detach().float().numpy()
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    bound = 1e-4 * max(1.0, np.abs(theirs).max())
    assert np.abs(ours - theirs).max() <= bound


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """Their model, and ours imported from shards of it."""
    model = random_model(*CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("imported")
    model.save_pretrained(folder / "hf", max_shard_size="20KB")
    assert len(list((folder / "hf").glob("*.safetensors"))) > 2
    import_model(folder / "hf", folder / "run")
    return model, fmjax.load(folder / "run")


def test_logits_and_hidden_states_are_theirs(pair):
    theirs, ours = pair
    tokens, mask = tokens_and_mask()
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            output_hidden_states=True,
        )
        plain = theirs(input_ids=torch.tensor(tokens))
    out = ours(tokens=tokens, mask=mask)
    unmasked = ours(tokens=tokens, mask=np.ones_like(mask))
    # What padding itself computes differs, and means nothing.
    real = torch.tensor(mask)
    assert_close(out["logits"][mask], expected.logits[real])
    assert_close(out["hidden"][mask], expected.hidden_states[-1][real])
    assert_close(unmasked["logits"], plain.logits)
    assert expected.logits[real].std() > 0.3  # the comparison sees something


@pytest.mark.parametrize("pair", ["gpt2", "llama, wide heads"], indirect=True)
def test_greedy_generation_is_theirs(pair):
    theirs, ours = pair
    prompts = np.random.default_rng(1).integers(1, 203, size=(3, 6))
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompts), max_new_tokens=20, do_sample=False
        )
    written = generate_tokens(
        ours.model,
        ours.params,
        prompts.tolist(),
        max_tokens=20,
        sampling=Sampling(temperature=0.0),
    )
    assert written == expected[:, 6:].tolist()


def test_a_single_file_in_half_precision_is_read(tmp_path):
    random_model("Llama", LLAMA).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    import_model(tmp_path / "hf", tmp_path / "run")
    tokens, _ = tokens_and_mask()
    model = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits
    assert_close(fmjax.load(tmp_path / "run")(tokens=tokens)["logits"], expected)


def test_options_spelled_as_in_version_4_are_read(tmp_path):
    options = {**LLAMA, "rope_parameters": {"rope_theta": 500.0}}
    model = random_model("Llama", options)
    model.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"], config["head_dim"], config["dtype"]
    config |= {"rope_theta": 500.0, "rope_scaling": None, "torch_dtype": "float32"}
    file.write_text(json.dumps(config))
    import_model(tmp_path / "hf", tmp_path / "run")
    tokens, _ = tokens_and_mask()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits
    assert_close(fmjax.load(tmp_path / "run")(tokens=tokens)["logits"], expected)

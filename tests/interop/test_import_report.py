"""What an import prints: sizes, memory, and a config that continues the model."""

import json
import types

import jax
import numpy as np
import pytest
import small_tokenizers
from flax import traverse_util
from interop.small_gpt2 import CONFIG, SHAPES, random_tensors, write
from small_tokenizers import byte_level

import fmjax
from fmjax.cli.main import main
from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model
from fmjax.interop.import_report import lines_to_continue
from fmjax.models.language.bert import Bert
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.training.checkpoint.saved_state import SavedState

VOCAB = 420  # Of `byte_level`.
OTHERS = ("float16", "float32")


@pytest.fixture
def folder(tmp_path):
    """A model with a tokenizer and 16 positions."""
    tensors = random_tensors(VOCAB)
    rng = np.random.default_rng(1)
    tensors["wpe.weight"] = rng.normal(size=(16, 6)).astype(np.float32)
    sizes = {"vocab_size": VOCAB, "n_positions": 16}
    write(tmp_path / "hf", tensors, CONFIG | sizes)
    return byte_level(tmp_path / "hf", ("<|endoftext|>",))


def printed_lines(folder, run, capsys, *more):
    """What an import prints, and the gin in it."""
    assert main(["import", str(folder), str(run), *more]) == 0
    printed = capsys.readouterr().out.splitlines()
    return printed, [line.strip() for line in printed if line.startswith("    ")]


def test_the_report_tells_what_it_is_and_how_it_goes_on(folder, tmp_path, capsys):
    run = tmp_path / "run"
    printed, lines = printed_lines(folder, run, capsys)
    count = sum(np.prod(shape) for shape in SHAPES.values()) + (VOCAB - 11) * 6 + 8 * 6
    name = "model_type gpt2, GPT2Model"
    assert f"{name}: {count:,} parameters, weights of float32" in printed
    known = "vocabulary of 420; tokenizer: 420 ids of merges.txt, vocab.json"
    assert f"texts of up to 16 tokens, {known}" in printed
    assert lines == [
        f"include '{run}/config.gin'",
        "include 'runs/continue.gin'",
        f"RUN = '{run}'",
        "data.length = 16",
    ]
    (tmp_path / "continue.gin").write_text("\n".join(lines) + "\n")
    bound = load_experiment(str(tmp_path / "continue.gin"), ["TEXT_FILE=text.txt"])
    assert bound.init_from[0].run == str(run)
    assert bound.objective == fmjax.load(run).config.objective


@pytest.mark.slow
def test_the_lines_of_the_report_train_the_model(folder, tmp_path, capsys):
    run, place = tmp_path / "run", tmp_path / "continue.gin"
    # Training is in float32, whatever the initial parameters are stored in.
    _, lines = printed_lines(folder, run, capsys, "--dtype", "bfloat16")
    place.write_text("\n".join(lines) + "\n")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps. " * 200)
    command = ["train", str(place), f"TEXT_FILE={tmp_path / 'text.txt'}"]
    command += ["--run_dir", str(tmp_path / "on"), "train.steps=2"]
    command += ["train.batch_size=8", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main(command) == 0
    before, after = fmjax.load(run), fmjax.load(tmp_path / "on")
    assert after.step == 2
    # It began where the imported model was: two steps change little.
    for path, old in traverse_util.flatten_dict(before.params, sep="/").items():
        new = traverse_util.flatten_dict(after.params, sep="/")[path]
        real = slice(VOCAB if path == "tokens/table" else None)
        changed = np.abs(new[real] - np.float32(old[real])).max()
        assert new.dtype == np.float32
        assert 0 < changed < 1e-3, path


def test_masked_models_go_on_masked(tmp_path):
    transformer = TransformerConfig(1, 12, 2, norm_position="post")
    objective = MaskedLM(Bert(transformer, 9, 8))
    tokenizer = types.SimpleNamespace()
    lines = lines_to_continue(objective, "runs/bert", tokenizer)
    assert lines[1:] == [
        "include 'runs/continue_masked.gin'",
        "RUN = 'runs/bert'",
        "data.length = 8",
    ]
    headless = MaskedLM(objective.model.clone(language_head=False))
    assert lines_to_continue(headless, "runs/bert", tokenizer) == [
        "include 'runs/bert/config.gin'",
        "include 'finetune/texts.gin'",
        "include 'finetune/encoder.gin'",
        "RUN = 'runs/bert'",
        "data.length = 8",
    ]


# A head of classes alone, or an encoder-decoder with a corruption of its vocabulary.
OTHERS_OF_TRANSFORMERS = {
    "T5ForConditionalGeneration": ("spans", {
        "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4,
        "decoder_start_token_id": 0,
    }),
    "BartForConditionalGeneration": ("infilling", {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
    }),
    "GPT2ForSequenceClassification": ("labels", {
        "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "num_labels": 3,
    }),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS_OF_TRANSFORMERS)
def test_lines_of_other_models_train_them(name, tmp_path, capsys):
    import transformers

    how, options = OTHERS_OF_TRANSFORMERS[name]
    if how == "spans":
        small_tokenizers.t5(tmp_path / "hf")
        tokenizer = transformers.T5Tokenizer.from_pretrained(tmp_path / "hf")
    else:
        specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        byte_level(tmp_path / "hf", specials)
        cls = {"infilling": "BartTokenizerFast", "labels": "GPT2TokenizerFast"}[how]
        named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        tokenizer = getattr(transformers, cls).from_pretrained(tmp_path / "hf", **named)
    tokenizer.save_pretrained(tmp_path / "hf")
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("pad", "eos")}
    cls = getattr(transformers, name)
    config = cls.config_class(vocab_size=len(tokenizer), **options, **ids)
    cls(config).save_pretrained(tmp_path / "hf")
    printed, lines = printed_lines(tmp_path / "hf", tmp_path / "run", capsys)
    (tmp_path / "continue.gin").write_text("\n".join(lines) + "\n")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps. over the lazy dog. \n" * 200)
    files = f"TEXT_FILE={text}"
    if how == "labels":
        rows = [{"text": f"the fox {i}", "label": "abc"[i % 3]} for i in range(60)]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files = f"RECORDS={tmp_path / 'a.jsonl'}"
    assert any(files.partition("=")[0] in line for line in printed)
    assert load_experiment(str(tmp_path / "continue.gin"), [files])
    command = ["train", str(tmp_path / "continue.gin"), files, "train.steps=2"]
    command += ["train.batch_size=8", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main([*command, "--run_dir", str(tmp_path / "on")]) == 0
    assert fmjax.load(tmp_path / "on").step == 2


def test_the_memory_is_that_of_parameters_moments_and_gradients(folder, tmp_path):
    memory = import_model(folder, tmp_path / "run").memory
    params = fmjax.load(tmp_path / "run").params
    stored = 4 * sum(x.size for x in jax.tree.leaves(params))
    assert memory.parameters == memory.gradients == stored
    # Two moments; counters, guards and keys come on top.
    assert 2 * stored <= memory.optimizer <= 2 * stored + 1000
    assert memory.total == memory.parameters + memory.optimizer + memory.gradients


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)]
)
def test_parameters_are_kept_in_the_dtype_that_is_asked_for(folder, tmp_path, dtype):
    import_model(folder, tmp_path / "plain")
    command = ["import", str(folder), str(tmp_path / "run"), "--dtype", dtype]
    assert main(command) == 0
    plain, run = (fmjax.load(tmp_path / name) for name in ("plain", "run"))
    table = plain.params["tokens"]["table"]
    np.testing.assert_array_equal(
        run.params["tokens"]["table"].astype(np.float32),
        table.astype(dtype).astype(np.float32),
    )
    stored = SavedState(tmp_path / "run").stored.items()
    assert {kept for path, (_, kept) in stored if path.startswith("params/")} == {dtype}
    export_model(tmp_path / "run", tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["dtype"] == dtype
    export_model(tmp_path / "run", tmp_path / "half", dtype="float16")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float16"


def test_another_dtype_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="dtype = 'int8': expected one of float32"):
        import_model(folder, tmp_path / "run", dtype="int8")


def test_a_model_without_a_tokenizer_has_no_lines(tmp_path):
    report = import_model(write(tmp_path / "hf", random_tensors()), tmp_path / "run")
    assert report.continuing == []
    assert any("tokenizer: none" in line for line in report.lines)

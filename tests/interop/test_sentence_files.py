"""Folders of sentence-transformers: the same vectors, and the same files back."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from small_tokenizers import wordpiece

import fmjax
from fmjax.errors import UserError
from fmjax.interop import sentence_files
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model
from fmjax.models.text_embedding import TextEmbedding

TEXTS = ["the cat sat", "a", "some more words on the mat and then others again"]
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens",
         "weightedmean_tokens", "lasttoken")  # fmt: skip


def write(folder, modules, **files):
    """Writes modules.json, and files by their paths with "__" for "/"."""
    folder.mkdir(exist_ok=True)
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.{kind}",
        }
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name, content in files.items():
        file = folder / (name.replace("__", "/") + ".json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def legacy(mode):
    return {f"pooling_mode_{name}": name == mode for name in MODES} | {
        "word_embedding_dimension": 16
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT in the form of old versions, with the model in a folder inside."""
    place = tmp_path_factory.mktemp("sentences")
    inside = place / "0_Transformer"
    inside.mkdir()
    torch.manual_seed(0)
    (inside / "config.json").write_text('{"model_type": "bert"}')
    wordpiece(inside)
    config = transformers.BertConfig(
        vocab_size=600,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(inside)
    write(
        place,
        [
            ("models.Transformer", "0_Transformer"),
            ("models.Pooling", "1_Pooling"),
            ("models.Normalize", "2_Normalize"),
        ],
        **{
            "1_Pooling__config": legacy("weightedmean_tokens"),
            "0_Transformer__sentence_bert_config": {"max_seq_length": 7},
            "config_sentence_transformers": {
                "prompts": {"query": "the "},
                "default_prompt_name": "query",
            },
        },
    )
    return place


def theirs(folder):
    """Weighted means of hidden states, of unit length, by transformers and NumPy."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = []
    for text in TEXTS:
        read = tokenizer(
            "the " + text, truncation=True, max_length=7, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = model(**read).last_hidden_state[0].double().numpy()
        weights = np.arange(1, len(hidden) + 1)
        vector = weights @ hidden / weights.sum()
        found.append(vector / np.linalg.norm(vector))
    return np.stack(found)


def test_an_imported_folder_gives_its_vectors_and_comes_out_again(folder, tmp_path):
    report = import_model(folder, tmp_path / "run")
    assert "vectors of texts by pooling 'weighted_mean'" in report.notes[-1]
    run = fmjax.load(tmp_path / "run")
    how = TextEmbedding("weighted_mean", True, 7, "the ")
    assert run.config.embedding == how
    with pytest.raises(UserError, match=r"text_embedding\.max_length = 7"):
        run.embed(TEXTS)
    expected = theirs(folder / "0_Transformer")
    np.testing.assert_allclose(run.embed(TEXTS, truncate=True), expected, atol=1e-5)

    notes = export_model(tmp_path / "run", tmp_path / "out")
    assert any("modules.json" in note for note in notes)
    import_model(tmp_path / "out", tmp_path / "again")
    again = fmjax.load(tmp_path / "again")
    assert again.config.embedding == how
    np.testing.assert_array_equal(
        again.embed(TEXTS, truncate=True), run.embed(TEXTS, truncate=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_sentence_transformers_reads_what_was_exported(folder, tmp_path, mode):
    # It takes long to import.
    from sentence_transformers import SentenceTransformer

    there = shutil.copytree(folder, tmp_path / "there")
    (there / "1_Pooling" / "config.json").write_text(json.dumps(legacy(mode)))
    import_model(there, tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "out")
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = fmjax.load(tmp_path / "run").embed(TEXTS, truncate=True)
    np.testing.assert_allclose(found, model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_each_pooling_has_its_name_of_both_versions(tmp_path, mode):
    write(
        tmp_path,
        [("models.Transformer", ""), ("models.Pooling", "1_Pooling")],
        **{"1_Pooling__config": legacy(mode)},
    )
    old = sentence_files.read(tmp_path, None)
    assert not old.normalize
    name = mode.removesuffix("_tokens").removesuffix("_token")
    name = mode if mode == "mean_sqrt_len_tokens" else name
    write(
        tmp_path,
        [
            ("base.modules.transformer.Transformer", ""),
            ("sentence_transformer.modules.pooling.Pooling", "1_Pooling"),
        ],
        **{"1_Pooling__config": {"embedding_dimension": 16, "pooling_mode": name}},
    )
    assert sentence_files.read(tmp_path, None) == old
    (tmp_path / "out").mkdir()
    sentence_files.write(tmp_path / "out", old, 16, 40)
    back = sentence_files.read(tmp_path / "out", None)
    assert back == TextEmbedding(old.pooling, max_length=40)


TRANSFORMER, POOLING = ("models.Transformer", ""), ("models.Pooling", "1_Pooling")


@pytest.mark.parametrize(
    ("modules", "files", "message"),
    [
        (
            [TRANSFORMER, POOLING, ("models.Dense", "2_Dense")],
            {},
            "has a module 'Dense'",
        ),
        ([POOLING, TRANSFORMER], {}, "has Pooling, Transformer; expected"),
        ([TRANSFORMER], {}, "has no Pooling"),
        ([("models.Transformer", "../x"), POOLING], {}, "expected a folder inside"),
        ([TRANSFORMER, POOLING], {}, r"1_Pooling/config\.json cannot be read"),
        (
            [TRANSFORMER, POOLING],
            {"1_Pooling__config": {"pooling_mode": ["cls", "mean"]}},
            "pooling cls and mean; expected one of",
        ),
        (
            [TRANSFORMER, POOLING],
            {
                "1_Pooling__config": legacy("cls_token"),
                "sentence_bert_config": {"do_lower_case": True},
            },
            "do_lower_case = True",
        ),
        (
            [TRANSFORMER, POOLING],
            {
                "1_Pooling__config": legacy("cls_token") | {"include_prompt": False},
                "config_sentence_transformers": {
                    "default_prompt_name": "q",
                    "prompts": {"q": "query: "},
                },
            },
            "include_prompt = False",
        ),
        (
            [TRANSFORMER, POOLING],
            {
                "1_Pooling__config": legacy("cls_token"),
                "config_sentence_transformers": {"default_prompt_name": "q"},
            },
            "default_prompt_name = 'q' is none of prompts",
        ),
    ],
)
def test_what_fmjax_does_not_have_is_refused(tmp_path, modules, files, message):
    write(tmp_path, modules, **files)
    with pytest.raises(UserError, match=message):
        sentence_files.read(tmp_path, None)


def test_a_folder_of_transformers_alone_has_no_pooling(tmp_path):
    assert sentence_files.read(tmp_path, None) is None
    assert sentence_files.model_folder(tmp_path) == tmp_path
    how = TextEmbedding(pooling="pooler")
    assert "no form there" in sentence_files.write(tmp_path, how, 16, 40)
    assert not any(tmp_path.iterdir())

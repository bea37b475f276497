"""An imported model evaluated on somebody's own text, in its own vocabulary."""

import numpy as np
import pytest
import torch
import transformers
from small_tokenizers import CORPUS, byte_level

from fmjax.errors import UserError
from fmjax.evaluation.validation import evaluate_run
from fmjax.interop.hugging_face import import_model


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    folder = byte_level(tmp_path_factory.mktemp("hf"), ("<|endoftext|>",))
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=12,
        n_head=3,
        n_positions=16,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(folder)
    return folder


def test_its_loss_is_that_of_transformers(hf_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    text = " ".join(CORPUS[:4])
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "other.txt").write_text(" ".join(CORPUS[4:]))
    import_model(hf_dir, tmp_path / "run")
    data = [
        "experiment.data=@data()",
        "data.train=@text_task()",
        "data.length=16",
        "text_task.source=@text_files()",
        "text_task.tokenizer=@saved_tokenizer()",
        f"text_files.files={tmp_path / 'other.txt'}",
        f"text_files.validation_files={tmp_path / 'text.txt'}",
        "train.batch_size=8",
    ]

    values = evaluate_run(
        tmp_path / "run", bindings=[*data, f"saved_tokenizer.folder={tmp_path / 'run'}"]
    )

    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(hf_dir)
    model = transformers.GPT2LMHeadModel.from_pretrained(hf_dir)
    end = tokenizer.eos_token_id
    ids = [end, *tokenizer(text)["input_ids"], end]
    losses = []
    for start in range(0, len(ids) - 1, 16):
        block = torch.tensor([ids[start : start + 17]])
        with torch.no_grad():
            logits = model(block[:, :-1]).logits[0]
        losses += torch.nn.functional.cross_entropy(
            logits, block[0, 1:], reduction="none"
        ).tolist()
    assert values["tokens"] == len(losses)
    assert values["nll"] == pytest.approx(np.mean(losses), rel=1e-5)
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate_run(tmp_path / "run", bindings=[*data, "text_task.tokenizer=@bytes()"])


def test_a_folder_without_one_is_refused(tmp_path):
    from fmjax.data.tokenizers.saved_tokenizer import SavedTokenizer

    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"saved_tokenizer\.folder"):
            SavedTokenizer(str(folder)).build(None, None)

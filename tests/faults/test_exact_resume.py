"""A run in two parts ends as one in one part, to the bit, whatever it trains."""

import json
import pathlib
import textwrap

import pytest

from fmjax.cli.main import main
from fmjax.training.checkpoint.saved_state import saved_steps
from tests.image_files import write_classes
from tests.run_digest import run_digest

CONFIGS = pathlib.Path(__file__).parents[1] / "e2e"
STEPS = 6
# A schedule that does not read train.steps, so that a run may end where it likes.
CONSTANT = (
    "constant.learning_rate=1e-3", "constant.warmup_steps=0", "train.log_every=1",
    "train.eval_every=3", "train.checkpoint_every=0",
)  # fmt: skip


def optimizer(name, *bindings):
    return (
        f"experiment.optimizer=@{name}()",
        f"{name}.schedule=@constant()",
        *bindings,
    )


ADAMW = optimizer("adamw")
DROPOUT = ("transformer.dropout=0.1", "transformer.attention_dropout=0.1")
MASKED = (
    "experiment.objective=@masked_lm()", "masked_lm.model=@bert()",
    "masked_lm.max_predictions=8", "bert.transformer=@transformer()",
    "bert.vocab_size=384", "bert.max_length=32", "transformer.norm_position='pre'",
    "data.rows='documents'", "data.corruption=@masking()",
    "text_task.tokenizer=@sentencepiece()", "sentencepiece.vocab_size=384",
    "sentencepiece.specials=('[CLS]', '[SEP]', '[MASK]')",
)  # fmt: skip
LANGUAGE = {
    "adamw": ADAMW,
    "adafactor": optimizer("adafactor", "adafactor.min_dim_size_to_factor=8"),
    "lamb": optimizer("lamb"),
    "lion": optimizer("lion"),
    "muon": optimizer("muon"),
    "accumulated, dropout": (
        *ADAMW, *DROPOUT, "train.microbatches=2", "train.batch_size=16",
    ),
    "norms, noise scale": (
        *ADAMW, "train.microbatches=2", "train.batch_size=16",
        "train.norms='layers'", "train.noise_scale=3",
    ),
    "averaged, frozen at first": (
        *ADAMW, "train.ema_decay=0.9", "experiment.freeze=(@freeze(),)",
        "freeze.paths=('stack/**',)", "freeze.until=4",
    ),
    "packed": (*ADAMW, "data.rows='packed'"),
    "random windows": (*ADAMW, "data.random_window=True"),
    "streamed": (*ADAMW, "data.streaming=True"),
    "streamed lines": (
        *ADAMW, "data.streaming=True", "text_files.document='line'",
        "data.shuffle_mb=0.01",
    ),
    "mixture": (
        *ADAMW, "data.train=@mixture()", "data.rows='packed'",
        "mixture.tasks=(@one/text_task(), @two/text_task())", "mixture.rates=(1, 3)",
        "one/text_task.name='one'", "two/text_task.name='two'",
    ),
    "masked": (*ADAMW, *DROPOUT, *MASKED),
    "bad steps judged": (
        *ADAMW, "experiment.bad_steps=@bad_steps()", "bad_steps.spikes='skip'",
    ),
    "adversary that begins with noise": (
        *ADAMW, *DROPOUT, "experiment.adversary=@freelb()",
    ),
    "conversations": (
        *ADAMW, "data.rows='packed'", "text_task.source=@conversation_files()",
        "conversation_files.files=%TEXT_FILE",
        "conversation_files.chat_template='plain'",
    ),
    "contrast of texts": (
        *ADAMW, *DROPOUT, "experiment.objective=@text_contrast()",
        "text_contrast.model=@gpt()", "text_contrast.embedding=@text_embedding()",
        "text_embedding.pooling='mean'", "experiment.evaluations=()",
        "data.rows='texts'", "text_files.document='line'",
    ),
    "labels of augmented texts": (
        *ADAMW, *DROPOUT, "experiment.objective=@text_classification()",
        "text_classification.model=@gpt()", "experiment.evaluations=()",
        "text_task.source=@labelled_records()",
        "labelled_records.files=%TEXT_FILE",
        "data.augment=(@deletion(), @swap())",
    ),
}  # fmt: skip
# What those read that do not read plain text.
RECORDS = {
    "conversations": [
        {
            "messages": [
                {"role": "user", "content": f"{i} and {i}?"},
                {"role": "assistant", "content": f"{2 * i}."},
            ]
        }
        for i in range(200)
    ],
    "labels of augmented texts": [
        {"text": f"one of {i} words is no other", "label": str(i % 3)}
        for i in range(200)
    ],
}
IMAGES = {
    "augmented, mixed": ADAMW,
    "views": (
        *ADAMW, "experiment.objective=@nt_xent()",
        "nt_xent.model=@simclr()", "simclr.encoder=@vit()",
        "simclr.embed_dim=8", "vit.num_classes=0", "images.views=2", "images.augment="
        "(@random_resized_crop(), @flip(), @colour_jitter(), @grayscale())",
    ),
}  # fmt: skip


def train(folder, config, bindings, steps):
    command = ["train", str(CONFIGS / config), *bindings, *CONSTANT]
    assert main([*command, f"train.steps={steps}", "--run_dir", str(folder)]) == 0
    assert saved_steps(folder)[-1] == steps


def assert_exact(tmp_path, config, bindings):
    train(tmp_path / "whole", config, bindings, STEPS)
    train(tmp_path / "parts", config, bindings, STEPS // 2)
    before = run_digest(tmp_path / "parts")
    train(tmp_path / "parts", config, bindings, STEPS)
    assert run_digest(tmp_path / "parts") == run_digest(tmp_path / "whole") != before


@pytest.mark.slow
@pytest.mark.parametrize("what", LANGUAGE)
def test_language(tmp_path, what):
    if what in RECORDS:
        text = tmp_path / "text.jsonl"
        text.write_text("".join(json.dumps(row) + "\n" for row in RECORDS[what]))
    else:
        text = tmp_path / "text.txt"
        text.write_text(pathlib.Path(textwrap.__file__).read_text())
    assert_exact(tmp_path, "tiny.gin", (f"TEXT_FILE={text}", *LANGUAGE[what]))


@pytest.mark.slow
def test_streamed_images(tmp_path):
    names = {str(number): 8 for number in range(10)}
    folder = write_classes(tmp_path / "pictures", names)
    source = ("image_task.source=@image_folder()", f"image_folder.folder={folder}")
    streamed = ("images.streaming=True", "images.shuffle_mb=0.01")
    assert_exact(tmp_path, "tiny_images.gin", (*ADAMW, *source, *streamed))


@pytest.mark.slow
@pytest.mark.parametrize("what", IMAGES)
def test_images(tmp_path, what):
    assert_exact(tmp_path, "tiny_images.gin", IMAGES[what])

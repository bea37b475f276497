"""What an import tells: the model, memory to train it, and how to continue it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import linen as nn

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.specials import find_special
from fmjax.models.contracts import vocab_size_of
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.objective import Objective
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Cosine
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.memory import bytes_per_device
from fmjax.training.state import plan_state

# Configs that continue a model of an objective on texts.
_CONTINUED = {CausalLM: "runs/continue.gin", MaskedLM: "runs/continue_masked.gin"}
# Those of an encoder-decoder, by a special token that its vocabulary has.
_OF_BOTH = {
    "<extra_id_0>": "runs/continue_spans.gin",
    "mask": "runs/continue_infilling.gin",
}
# Those that fine-tune a model on labels, beside finetune/texts.gin.
_ON_LABELS = {
    GPT: (),
    Bert: ("finetune/encoder.gin",),
    Seq2Seq: ("finetune/encoder_decoder.gin",),
}
# Tensors that were left out, of which a report names as many.
_NAMED = 20
# Tokens of a row there.
_LENGTH, _LENGTH_OF_LABELLED = 256, 128


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a model takes in training with AdamW on one device, without fsdp.

    Attributes:
      parameters: of the model.
      optimizer: AdamW's state.
      gradients: of all parameters.
    """

    parameters: int
    optimizer: int
    gradients: int

    @classmethod
    def of(cls, objective: Objective) -> "TrainingMemory":
        """By the plan of a run's state, as `fmjax plan` counts it."""
        config = MeshConfig()
        mesh = config.build(jax.local_devices(backend="cpu")[:1])
        optimizer = AdamW(schedule=Cosine(learning_rate=1e-4))
        plan = plan_state(objective, optimizer, mesh, config.all_rules, train_steps=1)
        parameters = bytes_per_device(plan.shapes.params)
        return cls(parameters, bytes_per_device(plan.shapes) - parameters, parameters)

    @property
    def total(self) -> int:
        """All of them; activations and batches come on top."""
        return self.parameters + self.optimizer + self.gradients

    def __str__(self) -> str:
        each = ", ".join(
            f"{_bytes(getattr(self, name))} {name}"
            for name in ("parameters", "optimizer", "gradients")
        )
        return f"{_bytes(self.total)} ({each}), activations on top"


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was imported.

    Attributes:
      run_dir: the run directory that was written.
      model_type: of config.json.
      architecture: name of transformers' class.
      parameters: number of them.
      dtype: of most weights in the files.
      max_length: longest text in tokens; None for a model without one.
      vocab_size: of the model; 0 without a vocabulary.
      tokenizer: what it is, in words.
      memory: of training it.
      continuing: lines of gin that continue it on texts, or on labelled texts if it has
        no head that writes; none for a model that the shipped configs do not train so.
      left_out: tensors that were not imported, of heads that the class does not have.
      notes: what was done to make config.json and files agree.
    """

    run_dir: Path
    model_type: str
    architecture: str
    parameters: int
    dtype: str
    max_length: int | None
    vocab_size: int
    tokenizer: str
    memory: TrainingMemory
    continuing: Sequence[str]
    left_out: Sequence[str]
    notes: Sequence[str]

    @property
    def lines(self) -> list[str]:
        """Lines for a terminal."""
        about = f"{self.parameters:,} parameters, weights of {self.dtype}"
        lines = [f"model_type {self.model_type}, {self.architecture}: {about}"]
        if self.max_length is not None:
            lines.append(
                f"texts of up to {self.max_length:,} tokens, vocabulary of "
                f"{self.vocab_size:,}; tokenizer: {self.tokenizer}"
            )
        lines += [f"to train all of it with AdamW: {self.memory}", *self.notes]
        if self.left_out:
            # A layer of DeepSeek-V3 that is left out has hundreds.
            named, more = self.left_out[:_NAMED], len(self.left_out) - _NAMED
            heads = ", ".join(named) + (f" and {more:,} more" if more > 0 else "")
            lines.append(f"not imported (weights of other heads): {heads}")
        if self.continuing:
            on_labels = any("finetune/" in line for line in self.continuing)
            what = "labelled texts" if on_labels else "text"
            files = (
                "RECORDS='labelled.tsv'" if on_labels else "TEXT_FILE='corpus/*.txt'"
            )
            lines.append(f"to continue it on your own {what}, a file continue.gin of")
            lines += [f"    {line}" for line in self.continuing]
            lines.append(f"and fmjax train continue.gin {files} --run_dir NEW")
        return lines


def describe_tokenizer(tokenizer: HuggingFaceTokenizer | None) -> str:
    """A tokenizer in words, by its files."""
    if tokenizer is None:
        return "none"
    return f"{tokenizer.vocab_size:,} ids of {', '.join(sorted(tokenizer.files))}"


def lines_to_continue(
    objective: Objective, run_dir: str | Path, tokenizer: HuggingFaceTokenizer | None
) -> list[str]:
    """The gin that continues an imported model on texts; none if none does."""
    model = objective.model
    if tokenizer is None:
        return []
    config, usual = _CONTINUED.get(type(objective)), _LENGTH
    if isinstance(objective, Seq2SeqLM):
        known = (n for n in _OF_BOTH if find_special(tokenizer, n) is not None)
        config = _OF_BOTH.get(next(known, ""))
    if config is not None and not _has_only_other_heads(model):
        configs = [config]
    elif type(model) in _ON_LABELS:
        configs = ["finetune/texts.gin", *_ON_LABELS[type(model)]]
        usual = _LENGTH_OF_LABELLED
    else:
        return []
    lines = [f"include '{name}'" for name in (f"{run_dir}/config.gin", *configs)]
    lines.append(f"RUN = '{run_dir}'")
    if model.max_length is not None and model.max_length < usual:
        lines.append(f"data.length = {model.max_length}")
    return lines


def text_sizes(model: nn.Module) -> tuple[int | None, int]:
    """The maximum length and the vocabulary of a model of texts."""
    return getattr(model, "max_length", None), vocab_size_of(model)


def _has_only_other_heads(model: nn.Module) -> bool:
    """Whether a model has no head for tokens of its vocabulary, or ones beside it."""
    if not getattr(model, "language_head", True):
        return True
    names = ("num_classes", "token_classes", "spans")
    return any(getattr(model, name, None) for name in names)


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"

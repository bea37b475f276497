"""BLEU (Papineni et al. 2002) of a run's translations, as sacrebleu computes it."""

import dataclasses
import os
import types
from collections.abc import Sequence

import jax
import xxhash
from rich.console import Console
from rich.progress import track

from fmjax.configurable import configurable, runtime_field
from fmjax.data.text.text_pairs import text_pairs
from fmjax.errors import UserError, explained_out_of_memory
from fmjax.evaluation.current_run import check_one_process, current_run
from fmjax.evaluation.validation import LESS_MEMORY
from fmjax.inference.decoder import SourceDecoder, decoder_of
from fmjax.inference.generate import beam_search
from fmjax.inference.load import load
from fmjax.inference.prompts import encode
from fmjax.inference.run import Run
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import MeshConfig
from fmjax.storage.paths import as_path
from fmjax.training.experiment import Experiment
from fmjax.training.validation import EvaluationPoint

# Maximum tokens of a translation beyond its source (Vaswani et al. 2017, section 6.1).
_MORE_TOKENS = 50


@explained_out_of_memory(LESS_MEMORY)
def bleu_of_run(
    run_dir: str | os.PathLike,
    *,
    step: int | None = None,
    bindings: Sequence[str] = (),
    trust: bool = False,
    beams: int = 4,
    length_penalty: float = 0.6,
    max_tokens: int | None = None,
) -> dict[str, float | int | str]:
    """Translates the sources of the validation split and scores the translations.

    Sources, translations and references are stored in the run directory, one line for
    each pair: bleu/STEP-…/{sources,hypotheses,references}.txt.

    Args:
      run_dir: the run directory of an encoder-decoder.
      step: step of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" bindings of data, mesh and batch size, which override the
        stored config.
      trust: whether the stored config may import code.
      beams: number of beams, see `fmjax.inference.beam_search`; 1 is greedy.
      length_penalty: length penalty; both defaults are those of Vaswani et al. 2017.
      max_tokens: maximum tokens of a translation; if None, 50 more than the longest
        source, limited by the model's length.

    Returns:
      "step"; "bleu", from 0 to 100; "bleu_signature", sacrebleu's signature;
      "bleu_pairs", the number of pairs; "bleu_files", the folder of the files.

    Raises:
      UserError: sacrebleu is not installed, the data has no pairs, or the model is not
        an encoder-decoder.
    """
    sacrebleu = _import_sacrebleu()
    folder = as_path(run_dir)
    experiment = run_dirs.stored_experiment(folder, trust, bindings)
    if experiment.data is None:
        raise UserError(
            f"{folder}: experiment.data = None (an imported run has no data); expected "
            "pairs to translate. Bind experiment.data=@data() and data.train=…."
        )
    pairs = _pairs(experiment)
    mesh_is_bound = any(binding.startswith("mesh.") for binding in bindings)
    mesh = experiment.mesh if mesh_is_bound else MeshConfig()
    run = load(folder, step=step, mesh=mesh, trust=trust)
    sources, references = map(list, zip(*pairs))
    size = experiment.train.eval_batch_size or experiment.train.batch_size
    hypotheses = _translate(run, sources, size, beams, length_penalty, max_tokens)
    options = f"beams{beams}-penalty{length_penalty:g}"
    digest = xxhash.xxh3_64_hexdigest("\n".join(sources + references).encode())[:8]
    # The digest separates the translations of different splits.
    place = folder / "bleu" / f"{run.step}-{options}-{digest}"
    if jax.process_index() == 0:
        place.mkdir(parents=True, exist_ok=True)
        for name, lines in (
            ("sources", sources),
            ("hypotheses", hypotheses),
            ("references", references),
        ):
            text = "".join(f"{line}\n" for line in lines)
            (place / f"{name}.txt").write_text(text, encoding="utf-8")
    metric = sacrebleu.metrics.BLEU()
    return {
        "step": run.step,
        "bleu": metric.corpus_score(hypotheses, [references]).score,
        "bleu_signature": str(metric.get_signature()),
        "bleu_pairs": len(pairs),
        "bleu_files": str(place),
    }


@configurable("bleu")
@dataclasses.dataclass(frozen=True)
class Bleu:
    """BLEU of translations of the validation split, as `fmjax eval --bleu` measures it.

    Attributes:
      beams: number of beams; 1 is greedy.
      length_penalty: as of `bleu_of_run`.
      max_tokens: maximum tokens of a translation; if None, 50 more than the longest
        source, limited by the model's length.
      every_validation: whether after each validation, or after the last step alone.
    """

    beams: int = runtime_field(4)
    length_penalty: float = runtime_field(0.6)
    max_tokens: int | None = runtime_field(None)
    every_validation: bool = runtime_field(False)

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError without pairs, an encoder-decoder, or one process."""
        check_one_process(self.gin_name, "bleu")
        _import_sacrebleu()
        try:
            _pairs(experiment)
        except UserError as error:
            where = f"experiment.evaluations has @{self.gin_name}()"
            raise UserError(f"{where}: {error}") from None

    def __call__(self, experiment: Experiment, at: EvaluationPoint) -> dict[str, float]:
        """{"bleu": from 0 to 100}."""
        if not (at.last or self.every_validation):
            return {}
        sources, references = map(list, zip(*_pairs(experiment)))
        train, run = experiment.train, current_run(experiment, at.variables, at.step)
        size = train.eval_batch_size or train.batch_size
        options = (self.beams, self.length_penalty, self.max_tokens)
        hypotheses = _translate(run, sources, size, *options)
        metric = _import_sacrebleu().metrics.BLEU()
        return {"bleu": metric.corpus_score(hypotheses, [references]).score}


def _pairs(experiment: Experiment) -> list[tuple[str, str]]:
    """Sources and references in single lines; a UserError if there are none."""
    model = experiment.objective.model
    if not isinstance(decoder_of(model), SourceDecoder):
        raise UserError(
            f"BLEU needs translations, which @{model.gin_name}() cannot generate; "
            "expected an encoder-decoder, such as @seq2seq()."
        )
    pairs = text_pairs(experiment.data)
    if not pairs:
        raise UserError("The validation split of experiment.data has no pairs.")
    return [(_line(source), _line(target)) for source, target in pairs]


def _translate(
    run: Run,
    sources: Sequence[str],
    batch_size: int,
    beams: int,
    length_penalty: float,
    max_tokens: int | None,
) -> list[str]:
    """Translates each source, in batches of sources of similar lengths."""
    limit = decoder_of(run.model, run.params).room(0)
    lengths = [len(encode(run, source)) for source in sources]
    if max_tokens is None:
        max_tokens = min(max(lengths) + _MORE_TOKENS, limit)
    order = sorted(range(len(sources)), key=lambda i: lengths[i])
    found = {}
    console = Console(stderr=True)
    silent = jax.process_index() != 0 or not console.is_terminal
    starts = range(0, len(order), batch_size)
    for start in track(starts, "translating", console=console, disable=silent):
        rows = order[start : start + batch_size]
        # The last batch is padded, since another batch size would compile again.
        filled = rows + rows[:1] * (batch_size - len(rows))
        texts = beam_search(
            run,
            [sources[i] for i in filled],
            beams=beams,
            length_penalty=length_penalty,
            max_tokens=max_tokens,
            longest_prompt=limit,
        )
        found |= {i: _line(best.text) for i, (best, *_) in zip(rows, texts)}
    return [found[i] for i in range(len(sources))]


def _line(text: str) -> str:
    """A text without line breaks, since files have one text in each line."""
    return " ".join(text.splitlines())


def _import_sacrebleu() -> types.ModuleType:
    try:
        import sacrebleu
    except ImportError as error:
        raise UserError(
            f"BLEU needs sacrebleu, which is not installed ({error}). Install it with "
            "pip install 'fmjax[eval]'."
        ) from error
    return sacrebleu

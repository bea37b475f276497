"""Back-translation of training texts: there and back again by trained runs."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.configurable import configurable, path
from fmjax.data.folders import digest_of
from fmjax.data.runtime.build_progress import text_progress
from fmjax.data.text.augment.rewriting import Rewriting, Variants, VariantsBuild
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError, require
from fmjax.inference.decoder import SourceDecoder, decoder_of
from fmjax.inference.generate import beam_search, generate
from fmjax.inference.load import load
from fmjax.inference.prompts import encode
from fmjax.inference.run import Run
from fmjax.inference.sampling import Sampling
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import MeshConfig
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.saved_state import parameter_digest, saved_steps
from fmjax.training.experiment import Experiment

# Maximum tokens of a translation beyond its source, as `fmjax.evaluation.bleu` has it.
_MORE_TOKENS = 50
_SHORTEST = 16


@configurable("back_translation")
@dataclasses.dataclass(frozen=True)
class BackTranslation(Rewriting):
    """Texts that runs have translated to another language and back, or paraphrased.

    Before training, the runs write `variants` of each training text (Sennrich et al.
    2016, arXiv:1511.06709; as an augmentation Xie et al. 2020, arXiv:1904.12848), once
    for all: they are kept in a cache. A text that is to be changed then becomes one of
    its variants. Texts that are longer than a run reads have none, and stay.

    All devices of a training translate together, a part of the texts each.

    Attributes:
      runs: run directories of encoder-decoders, trained on pairs or imported, each of
        which reads what the one before has written: there and back; or one that
        paraphrases. Their newest checkpoints are used. They are needed whenever the
        training starts.
      prefixes: what is put before the texts that each run reads, such as
        ('translate English to German: ', ''); none if empty.
      variants: texts that are written for each text. Those that are equal to it, or to
        each other, do not count.
      beams: number of beams of a beam search, at least `variants`: variants are its
        best texts by the first run, and those that follow write one for each. None
        draws them, which gives more different ones (Edunov et al. 2018,
        arXiv:1808.09381).
      temperature: of the softmax that tokens are drawn from, see `Sampling`.
      top_k: see `Sampling`.
      top_p: see `Sampling`.
      batch_size: texts that are translated at a time. Variants depend on it.
      seed: of the drawn tokens, from 0 to 2**16 - 1.
    """

    runs: str | tuple[str, ...] = path()
    prefixes: tuple[str, ...] = ()
    variants: int = 4
    beams: int | None = None
    temperature: float = 0.9
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        require(self, "runs", len(self.runs) > 0, "one run or more")
        count = len(self.run_dirs)
        valid = len(self.prefixes) in (0, count)
        require(self, "prefixes", valid, f"{count}, one for each run, or ()")
        require(self, "variants", self.variants >= 1, "at least 1")
        enough = self.beams is None or self.beams >= self.variants
        least = f"at least {self.gin_name}.variants = {self.variants}, or None"
        require(self, "beams", enough, least)
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "seed", 0 <= self.seed < 1 << 16, "0 to 65535")
        try:
            Sampling(self.temperature, self.top_k, self.top_p).check()
        except UserError as error:
            raise UserError(f"{self.gin_name}.{error}") from None

    @property
    def run_dirs(self) -> tuple[str, ...]:
        """The run directories, in their order."""
        return (self.runs,) if isinstance(self.runs, str) else self.runs

    @property
    def unit_size(self) -> int:
        """See `Rewriting`."""
        return self.batch_size

    def check(self) -> None:
        """Raises a UserError for a run that is missing or does not translate."""
        _ = self.key()

    def key(self) -> dict[str, Any]:
        """See `Rewriting`; of the runs, digests of their parameters and configs."""
        options = dataclasses.asdict(self) | {"runs": self._digests}
        return options

    @functools.cached_property
    def _digests(self) -> list[str]:
        return [_digest_of(as_path(run), self._binding) for run in self.run_dirs]

    @property
    def _binding(self) -> str:
        return f"{self.gin_name}.runs = {self.runs!r:.200}"

    def write(self, build: VariantsBuild) -> None:
        """See `Rewriting`; the first process stores what all have translated."""
        if not _agreed(build.is_built()):
            finished = build.finished()
            is_left = [number not in finished for number in range(len(build.units))]
            if numbers := np.flatnonzero(_agreed(is_left)).tolist():
                self._write_units(build, numbers)
        if jax.process_index() == 0:
            build.finish()

    def _write_units(self, build: VariantsBuild, numbers: Sequence[int]) -> None:
        units, first = build.units, jax.process_index() == 0
        total = sum(map(len, units))
        done = total - sum(len(units[number]) for number in numbers)
        chain = _Chain(self)
        title = f"Writing @{self.gin_name}() of texts"
        with (
            text_progress(title, total, done)
            if first
            else contextlib.nullcontext(lambda done: None)
        ) as update:
            for number in numbers:
                found = chain(units[number], number)
                if first:
                    build.store(number, found)
                update(done := done + len(units[number]))


class _Chain:
    """The runs of a `BackTranslation`, loaded on all devices."""

    def __init__(self, how: BackTranslation):
        """Loads each run once."""
        self._how = how
        every = how.run_dirs
        loaded = {run: load(run, mesh=MeshConfig()) for run in dict.fromkeys(every)}
        self._runs = [loaded[run] for run in every]
        self._prefixes = how.prefixes or ("",) * len(every)

    def __call__(self, texts: Sequence[str], number: int) -> Variants:
        """The variants of the texts of a unit, fewer where a text is too long."""
        how = self._how
        # Of each variant, the text of every row; None once it is too long or blank.
        columns = [list(texts)] * how.variants
        for position, run in enumerate(self._runs):
            read = [
                [self._prefixes[position] + t if t and t.strip() else None for t in c]
                for c in columns
            ]
            if how.beams is not None and position == 0:
                columns = _best(run, read[0], how, how.variants)
            elif how.beams is not None:
                columns = [_best(run, column, how, 1)[0] for column in read]
            else:
                columns = [
                    _drawn(run, column, how, (how.seed, number, position, variant))
                    for variant, column in enumerate(read)
                ]
        return [[text for text in row if text is not None] for row in zip(*columns)]


Column = list[str | None]


def _best(run: Run, texts: Column, how: BackTranslation, count: int) -> list[Column]:
    """The `count` best texts of each text by beam search, a column for each."""

    def search(filled: list[str], max_tokens: int) -> list[list[str | None]]:
        found = beam_search(
            run, filled, beams=how.beams, n_best=count, max_tokens=max_tokens
        )
        # There may be fewer hypotheses than beams.
        return [([each.text for each in row] + [None] * count)[:count] for row in found]

    rows = _of_readable(run, texts, how.batch_size, search)
    nothing = [None] * count
    return [list(c) for c in zip(*(nothing if r is None else r for r in rows))]


def _drawn(
    run: Run, texts: Column, how: BackTranslation, numbers: tuple[int, ...]
) -> Column:
    """A text drawn for each text, by a seed that follows from `numbers`."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1)

    def draw(filled: list[str], max_tokens: int) -> list[str]:
        return generate(
            run,
            filled,
            max_tokens=max_tokens,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            seed=int(seed),
        )

    return _of_readable(run, texts, how.batch_size, draw)


def _of_readable(run: Run, texts: Column, size: int, write) -> list:
    """What `write(texts, max_tokens)` gives for those that the run can read whole.

    The batch is filled up, since another size would compile again.
    """
    limit = decoder_of(run.model, run.params).room(0)
    lengths = [limit + 1 if text is None else len(encode(run, text)) for text in texts]
    rows = [row for row, length in enumerate(lengths) if length <= limit]
    found: list = [None] * len(texts)
    if not rows:
        return found
    longest = max(lengths[row] for row in rows)
    # Of few sizes, for the same reason.
    room = max(_SHORTEST, 1 << (longest - 1).bit_length()) + _MORE_TOKENS
    filled = [texts[row] for row in rows + rows[:1] * (size - len(rows))]
    for row, result in zip(rows, write(filled, min(room, limit))):
        found[row] = result
    return found


def _agreed(value: Any) -> np.ndarray:
    """The value that the first process has, in every process."""
    value = np.asarray(value)
    if jax.process_count() == 1:
        return value
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def _digest_of(run_dir: Path, binding: str) -> str:
    """Digest of a translating run's newest parameters and its config.

    Raises:
      UserError: it is no run directory, or of a model that does not translate.
    """
    try:
        experiment = run_dirs.stored_experiment(run_dir)
        steps = saved_steps(run_dir)
        if not steps:
            raise UserError(f"{run_dir} has no checkpoint.")
        parameters = parameter_digest(run_dir, steps[-1])
    except UserError as error:
        raise UserError(f"{binding}: {error}") from None
    _check_translates(run_dir, experiment, binding)
    config = run_dirs.config_file(run_dir).read_text(encoding="utf-8")
    return digest_of([parameters, config])


def _check_translates(run_dir: Path, experiment: Experiment, binding: str) -> None:
    objective, data = experiment.objective, experiment.data
    why = None
    if not isinstance(objective, Seq2SeqLM) or not isinstance(
        decoder_of(objective.model), SourceDecoder
    ):
        why = f"is of @{objective.gin_name}() of @{objective.model.gin_name}()"
    elif isinstance(data, Data) and data.corruption is not None:
        why = (
            f"was trained on text with data.corruption = @{data.corruption.gin_name}()"
        )
    elif experiment.labels:
        why = f"was trained to write the labels {experiment.labels!r:.100}"
    elif not (run_dir / run_dirs.TOKENIZER).is_dir():
        why = "has no tokenizer"
    if why is not None:
        raise UserError(
            f"{binding}: {run_dir} {why}; expected a run that translates, of "
            "@seq2seq_lm() on pairs of texts, or imported."
        )

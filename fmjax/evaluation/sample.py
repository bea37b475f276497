"""The evaluation `sample`: a text that the trained model generates."""

import dataclasses

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError
from fmjax.evaluation.current_run import current_run
from fmjax.inference.decoder import decoder_of
from fmjax.inference.generate import generate, with_prompt
from fmjax.inference.prompts import encode
from fmjax.training.experiment import EvaluationPoint, Experiment

MAX_TOKENS = 200
TEMPERATURE = 0.8


@configurable("sample")
@dataclasses.dataclass(frozen=True)
class Sample:
    """Generates text after the last step: up to 200 tokens at temperature 0.8.

    Attributes:
      prompt: the text to continue; None for no sample.
    """

    prompt: str | None = runtime_field(None)

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError if the model cannot continue the prompt."""
        if self.prompt is None:
            return
        model = experiment.objective.model
        try:
            decoder = decoder_of(model)
            if decoder.reads_images:
                raise UserError(f"@{model.gin_name}() needs an image.")
            length = len(
                encode(current_run(experiment, {"params": {}}, 0), self.prompt)
            )
            decoder.check(length, max_tokens=1)
        except UserError as error:
            raise UserError(
                f"sample.prompt = {self.prompt!r}: {error} Expected a prompt that the "
                "model can continue, or None."
            ) from None

    def __call__(self, experiment: Experiment, at: EvaluationPoint) -> dict[str, str]:
        """{"sample": text} after the last step, else {}.

        The text includes the prompt, except for an encoder-decoder.
        """
        if self.prompt is None or not at.last:
            return {}
        run = current_run(experiment, at.variables, at.step)
        room = decoder_of(run.model, run.params).room(len(encode(run, self.prompt)))
        (text,) = generate(
            run,
            [self.prompt],
            max_tokens=min(MAX_TOKENS, room),
            temperature=TEMPERATURE,
        )
        return {"sample": with_prompt(run, self.prompt, text)}

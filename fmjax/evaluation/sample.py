"""The evaluation `sample`: a text that the trained model writes."""

import dataclasses

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError
from fmjax.inference.decoder import decoder_of
from fmjax.inference.generate import generate, with_prompt
from fmjax.inference.load import Run
from fmjax.inference.prompts import encode
from fmjax.training.experiment import Experiment
from fmjax.training.validation import EvaluationPoint

MAX_TOKENS = 200
TEMPERATURE = 0.8


@configurable("sample")
@dataclasses.dataclass(frozen=True)
class Sample:
    """Continues a prompt after the last step: up to 200 tokens at temperature 0.8.

    Attributes:
      prompt: the text to continue; None prints none.
    """

    prompt: str | None = runtime_field(None)

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError where the model writes no text, or has no room for it."""
        if self.prompt is None:
            return
        model = experiment.objective.model
        try:
            decoder = decoder_of(model)
            if decoder.reads_images:
                raise UserError(f"@{model.gin_name}() writes about images.")
            length = len(encode(_run(experiment, {}, 0), self.prompt))
            decoder.check(length, max_tokens=1)
        except UserError as error:
            raise UserError(
                f"sample.prompt = {self.prompt!r}: {error} Expected a prompt that the "
                "model can continue, or None."
            ) from None

    def __call__(self, experiment: Experiment, at: EvaluationPoint) -> dict[str, str]:
        """{"sample": the prompt with its continuation}; nothing before the last step.

        An encoder-decoder's answer comes without the prompt.
        """
        if self.prompt is None or not at.last:
            return {}
        run = _run(experiment, at.variables["params"], at.step)
        room = decoder_of(run.model).room(len(encode(run, self.prompt)))
        (text,) = generate(
            run,
            [self.prompt],
            max_tokens=min(MAX_TOKENS, room),
            temperature=TEMPERATURE,
        )
        return {"sample": with_prompt(run, self.prompt, text)}


def _run(experiment: Experiment, params: dict, step: int) -> Run:
    return Run(
        config=experiment,
        model=experiment.objective.model,
        params=params,
        tokenizer=experiment.data.tokenizer(),
        step=step,
    )

"""What a model writes at the end of its training."""

from collections.abc import Callable

from fmjax.errors import UserError
from fmjax.inference.decoder import decoder_of
from fmjax.inference.generate import generate, with_prompt
from fmjax.inference.load import Run
from fmjax.training.experiment import Experiment


def sample(experiment: Experiment) -> Callable:
    """At the end: how the model continues train.sample_prompt.

    Raises:
      UserError: the model does not go on from text alone.
    """
    prompt = experiment.train.sample_prompt
    if prompt is None:
        return lambda step, variables, last: {}
    model = experiment.objective.model
    try:
        sees_images = decoder_of(model).reads_images
    except UserError as error:
        raise UserError(f"train.sample_prompt = {prompt!r}: {error}") from None
    if sees_images:
        raise UserError(
            f"train.sample_prompt = {prompt!r}: @{model.gin_name}() writes about "
            "images; expected None."
        )

    def evaluation(step: int, variables: dict, last: bool) -> dict:
        if not last:
            return {}
        run = Run(
            config=experiment,
            model=model,
            params=variables["params"],
            tokenizer=experiment.data.tokenizer(),
            step=step,
        )
        room = run.model.max_length - len(run.tokenizer.encode(prompt)) - 1
        text = generate(run, [prompt], max_tokens=min(200, room), temperature=0.8)[0]
        return {"sample": with_prompt(run, prompt, text)}

    return evaluation

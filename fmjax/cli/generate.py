"""The verb `generate`: texts, answers and captions of a run's model."""

import argparse
import pathlib

from fmjax.cli.adapters import takes_adapter, with_adapter
from fmjax.cli.arguments import Verbs, add_verb, takes_run, takes_sampling, takes_trust
from fmjax.errors import UserError


def add(verbs: Verbs) -> None:
    """Adds the verb `generate`."""
    sub = add_verb(
        verbs,
        "generate",
        "Continue prompts, answer them, or caption images.",
        _generate,
        computes=True,
    )
    takes_run(sub)
    takes_trust(sub)
    takes_adapter(sub, "adapters to generate with")
    sub.add_argument(
        "--prompt", action="append", help="text to continue or answer; may be repeated"
    )
    sub.add_argument(
        "--image",
        action="append",
        type=pathlib.Path,
        help="image to be captioned; may be repeated; with one prompt, or one for each",
    )
    takes_sampling(sub)
    sub.add_argument("--beams", type=int, help="number of beams of a beam search")
    sub.add_argument(
        "--length_penalty",
        type=float,
        help="length penalty of --beams (Wu et al. 2016); larger values favour longer "
        "texts; default: 0",
    )


def _generate(args: argparse.Namespace) -> None:
    from fmjax.inference import generate as texts
    from fmjax.inference.image_files import read_images
    from fmjax.inference.load import load

    if not (args.prompt or args.image):
        raise UserError("neither --prompt nor --image is given; expected at least one.")
    run = load(args.run_dir, step=args.step, trust=args.trust, dtype=args.dtype)
    if args.adapter is not None:
        run = with_adapter(run, args.adapter, args.trust)
    prompts, images = args.prompt or [""], None
    if args.image:
        images = read_images(run, args.image)
        prompts = prompts * len(images) if len(prompts) == 1 else prompts
    options = {
        "images": images,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "seed": args.seed,
        "beams": args.beams,
        "length_penalty": args.length_penalty,
    }
    for prompt, text in zip(prompts, texts.generate(run, prompts, **options)):
        print(texts.with_prompt(run, prompt, text))

"""Training-step time of every family, compared with `transformers` in PyTorch.

    python benchmarks/families.py [--families gpt2 bert] [--size cpu|gpu] [--compile]

For each family the model of `transformers` (extra `[parity]`) is made and its weights
are loaded into fmjax's, so that the losses of the first step must agree. Both then
train on the same batch, in alternating steps; medians are reported. MFU uses the same
formula for both; on a CPU the peak is that of the faster library's matrix product,
timed in the same alternation.

On a machine with other load, threads wait for each other at every product, most of all
PyTorch's. CPU seconds on a single core can be compared even then:

    taskset -c 0 python benchmarks/families.py --cpu-time

Speed of fmjax relative to PyTorch, measured this way with --size small on 2026-11-22,
on one of two cores of an EPYC with AVX-512 (float32, jax 0.10.2, torch 2.13,
transformers 5.23, eager):

    gpt2 1.45, opt 1.41, mistral 1.40, gemma2 1.34, qwen3 1.32, bloom 1.28, llama 1.25,
    qwen2 1.24, roberta 1.14, t5 1.14, deberta 1.13, bart 1.11, electra 1.07, bert 1.06,
    marian 1.03, mixtral 0.79

On a Xeon the day before, where MKL is faster, it was 0.7 to 0.8 for most families
(t5 2.1; mixtral, with `ragged_dot`, 0.30), and on both cores without other load:

    --size cpu --layers 3 --batch 4   vit 0.68, clip 0.75
    --size small                      vit 0.67, vit_mae 0.94, clip 0.95

The difference there is mostly the matrix product, for which XLA uses Eigen: for most
shapes of these sizes it reaches 0.7 to 0.85 of the FLOP/s of PyTorch's MKL. Mixtral was
at 0.48 with `ragged_dot`, whose time on CPUs is proportional to the number of experts
for the same tokens (4 to 16 experts: 18, 39, 95 ms). GPUs were not measured yet.
"""

import argparse
import dataclasses
import os
import platform
import time

import jax
import numpy as np
import torch
import transformers
from families_of_transformers import FAMILIES as LANGUAGE
from families_of_transformers import Family, Size
from flax import linen as nn
from image_families import IMAGE_FAMILIES
from rich.console import Console
from rich.table import Column, Table
from side_by_side import Peak, fmjax_step, take_turns, torch_step, train_flops

from fmjax.configurable import fields_of
from fmjax.models.layers.transformer import unstack_layers
from fmjax.models.layers.transformer_config import TransformerConfig

FAMILIES = LANGUAGE | IMAGE_FAMILIES
SIZES = {
    "smoke": Size(2, 48, 3, 128, 2, 32),
    "small": Size(4, 192, 3, 4096, 4, 128),
    "cpu": Size(6, 384, 6, 8192, 8, 256),
    "gpu": Size(12, 1024, 16, 32768, 32, 1024),
}


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    size = dataclasses.replace(
        SIZES[args.size], **{n: v for n, v in vars(args).items() if n in NUMBERS and v}
    )
    device = jax.devices()[0].device_kind
    console = Console(width=100)
    console.print(
        f"{device}, {platform.machine()}, {os.cpu_count()} CPUs, "
        f"jax {jax.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n{size}, {args.rounds} turns; ± half "
        "of what holds half of the steps; speed: how many times PyTorch's"
    )
    for name in args.families:
        console.print(measure(name, FAMILIES[name], size, args))


NUMBERS = [field.name for field in dataclasses.fields(Size)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    backend = "cpu" if jax.default_backend() == "cpu" else "gpu"
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=[*FAMILIES], metavar="NAME"
    )
    parser.add_argument("--size", choices=SIZES, default=backend)
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int, help=f"other {name} than the size's")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--unrolled", action="store_true", help="no scan over layers")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of all threads, instead of wall time"
    )
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    return parser.parse_args()


def measure(name: str, family: Family, size: Size, args) -> Table:
    """A table row for each contender; exits if the models' first losses differ."""
    theirs = family.make(size)
    batch = family.batch(size, np.random.default_rng(0))
    objective, params = family.ours(theirs, size)
    if args.unrolled:
        objective, params = unrolled(objective, params)
    contenders = {"fmjax": fmjax_step(objective, batch, params)}
    if not args.alone:
        contenders["PyTorch"] = torch_step(theirs, family.loss, batch)
    if args.compile:
        contenders["torch.compile"] = torch_step(
            family.make(size), family.loss, batch, compiled=True
        )
    peak = Peak()
    clock = time.process_time if args.cpu_time else time.perf_counter
    steps = {name: contender.step for name, contender in contenders.items()}
    timings = take_turns(steps | peak.steps, args.rounds, clock)
    flops = train_flops(objective, batch)
    read = family.read_by_a_step(batch)
    ours = timings["fmjax"]
    per_second = f"{family.unit}/s"
    columns = ("parameters", "first loss", "ms/step", per_second, "MFU", "speed")
    table = Table(Column(name, min_width=13), *columns)
    for contender, (_, parameters) in contenders.items():
        timing = timings[contender]
        seconds = timing.median
        table.add_row(
            contender,
            f"{parameters:,}",
            f"{timing.first_loss:.5f}",
            f"{1000 * seconds:.1f} ± {timing.spread / 2:.0%}",
            f"{read / seconds:,.0f}",
            f"{flops / seconds / peak.flops(timings):.1%}",
            "" if contender == "fmjax" else f"{seconds / ours.median:.2f}",
        )
    if args.alone:
        return table
    loss, expected = ours.first_loss, timings["PyTorch"].first_loss
    if abs(loss - expected) > family.tolerance * expected:
        raise SystemExit(f"{name}: first loss {loss}, that of PyTorch is {expected}")
    if contenders["fmjax"].parameters != contenders["PyTorch"].parameters:
        raise SystemExit(f"{name}: the models have not as many parameters")
    return table


def unrolled(objective, params: dict):
    """The objective and its parameters without a scan over layers."""
    model = without_scan(objective.model)
    return dataclasses.replace(objective, model=model), layers_apart(params)


def without_scan(part):
    """A model, or a field of one, with all stacks in it unrolled."""
    if isinstance(part, TransformerConfig):
        return dataclasses.replace(part, scan_layers=False)
    if not isinstance(part, nn.Module):
        return part
    names = [field.name for field in fields_of(type(part))]
    return part.clone(**{name: without_scan(getattr(part, name)) for name in names})


def layers_apart(params):
    """Parameters with scanned layers separated, for unrolled stacks."""
    if not isinstance(params, dict):
        return params
    if "layers" in params:
        num_layers = len(jax.tree.leaves(params["layers"])[0])
        return unstack_layers(params, num_layers)
    return {name: layers_apart(tree) for name, tree in params.items()}


if __name__ == "__main__":
    main()

"""Train steps, attention kernels and exact resume on one GPU, beside PyTorch.

    bash benchmarks/gpu.sh [--smoke] [--json FILE] [SECTION ...]

Prints a table as it goes and writes the figures as JSON, with chip, versions and date.
Needs neither TensorFlow nor a network. A section that fails is reported, and the others
go on. `--smoke` takes tiny sizes, for a rehearsal on a CPU.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

# JAX would preallocate three quarters of the memory, which PyTorch needs too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.attention_kernels.attend import attend
from fmjax.models.layers.attention_mask import AttentionMask, self_attention
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.contrast import softmax_contrast
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.chips import peak_flops
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.sharding.xla_options import xla_options
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

OPTIMIZER = AdamW(schedule=Constant(learning_rate=1e-4, warmup_steps=0))
ROUNDS, STEPS = 5, 4  # timed turns of each contender, and steps of a turn
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a batch to train it on.

    Attributes:
      objective: with the model.
      batch: random arrays.
      units: tokens or images of the batch.
    """

    objective: Any
    batch: Arrays
    units: int


def text_case(config: TransformerConfig, vocab: int, rows: int, length: int, **fields):
    """A decoder on random tokens."""
    ids = np.random.default_rng(0).integers(0, vocab, (rows, length + 1))
    ids = ids.astype(np.int32)
    batch = {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": np.ones((rows, length), np.float32),
    }
    model = GPT(config, vocab, length, **fields)
    return Case(CausalLM(model), batch, rows * length)


def gpt2(layers: int, width: int, heads: int, rows: int, smoke: bool, **fields) -> Case:
    """GPT-2 (Radford et al. 2019) on rows of 1024 tokens."""
    if smoke:
        layers, width, heads, rows = 2, 64, 2, 2
    config = TransformerConfig(layers, width, heads, **fields)
    vocab, length = (257, 64) if smoke else (50257, 1024)
    return text_case(config, vocab, rows, length)


def llama8b(layers: int, rows: int, smoke: bool) -> Case:
    """Llama 3 8B (Dubey et al. 2024), with some of its 32 layers, at 4096 tokens."""
    width, heads, groups, hidden, vocab, length = 4096, 32, 8, 14336, 128256, 4096
    if smoke:
        layers, width, heads, groups, hidden, vocab, length = 2, 64, 4, 2, 96, 257, 64
    config = TransformerConfig(
        layers,
        width,
        heads,
        groups,
        mlp_dim=hidden,
        norm="rmsnorm",
        activation="silu",
        gated_mlp=True,
        bias=False,
        rotary=Rotary(500000.0),
        remat="attention",
    )
    fields = {"positions": "none", "tie_embeddings": False}
    return text_case(config, vocab, rows, length, **fields)


def vit(rows: int, smoke: bool) -> Case:
    """ViT-B/16 (Dosovitskiy et al. 2021) on 224 × 224 pixels."""
    layers, width, heads, size = (2, 64, 2, 32) if smoke else (12, 768, 12, 224)
    rows = 2 if smoke else rows
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.normal(size=(rows, size, size, 3)).astype(np.float32),
        "labels": rng.integers(0, 1000, rows).astype(np.int32),
        "weights": np.ones(rows, np.float32),
    }
    model = ViT(TransformerConfig(layers, width, heads), size, 16, num_classes=1000)
    return Case(Classification(model), batch, rows)


class Trainer:
    """The train step of `fmjax train` on one device, with the platform's options."""

    def __init__(self, case: Case):
        """Makes the state and compiles the step."""
        config = MeshConfig()
        self._mesh, rules = config.build(jax.devices()[:1]), config.all_rules
        self._on_mesh = lambda: on_mesh(self._mesh, rules)
        plan = plan_state(case.objective, OPTIMIZER, self._mesh, rules, train_steps=100)
        step = make_train_step(
            case.objective,
            plan,
            lambda s: 1e-4,
            self._mesh,
            rules,
            seed=0,
            compiler_options=xla_options(jax.devices()[0], ()),
        )
        rows = len(next(iter(case.batch.values())))
        self._batch = global_batch(case.batch, batch_sharding(self._mesh, rules), rows)
        start = time.perf_counter()
        with self._on_mesh():
            self._compiled = step.lower(plan.shapes, self._batch).compile()
        self.compile_s = time.perf_counter() - start
        self._state = plan.init()
        found = self._compiled.memory_analysis()
        self.predicted_bytes = (
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
            + found.temp_size_in_bytes
        )
        params = plan.shapes.params
        rows_of = {name: x.shape[1:] for name, x in case.batch.items()}
        self.flops = rows * case.objective.train_flops_per_row(params, rows_of)

    def turn(self) -> float:
        """Seconds of a step, of `STEPS` in a row."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self._state, metrics = self._compiled(self._state, self._batch)
        if not np.isfinite(float(metrics["loss"])):
            raise ValueError("the loss is not finite")
        return (time.perf_counter() - start) / STEPS


def torch_gpt2(case: Case, smoke: bool) -> Callable[[], float]:
    """A turn of transformers' GPT-2 under torch.compile, of the same size."""
    import torch
    import transformers

    c = case.objective.model.transformer
    device = "cpu" if smoke else "cuda"
    config = transformers.GPT2Config(
        vocab_size=case.objective.model.vocab_size,
        n_positions=case.objective.model.max_length,
        n_embd=c.embed_dim,
        n_layer=c.num_layers,
        n_head=c.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens, targets = (
        torch.tensor(case.batch[name], device=device).long()
        for name in ("tokens", "targets")
    )

    @torch.compile
    def loss_of(tokens, targets):
        with torch.autocast(device, torch.bfloat16):
            logits = model(tokens).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten()
        )

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        loss.item()
        return (time.perf_counter() - start) / STEPS

    return turn


def in_turns(turns: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Medians of interleaved turns, after one of warm-up."""
    seconds = {name: [] for name in turns}
    for round_ in range(ROUNDS + 1):
        for name, turn in turns.items():
            found = turn()
            if round_:
                seconds[name].append(found)
    return {name: statistics.median(found) for name, found in seconds.items()}


def of_step(name: str, case: Case, **others: Callable[[], float]) -> Iterator[dict]:
    """Figures of a train step, and of others that take turns with it."""
    trainer = Trainer(case)
    found = in_turns({"fmjax": trainer.turn} | others)
    stats = jax.devices()[0].memory_stats() or {}
    peak = peak_flops(jax.devices()[0])
    for contender, seconds in found.items():
        figures = {
            "case": name,
            "contender": contender,
            "ms": 1e3 * seconds,
            "units_per_s": case.units / seconds,
            "ratio": seconds / found["fmjax"],
        }
        if contender == "fmjax":
            figures |= {
                "mfu": peak and trainer.flops / seconds / peak,
                "compile_s": trainer.compile_s,
                "predicted_gib": trainer.predicted_bytes / 2**30,
                # Of the process so far: sections with the most memory come last.
                "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
            }
        yield figures


def gpt2_124m(smoke: bool) -> Iterator[dict]:
    """GPT-2 124M beside transformers with torch.compile."""
    case = gpt2(12, 768, 12, 32, smoke)
    yield from of_step("GPT-2 124M", case, torch=torch_gpt2(case, smoke))


def gpt2_xl(smoke: bool) -> Iterator[dict]:
    """GPT-2 1.5B."""
    yield from of_step("GPT-2 1.5B", gpt2(48, 1600, 25, 8, smoke, remat="attention"))


def llama(smoke: bool) -> Iterator[dict]:
    """The shape of Llama 3 8B, with as many layers as fit."""
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    # Parameters, moments and gradients of a layer, 218 million weights, take 3.5 GB;
    # embedding and head as much as five layers.
    layers = max(2, int(memory / 3.5e9) - 9)
    yield from of_step(f"Llama 8B, {layers} layers", llama8b(layers, 2, smoke))


def vit_b16(smoke: bool) -> Iterator[dict]:
    """ViT-B/16."""
    yield from of_step("ViT-B/16", vit(128, smoke))


def attention(smoke: bool) -> Iterator[dict]:
    """Attention kernels, forwards and backwards."""
    lengths = (128,) if smoke else (1024, 4096)
    for length, case in itertools.product(lengths, ("", "packed ", "biased ")):
        kernels = ["xla", "triton"]
        if case != "biased ":
            kernels += ["blockwise", *["cudnn"] * (not smoke)]
        shape = (1 if smoke else 16384 // length, length, 16, 64)
        # Documents of a quarter of a row.
        ids = jnp.broadcast_to(jnp.arange(length) * 4 // length, shape[:2])
        mask = self_attention(True, ids if case == "packed " else None)
        places, table = jnp.arange(length)[None], jnp.linspace(-1, 1, 32 * 16)
        buckets = {"buckets": RelativeBuckets(), "causal": True}  # T5's
        bias = DistanceBias(places, places, table=table.reshape(32, 16), **buckets)
        bias = bias if case == "biased " else None
        qkv = [
            jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(3)
        ]
        gradients = {n: gradients_of_attention(n, mask, bias) for n in kernels}
        want = [np.float32(x) for x in gradients["xla"](*qkv)]
        for kernel, gradient in gradients.items():
            got = [np.float32(x) for x in gradient(*qkv)]
            off = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got, want)]
            if max(off) > 0.05:
                raise ValueError(f"{kernel} at {length}: gradients are off by {off}")
        turns = {name: turn_of(gradient, qkv) for name, gradient in gradients.items()}
        found = in_turns(turns)
        for kernel, seconds in found.items():
            yield {
                "case": f"attention, {length} {case}tokens",
                "contender": kernel,
                "ms": 1e3 * seconds,
                "ratio": seconds / found["xla"],
            }


def gradients_of_attention(
    kernel: str, mask: AttentionMask, bias: DistanceBias | None
) -> Callable:
    """The gradients of a kernel, compiled."""

    def loss(q, k, v):
        out = attend(q, k, v, mask, bias=bias, implementation=kernel)
        return (out.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)))


def turn_of(function: Callable, arguments: list) -> Callable[[], float]:
    """A turn of a function: seconds of a call, of `STEPS` in a row."""

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            out = function(*arguments)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / STEPS

    return turn


def contrast(smoke: bool) -> Iterator[dict]:
    """Errors of contrastive logits at a scale of 100, against float64."""
    del smoke
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(256, 512)) for _ in "xy")
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    logits = 100 * x @ y.T
    want = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    got, _ = jax.jit(softmax_contrast, static_argnums=4)(
        jnp.float32(x), jnp.float32(y), jnp.float32(100), jnp.ones(256, bool), 2
    )
    error = float(np.abs(np.float64(got) - want).max())
    if error > 1e-3:
        raise ValueError(f"contrastive losses are off by {error}")
    yield {
        "case": "contrastive loss, largest error",
        "contender": "fmjax",
        "error": error,
    }


def resume(smoke: bool) -> Iterator[dict]:
    """A run in two parts has the bits of one, with deterministic kernels."""
    root = pathlib.Path(__file__).parents[1]
    flags = (
        "" if smoke else "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
    )
    environment = os.environ | {"XLA_FLAGS": flags}

    def train(folder, steps):
        subprocess.run(
            [
                *(sys.executable, "-m", "fmjax", "train"),
                str(root / "tests" / "e2e" / "tiny.gin"),
                f"TEXT_FILE={textwrap.__file__}",
                *("train.checkpoint_every=10", f"train.steps={steps}"),
                *("--run_dir", str(folder)),
            ],
            check=True,
            env=environment,
            cwd=root,
            stdout=subprocess.DEVNULL,
        )

    def digest(folder):
        from fmjax.inference.load import load

        params = load(folder).variables["params"]
        return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(params))

    with tempfile.TemporaryDirectory() as folder:
        whole, parts = pathlib.Path(folder, "whole"), pathlib.Path(folder, "parts")
        train(whole, 20)
        train(parts, 10)
        train(parts, 20)
        if digest(whole) != digest(parts):
            raise ValueError("a run in two parts ended with other bits")
    yield {"case": "resume", "contender": "fmjax", "exact": True}


SECTIONS = {
    "resume": resume,
    "contrast": contrast,
    "attention": attention,
    "vit_b16": vit_b16,
    "gpt2_124m": gpt2_124m,
    "gpt2_xl": gpt2_xl,
    "llama": llama,
}


def versions() -> dict[str, str]:
    """Chip, versions and date."""
    import torch

    return {
        "chip": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> int:
    """Runs the sections; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=[*SECTIONS])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args()
    unknown = set(args.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"expected of {', '.join(SECTIONS)}; found {sorted(unknown)}")
    report = versions() | {"figures": [], "failures": {}}
    print(report["chip"], "jax", report["jax"], "torch", report["torch"], flush=True)
    for name in args.sections:
        start = time.perf_counter()
        try:
            for figures in SECTIONS[name](args.smoke):
                report["figures"].append(figures)
                said = (
                    f"{key} {value:.4g}"
                    if isinstance(value, float)
                    else f"{key} {value}"
                    for key, value in figures.items()
                    if value is not None
                )
                print("  ".join(said), flush=True)
        except Exception:
            report["failures"][name] = traceback.format_exc()
            print(f"{name} FAILED\n{report['failures'][name]}", flush=True)
        print(f"({name}: {time.perf_counter() - start:.0f} s)", flush=True)
        jax.clear_caches()
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(report["failures"]))


if __name__ == "__main__":
    sys.exit(main())

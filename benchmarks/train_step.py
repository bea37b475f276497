"""A GPT training step beside PyTorch's, in one process, interleaved, medians.

    python benchmarks/train_step.py [--rounds 10] [--layers 6 --width 384 --heads 6]

Both train a GPT-2 of the same sizes (transformers' GPT2LMHeadModel under torch.compile
with fused AdamW; extra `[parity]`) on the same random tokens: forward, backward,
clipping and AdamW. Float32 on CPUs; on a GPU both compute in bfloat16 over float32
parameters. Ratios between the two carry over between machines; seconds do not.
"""

import argparse
import platform
import statistics
import time

import jax
import numpy as np

from fmjax.models.gpt import GPT
from fmjax.models.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step
from fmjax.training.throughput import peak_flops


def main() -> None:
    args = arguments()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, args.vocab, (args.batch, args.length + 1)).astype(np.int32)
    contenders = {"fmjax": fmjax_step(args, ids)}
    if not args.alone:
        contenders["torch eager"] = torch_step(args, ids, compiled=False)
        contenders["torch.compile"] = torch_step(args, ids, compiled=True)
    for step in contenders.values():
        step()
        step()
    seconds = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, step in contenders.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    tokens = args.batch * args.length
    device = jax.devices()[0].device_kind
    print(f"{device}, {platform.machine()}, jax {jax.__version__}: {vars(args)}")
    reference = statistics.median(seconds["fmjax"])
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        print(
            f"{name:14s} {median:8.4f} s/step  {tokens / median:12,.0f} tokens/s  "
            f"spread {spread:.0%}  fmjax is {median / reference:.2f} times as fast"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--scan", action="store_true", help="scan over layers")
    parser.add_argument("--alone", action="store_true", help="without torch")
    return parser.parse_args()


def fmjax_step(args, ids):
    config = TransformerConfig(
        num_layers=args.layers,
        embed_dim=args.width,
        num_heads=args.heads,
        scan_layers=args.scan,
    )
    objective = CausalLM(GPT(config, args.vocab, args.length))
    optimizer = AdamW(schedule=Constant(learning_rate=1e-4, warmup_steps=0))
    mesh_config = MeshConfig()
    mesh, rules = mesh_config.build(), mesh_config.all_rules
    plan = plan_state(objective, optimizer, mesh, rules, train_steps=100)
    step = make_train_step(
        objective, plan, lambda s: optimizer.learning_rate(s, 100), mesh, rules, seed=0
    )
    batch = {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": np.ones((args.batch, args.length), np.float32),
    }
    batch = global_batch(batch, batch_sharding(mesh, rules), args.batch)
    state = plan.init()
    rows = {"tokens": (args.length,)}
    flops = args.batch * objective.train_flops_per_row(plan.shapes.params, rows)
    peak = peak_flops()
    print(f"{flops / 1e12:.3f} TFLOP a step; peak {peak or 'unknown'}")

    def run() -> None:
        nonlocal state
        with on_mesh(mesh, rules):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    return run


def torch_step(args, ids, *, compiled: bool):
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.GPT2Config(
        vocab_size=args.vocab,
        n_positions=args.length,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.tensor(ids[:, :-1], dtype=torch.long, device=device)
    targets = torch.tensor(ids[:, 1:], dtype=torch.long, device=device)

    def loss_of(tokens, targets):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(tokens).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten()
        )

    if compiled:
        loss_of = torch.compile(loss_of)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(tokens, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()

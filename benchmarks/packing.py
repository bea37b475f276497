"""Tokens a second of conversations: several in a row, and a row for each.

    python benchmarks/packing.py ../shared/data/eval/gsm8k [--length 512] [--rounds 20]

The same step is trained on batches of the same shape, in turn; medians are reported. A
token counts where it is of a conversation, trained or not. The vocabulary, of 4096
pieces, is trained on what is said.
"""

import argparse
import itertools
import tempfile

import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import fmjax_step, take_turns

from fmjax.data.sources.conversation_files import ConversationFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import SentencePiece
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM


def main() -> None:
    args = arguments()
    source = ConversationFiles(args.records, chat_template="plain")
    with tempfile.TemporaryDirectory() as cache:
        task = TextTask(source, SentencePiece(vocab_size=4096), name="chats")
        kinds = {
            rows: Data(task, length=args.length, rows=rows, cache_dir=cache)
            for rows in ("packed", "documents")
        }
        read, steps, tokens = {}, {}, {}
        for rows, data in kinds.items():
            data.prepare()
            read[rows] = first_batches(data, args.rows)
            used = [int((b["segment_ids"] > 0).sum()) for b in read[rows]]
            tokens[rows] = float(np.mean(used))
        objective = CausalLM(model(args, data.tokenizer().vocab_size))
        for rows, batches in read.items():
            steps[rows] = fmjax_step(objective, batches[0]).step
        timings = take_turns(steps, args.rounds)
    table = Table("rows", "conversations a row", "padding", "s/step", "tokens/s")
    for rows, timing in timings.items():
        counts = [b["segment_ids"].max(-1).mean() for b in read[rows]]
        padding = 1 - tokens[rows] / (args.rows * args.length)
        table.add_row(
            rows,
            f"{np.mean(counts):.2f}",
            f"{padding:.1%}",
            f"{timing.median:.3f} ± {timing.spread / 2:.0%}",
            f"{tokens[rows] / timing.median:,.0f}",
        )
    Console(width=100).print(table)
    rates = {rows: tokens[rows] / timing.median for rows, timing in timings.items()}
    print(f"packed / documents = {rates['packed'] / rates['documents']:.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", help="as conversation_files.files")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each")
    return parser.parse_args()


def model(args: argparse.Namespace, vocab_size: int) -> GPT:
    """A small Llama, in float32."""
    config = TransformerConfig(
        num_layers=args.layers,
        embed_dim=args.width,
        num_heads=args.width // 32,
        norm="rmsnorm",
        gated_mlp=True,
        activation="silu",
        bias=False,
        rotary=Rotary(10_000.0),
        scan_layers=False,
        dtype="float32",
    )
    return GPT(config, vocab_size=vocab_size, max_length=args.length, positions="none")


def first_batches(data: Data, rows: int) -> list[dict[str, np.ndarray]]:
    """The first 100 training batches."""
    batches = data.train_batches(rows, range(rows), seed=0)
    try:
        return list(itertools.islice(batches, 100))
    finally:
        batches.close()


if __name__ == "__main__":
    main()

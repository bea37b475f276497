"""Import holds little of a model in memory, export little more than it once."""

import subprocess
import sys

import pytest
import torch
import transformers

# Prints by how many bytes memory grew at most, that of mapped files apart, while the
# arguments ran as a command. What is imported first is not counted.
MEASURE = r"""
import re, sys, threading
import jax
import fmjax.interop
from fmjax.cli.main import main

def held():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status.read())[1])

def watch():
    while not done.wait(0.002):
        peaks.append(held())

jax.devices()
peaks, done = [held()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
code = main(sys.argv[1:])
done.set()
watcher.join()
print(max(peaks) - peaks[0])
sys.exit(code)
"""


@pytest.mark.slow
def test_a_model_is_never_held_whole_by_an_import(tmp_path):
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=4096,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=16,
            num_attention_heads=8,
        )
    )
    size = 4 * model.num_parameters()
    assert size > 250e6
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50MB")
    pickled = tmp_path / "pickled"
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    del model
    grown = most_held("import", tmp_path / "theirs", tmp_path / "run")
    # A tensor, for arrays are in mapped files; and 60 MB of libraries.
    assert grown <= 0.4 * size
    half = most_held("import", pickled, tmp_path / "half", "--dtype", "bfloat16")
    assert half <= 0.4 * size
    # One kind of tensor at a time, but several times over while it is read.
    assert most_held("export", tmp_path / "run", tmp_path / "ours") <= 1.3 * size


def most_held(*command) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return int(done.stdout.splitlines()[-1])

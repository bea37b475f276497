"""Captions written with caches against the model run from scratch for every token."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import linen as nn

from fmjax.cli.main import main
from fmjax.config.render import render
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.tokenizers.tokenizers import CharacterTokenizer
from fmjax.errors import UserError
from fmjax.inference.beam_search import beam_search_tokens
from fmjax.inference.generate import beam_search, generate, with_prompt
from fmjax.inference.image_files import read_images
from fmjax.inference.run import Run
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.caption_decoder import CaptionDecoder
from fmjax.models.multimodal.coca import CoCa
from fmjax.models.vision.vit import ViT
from fmjax.objectives.contrastive_captioning import ContrastiveCaptioning
from fmjax.run import directory as run_dirs
from fmjax.training.checkpoint.checkpoints import save_model
from fmjax.training.experiment import Experiment

GREEDY = Sampling(temperature=0.0)
LENGTH = 20
BLOCKS = TransformerConfig(1, 20, 4, dtype="float32")
IMAGES = np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype("f")
PROMPTS = ([1, 2, 0], [2] * 9, [1])


@functools.cache
def build(vocab_size, start_id=None):
    model = CoCa(
        image=ViT(BLOCKS, image_size=4, patch_size=2, pooling="none"),
        text=CaptionDecoder(
            BLOCKS, BLOCKS, vocab_size, LENGTH, start_id, vocab_multiple=8
        ),
        caption_queries=3,
    )
    tokens = np.zeros((3, 1), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, tokens)["params"]
    rng = np.random.default_rng(6)

    def draw(path, leaf):
        # Offsets small, so that texts differ by positions and images.
        name = path[-1].key
        std = 0.1 if name.endswith("bias") else 0.8
        return jnp.float32(rng.normal(name == "scale", std, leaf.shape))

    return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, image, tokens):
    return model.apply({"params": params}, image[None], tokens[None])["logits"][0]


def log_probs(model, params, row, ids):
    """Of the next token, everything read again without a cache."""
    # What is behind a position cannot change it.
    tokens = np.zeros(LENGTH, np.int32)
    tokens[: len(ids)] = ids
    out = logits(model, params, IMAGES[row], tokens)[len(ids) - 1]
    return np.asarray(jax.nn.log_softmax(out), np.float64)


def test_cached_captions_are_those_from_scratch():
    model, params = build(30)
    written = generate_tokens(
        model, params, PROMPTS, images=IMAGES, max_tokens=8, sampling=GREEDY
    )
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(log_probs(model, params, row, ids).argmax()))
        assert written[row] == ids[len(prompt) :]
    same = [PROMPTS[0]] * 3
    written = generate_tokens(
        model, params, same, images=IMAGES, max_tokens=8, sampling=GREEDY
    )
    assert len(set(map(tuple, written))) == 3, "images make no difference"
    assert min(len(set(ids)) for ids in written) > 2


def test_enough_beams_find_all_captions_in_order():
    model, params = build(3)
    found = beam_search_tokens(
        model, params, PROMPTS, images=IMAGES, max_tokens=3, beams=27, n_best=27
    )
    for row, prompt in enumerate(PROMPTS):
        scores = {}
        for ids in itertools.product(range(3), repeat=3):
            read = [
                log_probs(model, params, row, [*prompt, *ids[:i]])[ids[i]]
                for i in range(3)
            ]
            scores[ids] = sum(read)
        expected = sorted(scores, key=scores.get, reverse=True)
        assert [tuple(h.tokens) for h in found[row]] == expected
        best = scores[expected[0]]
        np.testing.assert_allclose(found[row][0].score, best, atol=1e-4)


def test_files_are_captioned_as_their_pictures(tmp_path):
    tokenizer = CharacterTokenizer(" abcdefghijklmnopqrstuvwxyz", ends=True)
    model, params = build(30, start_id=1)
    preprocessing = Preprocessing(size=4)
    objective = ContrastiveCaptioning(model)
    config = Experiment(objective, preprocessing=preprocessing)
    run = Run(config, model, params, tokenizer, 0)
    pixels = np.random.default_rng(1).integers(0, 255, (2, 9, 7, 3), np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    pictures = [PIL.Image.fromarray(array) for array in pixels]
    for picture, file in zip(pictures, files):
        picture.save(file)
    images = read_images(run, files)
    np.testing.assert_array_equal(images, run.preprocess(pictures))

    options = {"images": images, "max_tokens": 8}
    texts = generate(run, ["a ", "a "], temperature=0.0, **options)
    ids = generate_tokens(
        model,
        params,
        [[1, *tokenizer.encode("a ")]] * 2,
        images=images,
        max_tokens=8,
        sampling=GREEDY,
        eos_id=1,
        padding_id=0,
        vocab_size=tokenizer.vocab_size,
    )
    assert texts == [tokenizer.decode(row) for row in ids]
    assert with_prompt(run, "a ", "dog") == "a dog"
    # One beam is greedy.
    assert texts == generate(run, ["a ", "a "], beams=1, **options)

    with pytest.raises(UserError, match="0 images for 1 prompts"):
        generate(run, [""])
    with pytest.raises(UserError, match="2 images for 1 prompts"):
        generate(run, [""], images=images)
    files[0].write_bytes(b"none")
    for file in (files[0], tmp_path / "missing.png"):
        with pytest.raises(UserError, match=rf"{file.name}.* expected an image"):
            read_images(run, [file])


def test_the_command_writes_as_much_as_fits_the_model(tmp_path, capsys):
    tokenizer = CharacterTokenizer(" abcdefghijklmnopqrstuvwxyz", ends=True)
    model, params = build(30, start_id=1)
    objective = ContrastiveCaptioning(model)
    config = Experiment(objective, preprocessing=Preprocessing(size=4))
    run_dir, file = tmp_path / "run", tmp_path / "a.png"
    run_dirs.write(run_dir, render(config))
    tokenizer.save(run_dir / run_dirs.TOKENIZER)
    save_model(run_dir, params)
    PIL.Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(file)
    command = ["generate", str(run_dir), "--image", str(file), "--prompt", "a "]
    command += ["--temperature", "0"]

    assert main(command) == 0
    written = capsys.readouterr().out
    run = Run(config, model, params, tokenizer, 0)
    images, fits = read_images(run, [file]), LENGTH - len("a ")
    options = {"images": images, "temperature": 0.0}
    (text,) = generate(run, ["a "], max_tokens=fits, **options)
    assert written == f"a {text}\n"
    assert len(text) == fits, "it ended by itself, which shows nothing"
    (found,) = beam_search(run, ["a "], images=images, beams=2)
    (same,) = beam_search(run, ["a "], images=images, beams=2, max_tokens=fits)
    assert found == same

    assert main([*command, "--max_tokens", str(fits + 1)]) == 2
    assert "max_length = 21" in capsys.readouterr().err
    with pytest.raises(UserError, match="max_length = 21"):
        generate(run, ["a" * 20], **options)

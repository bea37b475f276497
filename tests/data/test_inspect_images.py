"""`fmjax data inspect` on images: what it says, and the picture it draws."""

import numpy as np
import pytest
from image_files import encoded
from PIL import Image

from fmjax.cli import main as cli
from fmjax.config.load import load_data

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(20):
            content = encoded(Image.new("RGB", (20, 14), colour))
            (folder / name / f"{i}.png").write_bytes(content)
    (folder / "red" / "broken.png").write_bytes(b"broken")
    return [f"IMAGE_FOLDER={folder}", "images.size=16"]


def test_a_report_and_a_contact_sheet(pictures, tmp_path, capsys):
    file = tmp_path / "look.png"
    command = ["data", "inspect", "data/image_folder.gin", *pictures]
    assert cli.main([*command, "--picture", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "red/broken.png cannot be decoded" in said
    assert "images [16, 16, 3], weights [], labels []" in said
    assert "2 classes: blue, red" in said
    assert " images per second" in said
    # Eight lines of 64 × 64 tiles, their text above them: the image and its readings.
    sheet = np.asarray(Image.open(file))
    for line in range(8):
        tiles = sheet[line * 84 + 16 :][:64, 4:].reshape(64, -1, 3)
        columns = [tiles[:, c * 68 : c * 68 + 64] for c in range(8)]
        want = COLOURS["blue" if line < 4 else "red"]
        for tile in columns:
            assert (tile == want).all()
    assert (sheet[:16] < 128).any()  # The first line's text.


def test_what_cannot_be_drawn_is_refused(pictures, tmp_path, capsys):
    command = ["data", "inspect", "data/image_folder.gin", *pictures]
    assert cli.main([*command, "--picture", str(tmp_path / "look.nothing")]) == 2
    assert "look.nothing" in capsys.readouterr().err
    cache = tmp_path / "cache"
    stream = ["images.streaming=True", f"images.cache_dir='{cache}'"]
    assert cli.main([*command, *stream, "--picture", "look.png"]) == 2
    assert "but images.streaming = True; expected" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("text " * 400)
    text = ["data", "inspect", "data/text_files.gin", f"TEXT_FILE={tmp_path}/a.txt"]
    text += ["text_task.tokenizer=@bytes()", f"data.cache_dir='{cache}'"]
    assert cli.main([*text, "--picture", str(tmp_path / "look.png")]) == 2
    assert "--picture needs a config of images" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.parametrize("name", ["cifar10", "digits", "digits_captions"])
def test_the_other_configs_are_images(name):
    data = load_data(name, ["TFDS_DIR=/nowhere"] * (name == "cifar10"))
    assert data.preprocessing.size in (8, 32)

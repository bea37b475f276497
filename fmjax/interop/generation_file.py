"""What an imported model's files say of special ids and generation, for its export.

Nothing else reads it here: tokenizers name their specials, and verbs take options.
"""

import json
from pathlib import Path
from typing import Any

from fmjax.interop.options import GENERATION, Options

FILE = "generation.json"
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


def keep(hf_dir: Path, run_dir: Path) -> None:
    """Stores it in the directory of a run, by the names of a saved model's files.

    Raises:
      UserError: generation_config.json is no JSON object.
    """
    config = Options.read(hf_dir / CONFIG).all()
    told = {CONFIG: {name: v for name, v in config.items() if name in GENERATION}}
    if (hf_dir / GENERATION_CONFIG).is_file():
        told[GENERATION_CONFIG] = Options.read(hf_dir / GENERATION_CONFIG).all()
    (run_dir / FILE).write_text(_text(told), encoding="utf-8")


def write_back(run_dir: Path, hf_dir: Path) -> dict[str, Any] | None:
    """Writes the generation_config.json that there was.

    Returns:
      config.json's options; None for a run that was not imported.

    Raises:
      UserError: the run's file is damaged.
    """
    if not (run_dir / FILE).is_file():
        return None
    told = Options.read(run_dir / FILE)
    generation = told.take(GENERATION_CONFIG, dict, None)
    if generation is not None:
        text = _text(generation)
        (hf_dir / GENERATION_CONFIG).write_text(text, encoding="utf-8")
    return told.take(CONFIG, dict, {})


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"

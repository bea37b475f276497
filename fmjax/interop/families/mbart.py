"""mBART (Liu et al. 2020), Pegasus (Zhang et al. 2020) and M2M-100 (Fan et al. 2021).

They are BART with the norms before the layers, and with other positions.
"""

from typing import Any

import numpy as np
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.interop.entries import Values
from fmjax.interop.families.bart import (
    COPIES,
    OPTIONAL,
    ROWS,
    SINUSOIDS,
    TABLES,
    entries,
    start,
)
from fmjax.interop.families.decoder_head import ALWAYS_TIED, architectures, read_twice
from fmjax.interop.family import Family
from fmjax.interop.options import Options
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.objectives.seq2seq_lm import Seq2SeqLM


class StartId:
    """The decoder's first token; in older files of mBART, which lack it, EOS."""

    fields = ("start_id",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        start = options.take("decoder_start_token_id", int, None)
        end = options.peek("eos_token_id", 2)
        return {"start_id": end if start is None else start}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        return {"decoder_start_token_id": values["start_id"]}


class CountedPositions:
    """M2M-100's positions, which count tokens other than padding, after its id."""

    fields = ("position_padding_id", "position_offset")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        padding = options.take("pad_token_id", int, 1)
        return dict(zip(self.fields, (padding, padding + 1)))

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        padding, offset = (values[field] for field in self.fields)
        if padding is None or offset != padding + 1:
            raise UserError(
                f"position_padding_id = {padding}, position_offset = {offset}: "
                "expected the id of padding, and an offset of one more."
            )
        return {"pad_token_id": padding}


_BEFORE = {"*.norm_position": "pre"}
# Numbers of a table of sines at most: 256 MB, for a config.json may say anything.
_MOST = 1 << 26

MBART = Family(
    model_type="mbart",
    model=Seq2Seq,
    objective=Seq2SeqLM,
    entries=(
        *entries(
            _BEFORE | {"positions": "learned", "position_offset": 2, "embed_norm": True}
        ),
        StartId(),
    ),
    rows=ROWS,
    architectures=architectures("MBartForConditionalGeneration", "MBartModel")
    | read_twice("MBart", ALWAYS_TIED),
    prefix="model.",
    copies=COPIES,
    repeated=TABLES,
    optional=OPTIONAL,
)


def _sinusoids(model: nn.Module) -> dict[str, np.ndarray]:
    """Pegasus' positions [max_length, D] by name: sines, then cosines."""
    if model.positions != "sinusoidal_halves":
        return {}
    width = model.encoder.embed_dim
    if model.max_length * width > _MOST:
        raise UserError(
            f"{model.gin_name}.max_length = {model.max_length}: expected at most "
            f"{_MOST // width}, as pegasus has a table of positions."
        )
    frequency = 10000.0 ** (-2 * np.arange((width + 1) // 2) / width)
    angle = np.arange(model.max_length)[:, None] * frequency
    halves = [np.sin(angle), np.cos(angle)[:, : width // 2]]
    table = np.concatenate(halves, axis=1).astype(np.float32)
    return {
        f"model.{side}.embed_positions.weight": table for side in ("encoder", "decoder")
    }


PEGASUS = Family(
    model_type="pegasus",
    model=Seq2Seq,
    objective=Seq2SeqLM,
    entries=(
        *entries(
            _BEFORE | {"positions": "sinusoidal_halves", "embed_norm": False},
            trained_positions=True,
        ),
        start(0),
    ),
    rows=ROWS,
    architectures=architectures("PegasusForConditionalGeneration", "PegasusModel"),
    prefix="model.",
    copies=COPIES,
    repeated=TABLES,
    computed=_sinusoids,
    trained={"positions": "learned"},
    optional=OPTIONAL,
)

M2M_100 = Family(
    model_type="m2m_100",
    model=Seq2Seq,
    objective=Seq2SeqLM,
    entries=(
        *entries(
            _BEFORE | {"positions": "sinusoidal_inclusive", "embed_norm": False},
            vocab_size=128112,
            activation_function="relu",
            attention_dropout=0.1,
            scale_embedding=True,
            layerdrop=0.05,
        ),
        CountedPositions(),
        start(2),
    ),
    rows=ROWS,
    architectures=architectures("M2M100ForConditionalGeneration", "M2M100Model"),
    prefix="model.",
    copies=COPIES,
    repeated=TABLES,
    constants=SINUSOIDS,
)

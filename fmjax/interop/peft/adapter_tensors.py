"""The tensors of an adapter's file, by what they are of."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers import safetensors_files, torch_files
from fmjax.interop.tensor_files import TensorFiles
from fmjax.storage.git_lfs import refuse_pointer

SAFETENSORS, TORCH = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
# Of weights beside virtual tokens.
SHORT_PREFIX = "base_model."
VIRTUAL_TOKENS = "prompt_embeddings"
# A name of the adapter, which older versions and dumps of models have inside.
_ADAPTER = r"(?:\.default)?"
_MATRIX = re.compile(rf"(.+)\.lora_([AB]){_ADAPTER}\.weight")
_EMBEDDING = re.compile(rf"(.+)\.lora_embedding_([AB]){_ADAPTER}")
_MAGNITUDE = re.compile(rf"(.+)\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?")
_FACTORS = re.compile(rf"(.+)\.ia3_l{_ADAPTER}")
_TUNED = re.compile(rf"(.+)\.ln_tuning_layers{_ADAPTER}\.(.+)")
_WRAPPED = re.compile(rf"\.(base_layer|modules_to_save{_ADAPTER})(?=\.)")


class LowRankNames(NamedTuple):
    """Names of the tensors of a module's low-rank adapter; "" for none.

    Attributes:
      a: of A [r, inputs].
      b: of B [outputs, r].
      magnitude: of DoRA's magnitudes [outputs].
      embedding: whether they are those of a table.
    """

    a: str = ""
    b: str = ""
    magnitude: str = ""
    embedding: bool = False


class AdapterTensors:
    """The tensors of an adapter's file.

    Attributes:
      folder: with the file.
      low_rank: module → names of its tensors of LoRA.
      factors: module → name of its factors of IA3.
      whole: name of a tensor of the model → its name in the file.
      tuned: modules of LayerNorm tuning, whose tensors are in `whole`.
    """

    def __init__(self, folder: Path, prefix: str = PREFIX):
        """Reads the names and shapes of the tensors.

        Args:
          folder: with the file.
          prefix: of the names of the model's tensors.

        Raises:
          UserError: there is no file, it cannot be read, or a tensor's partner lacks.
        """
        self.folder, self._prefix = folder, prefix
        self._files = _read(folder)
        self.low_rank: dict[str, LowRankNames] = {}
        self.factors: dict[str, str] = {}
        self.whole: dict[str, str] = {}
        self.tuned: set[str] = set()
        for name in self._files.names:
            self._add(name)
        for module, names in self.low_rank.items():
            if not names.a or not names.b:
                found = names.a or names.b or names.magnitude
                raise UserError(
                    f"{folder}: {found} has no partner; expected both A and B of "
                    f"{module}."
                )

    @property
    def has_virtual_tokens(self) -> bool:
        """Whether there is a tensor of virtual tokens."""
        return VIRTUAL_TOKENS in self._files.names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._files.shape(name)

    def is_of_base(self, name: str) -> bool:
        """Whether a tensor was saved because an adapter is beside it."""
        return ".base_layer." in name

    def read(
        self, name: str, shape: tuple[int, ...], base: str, longer: int | None = None
    ) -> np.ndarray:
        """A tensor as float32.

        Args:
          name: its name.
          shape: the shape that a base makes it.
          base: which base, for messages.
          longer: an axis of a vocabulary, of which the tensor may have padding.

        Raises:
          UserError: it has another shape, or is no floating-point tensor.
        """
        found = self.shape(name)
        cut = found
        if longer is not None and len(found) == len(shape):
            cut = (*found[:longer], shape[longer], *found[longer + 1 :])
            if found[longer] < shape[longer]:
                cut = found
        if cut != shape:
            raise UserError(
                f"{self.folder}: {name} has the shape {found}, but {base} makes it "
                f"{shape}. Expected an adapter of this base."
            )
        return self._files.read(name, shape, longer)

    def _add(self, name: str) -> None:
        if name == VIRTUAL_TOKENS:
            return
        own = name.removeprefix(self._prefix)
        for pattern in (_MATRIX, _EMBEDDING):
            if found := pattern.fullmatch(own):
                embedding = pattern is _EMBEDDING
                self._set(found[1], found[2].lower(), name, embedding)
                return
        if found := _MAGNITUDE.fullmatch(own):
            self._set(found[1], "magnitude", name)
        elif found := _FACTORS.fullmatch(own):
            self.factors[found[1]] = name
        elif found := _TUNED.fullmatch(own):
            self.tuned.add(found[1])
            self.whole[f"{found[1]}.{found[2]}"] = name
        elif ".lora_" in own or ".ia3_" in own or not name.startswith(self._prefix):
            raise UserError(
                f"{self.folder}: {name} is a tensor that is not known; expected those "
                "of LoRA, DoRA, IA3, LayerNorm tuning or virtual tokens, and whole "
                "ones, as peft names them."
            )
        else:
            self.whole[_WRAPPED.sub("", own)] = name

    def _set(self, module: str, part: str, name: str, embedding: bool = False) -> None:
        before = self.low_rank.get(module, LowRankNames())
        found = before._replace(**{part: name})
        self.low_rank[module] = found._replace(embedding=embedding or before.embedding)


def _read(folder: Path) -> TensorFiles:
    for file, read_file in (
        (folder / SAFETENSORS, safetensors_files.read_file),
        (folder / TORCH, torch_files.read_file),
    ):
        if file.is_file():
            refuse_pointer(file)
            found = read_file(file)
            if not found:
                raise UserError(f"{file} holds no tensors; expected an adapter's.")
            return TensorFiles(folder, found)
    raise UserError(f"{folder}: no {SAFETENSORS} or {TORCH}; expected an adapter.")

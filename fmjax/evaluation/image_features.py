"""What an image encoder makes of a split of a run's data, as arrays for any measure."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import xxhash
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track

from fmjax.data.images.image_data import ImageData
from fmjax.errors import UserError
from fmjax.evaluation.validation import check_tokenizer, data_of
from fmjax.field_types import gin_name
from fmjax.inference.load import Run, load
from fmjax.models.contracts import EmbedsImagesAndTexts, ReadsImages
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class Features:
    """Rows of a split, bad ones left out.

    Attributes:
      vectors: of each image what stands for it, `pooled`.
      images: embeddings of the images, of two towers.
      labels: classes, where the data has them.
      texts: embeddings of the images' own captions, where run and data have them.
      captions: their tokens.
      pictures: a digest of each image: one with several captions has a row for each.
    """

    vectors: Float[np.ndarray, "N D"]
    images: Float[np.ndarray, "N E"] | None
    labels: Int[np.ndarray, " N"] | None
    texts: Float[np.ndarray, "N E"] | None
    captions: Int[np.ndarray, "N T"] | None
    pictures: Int[np.ndarray, " N"] | None = None


@dataclasses.dataclass(frozen=True)
class ImageRun:
    """A run of an image encoder beside its data.

    Attributes:
      run: the loaded run, on all devices.
      data: its images, neither augmented nor in views.
      batch_size: images that are encoded at once.
    """

    run: Run
    data: ImageData
    batch_size: int

    def features(self, split: str) -> Features:
        """Encodes a split once, in order."""
        found: dict[str, list[np.ndarray]] = {}
        for batch in self.batches(split):
            for name, rows in self._encode(batch).items():
                found.setdefault(name, []).append(rows[batch["weights"] > 0])
        arrays = {name: np.concatenate(rows) for name, rows in found.items()}
        names = [field.name for field in dataclasses.fields(Features)]
        return Features(**{name: arrays.get(name) for name in names})

    def batches(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """A split once, in order; the last batch is filled by rows of weight 0."""
        size = self.batch_size + -self.batch_size % self.run.row_multiple
        batches = self.data.eval_batches(size, range(size), split=split)
        silent = jax.process_index() != 0 or not Console(stderr=True).is_terminal
        yield from track(
            batches,
            f"encoding {split}",
            total=len(batches),
            console=Console(stderr=True),
            disable=silent,
        )
        batches.close()

    def _encode(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        towers = isinstance(self.run.model, EmbedsImagesAndTexts)
        read = {"images": batch["images"]}
        if towers and "tokens" in batch:
            read |= {
                "tokens": batch["tokens"],
                "padding_mask": batch["padding_mask"],
            }
        out = self.run(**read)
        rows = {"vectors": np.asarray(out["image_pooled" if towers else "pooled"])}
        if towers:
            rows["images"] = np.asarray(out["image_embeddings"])
        if "text_embeddings" in out:
            rows["texts"] = np.asarray(out["text_embeddings"])
            rows["captions"] = batch["tokens"]
            digests = map(xxhash.xxh3_64_intdigest, batch["images"])
            rows["pictures"] = np.fromiter(digests, np.uint64, len(batch["images"]))
        if "labels" in batch:
            rows["labels"] = batch["labels"]
        return rows


def load_images(
    run_dir: str | os.PathLike,
    *,
    step: int | None = None,
    bindings: Sequence[str] = (),
    trust: bool = False,
) -> ImageRun:
    """A run and its images, for the measures of this room.

    Args:
      run_dir: the run directory.
      step: of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" over the stored config's data and batch size; what they
        leave open of the preprocessing is an imported run's own.
      trust: the stored config may import code.

    Raises:
      UserError: for data without images or with another tokenizer than the run's, or a
        model that does not encode images.
    """
    folder = pathlib.Path(run_dir).expanduser().absolute()
    experiment = run_dirs.stored_experiment(folder, trust, bindings)
    if not isinstance(experiment.data, ImageData):
        name = gin_name(experiment.data)
        raise UserError(
            f"{folder}: experiment.data = {name and f'@{name}()'}; measures of images "
            "need @images()."
        )
    data = data_of(experiment, bindings).plain()
    if (tokenizer := data.tokenizer()) is not None:
        check_tokenizer(folder, tokenizer.digest)
    data.prepare()
    run = load(folder, step=step, mesh=MeshConfig(), trust=trust)
    if not isinstance(run.model, ReadsImages):
        raise UserError(
            f"@{run.model.gin_name}() does not encode images; expected @vit(), "
            "@simclr(), @clip() or another that does."
        )
    size = experiment.train.eval_batch_size or experiment.train.batch_size
    return ImageRun(run, data, size)

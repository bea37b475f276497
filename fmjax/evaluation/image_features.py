"""Features of an image encoder for a split of a run's data."""

import dataclasses
import os
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
from fmjax.inference.load import load
from fmjax.inference.run import Run
from fmjax.models.contracts import EmbedsImagesAndTexts, ReadsImages
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import MeshConfig
from fmjax.storage.paths import as_path
from fmjax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the rows of a split, without corrupt rows.

    Attributes:
      vectors: pooled features of the images, float32 [N, D].
      images: image embeddings of a model with two encoders, float32 [N, E], or None.
      labels: classes, int32 [N]; None if the data has none.
      texts: embeddings of the captions, float32 [N, E]; None without captions.
      captions: tokens of the captions, int32 [N, T]; None without captions.
      pictures: digests of the images, uint64 [N], which identify the rows of an image
        with several captions; None without captions.
    """

    vectors: Float[np.ndarray, "N D"]
    images: Float[np.ndarray, "N E"] | None
    labels: Int[np.ndarray, " N"] | None
    texts: Float[np.ndarray, "N E"] | None
    captions: Int[np.ndarray, "N T"] | None
    pictures: Int[np.ndarray, " N"] | None = None


@dataclasses.dataclass(frozen=True)
class ImageRun:
    """A run of an image encoder with its data.

    Attributes:
      run: the loaded run, on all devices.
      data: its images, without augmentation and views.
      batch_size: number of images encoded at once.
    """

    run: Run
    data: ImageData
    batch_size: int

    def features(self, split: str) -> Features:
        """The features of a split, in order."""
        found: dict[str, list[np.ndarray]] = {}
        for batch in self.batches(split):
            for name, rows in self._encode(batch).items():
                found.setdefault(name, []).append(rows[batch["weights"] > 0])
        arrays = {name: np.concatenate(rows) for name, rows in found.items()}
        names = [field.name for field in dataclasses.fields(Features)]
        return Features(**{name: arrays.get(name) for name in names})

    def batches(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """One pass over a split, in order; rows of weight 0 fill the last batch."""
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
        two_encoders = isinstance(self.run.model, EmbedsImagesAndTexts)
        inputs = {"images": batch["images"]}
        if two_encoders and "tokens" in batch:
            inputs |= {
                "tokens": batch["tokens"],
                "padding_mask": batch["padding_mask"],
            }
        out = self.run(**inputs)
        pooled = "image_pooled" if two_encoders else "pooled"
        rows = {"vectors": np.asarray(out[pooled])}
        if two_encoders:
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
    """Loads a run and its images, for the measurements in `image_measures`.

    Args:
      run_dir: the run directory.
      step: step of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" bindings of data and batch size, which override the stored
        config. Preprocessing that is not bound is that of an imported run.
      trust: whether the stored config may import code.

    Raises:
      UserError: the data has no images or another tokenizer than the run, or the model
        does not encode images.
    """
    folder = as_path(run_dir)
    experiment = run_dirs.stored_experiment(folder, trust, bindings)
    check_measurable(experiment, str(folder))
    data = data_of(experiment, bindings).plain()
    if (tokenizer := data.tokenizer()) is not None:
        check_tokenizer(folder, tokenizer.digest)
    data.prepare()
    run = load(folder, step=step, mesh=MeshConfig(), trust=trust)
    size = experiment.train.eval_batch_size or experiment.train.batch_size
    return ImageRun(run, data, size)


def check_measurable(experiment: Experiment, where: str) -> None:
    """Raises a UserError if the data has no images or the model does not encode them.

    Args:
      experiment: that is measured.
      where: what the error begins with.
    """
    if not isinstance(experiment.data, ImageData):
        name = gin_name(experiment.data)
        raise UserError(
            f"{where}: experiment.data = {name and f'@{name}()'}; expected @images() "
            "to measure an image encoder."
        )
    model = experiment.objective.model
    if not isinstance(model, ReadsImages):
        raise UserError(
            f"{where}: @{model.gin_name}() does not encode images; expected @vit(), "
            "@simclr(), @clip() or another that does."
        )

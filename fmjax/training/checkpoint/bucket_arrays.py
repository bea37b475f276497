"""Checkpoints in buckets: Orbax and TensorStore on s3:// as on gs://.

Orbax writes a checkpoint of gs:// under its final name, and marks it as complete by an
object commit_success.txt. Orbax 0.12 takes s3:// for a local file system, though
TensorStore has a driver for it. `use_buckets` makes s3:// go the way of gs://, by the
functions of Orbax that tell buckets from local folders.
"""

import contextlib
import os
import pathlib
import uuid
from typing import Any

import fsspec
import tensorstore as ts
from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from fmjax.errors import UserError
from fmjax.storage.paths import is_bucket
from fmjax.training.checkpoint.bucket_steps import COMMITTED

_SECONDS = 60.0


def use_buckets() -> None:
    """Makes Orbax take s3:// as it takes gs://; may be called again."""
    if gcs_utils.is_gcs_path is is_bucket:
        return
    of_gcs, normalize = (
        gcs_utils.get_kvstore_for_gcs,
        tensorstore_utils._normalize_path,
    )

    def kvstore(path: str) -> dict[str, Any]:
        return _s3_kvstore(path) if str(path).startswith("s3://") else of_gcs(path)

    def rmtree(path: epath.Path, *, missing_ok: bool = False) -> None:
        # A deletion that is killed half way then leaves no checkpoint that counts.
        with contextlib.suppress(FileNotFoundError):
            (path / COMMITTED).unlink(missing_ok=True)
        path.rmtree(missing_ok=missing_ok)

    gcs_utils.is_gcs_path = is_bucket
    gcs_utils.get_kvstore_for_gcs = kvstore
    gcs_utils.rmtree = rmtree
    tensorstore_utils._use_gcs_driver = is_bucket
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace(
        "s3:/", "s3://"
    )


def check_arrays(folder: pathlib.Path, name: str, prefix: str) -> None:
    """Writes and deletes a small object of a bucket by TensorStore, as Orbax does.

    TensorStore has clients of its own, which look for credentials themselves.

    Args:
      folder: the folder; need not exist.
      name: the option or field that holds it, for errors.
      prefix: of the object's name.

    Raises:
      UserError: it cannot, or does not answer for a minute.
    """
    use_buckets()
    try:
        spec = gcs_utils.get_kvstore_for_gcs(f"{os.fspath(folder)}/")
        store = ts.KvStore.open(spec).result(timeout=_SECONDS)
        key = f"{prefix}{uuid.uuid4().hex}"
        store.write(key, b"1").result(timeout=_SECONDS)
        # By name: a store that takes no bounds of a range would delete all there is.
        store.write(key, None).result(timeout=_SECONDS)
    except Exception as error:
        text = " ".join(str(error).split()) or "no answer for a minute"
        raise UserError(
            f"{name} {folder} cannot be written by TensorStore, which writes "
            f"checkpoints: {text[:300]}. Expected credentials in the environment, in "
            "the files of the AWS or gcloud command line, or of the machine; see "
            "docs/tasks/buckets.md."
        ) from error


def _s3_kvstore(path: str) -> dict[str, Any]:
    """TensorStore's spec of a path, with the endpoint that s3fs found."""
    bucket, _, key = str(path).removeprefix("s3://").partition("/")
    spec = {"driver": "s3", "bucket": bucket, "path": key}
    files = fsspec.filesystem("s3")
    files.connect()
    endpoint = files.s3.meta.endpoint_url
    # Of Amazon's own, TensorStore finds the one of the bucket's region itself.
    if not endpoint.rstrip("/").endswith(("amazonaws.com", "amazonaws.com.cn")):
        region = files.s3.meta.region_name or "us-east-1"
        spec |= {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        spec["aws_credentials"] = {"type": "environment"}
    return spec

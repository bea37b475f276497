"""Paths on mounted file systems and in buckets, by one function.

A local path is a `pathlib.Path`. An address of a bucket is an `etils.epath.Path`, which
has the same methods; Orbax and JAX read and write buckets through it too. Behind it is
fsspec with s3fs or gcsfs, which the extras `[s3]` and `[gcs]` install.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import sys

from fmjax.errors import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PATTERN = frozenset("*?[]")
# Scheme → its package, and the extra that installs it.
_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}


def scheme_of(address: str | os.PathLike) -> str:
    """What an address has before ://, in lower case; "" for a path."""
    found = _SCHEME.match(os.fspath(address))
    return found[1].lower() if found else ""


def as_path(address: str | os.PathLike, name: str = "") -> pathlib.Path:
    """The path of an address: absolute, with ~ expanded.

    Args:
      address: a path of a mounted file system, or file://, gs:// or s3://.
      name: the gin field, option or environment variable that holds it, for errors.

    Returns:
      A pathlib.Path; of a bucket an epath.Path, which has the same methods.

    Raises:
      UserError: another scheme, no bucket, or a package is not installed.
    """
    text = os.fspath(address)
    scheme = scheme_of(text)
    if not scheme:
        return pathlib.Path(text).expanduser().absolute()
    rest = text[len(scheme) + len("://") :]
    what = f"{name} = {text!r}" if name else text
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if not slash or host not in ("", "localhost"):
            raise UserError(f"{what}: expected file:///FOLDER, with three slashes.")
        return pathlib.Path(f"/{path}")
    if scheme not in _PACKAGES:
        raise UserError(
            f"{what}: expected a path of a mounted file system, or an address that "
            "begins with gs://, s3:// or file://."
        )
    if not rest.strip("/") or rest.startswith("/"):
        raise UserError(f"{what}: expected {scheme}://BUCKET/FOLDER.")
    if set(rest) & _PATTERN or ".." in rest.split("/"):
        # fsspec takes the name of what is to be deleted for a pattern.
        raise UserError(
            f"{what}: expected a name without .. and {' '.join(sorted(_PATTERN))}."
        )
    package, extra = _PACKAGES[scheme]
    if not _is_installed(package):
        raise UserError(
            f"{what}: the package {package} is not installed; expected pip install "
            f"'fmjax[{extra}]'."
        )
    _use_fsspec()
    from etils import epath

    return epath.Path(f"{scheme}://{rest.rstrip('/')}")


def object_path(address: str) -> pathlib.Path:
    """The path of an object that a store has listed, whatever its name is."""
    from etils import epath

    return epath.Path(address)


def given_path(address: str | os.PathLike, name: str = "") -> pathlib.Path:
    """The path of an address, as `as_path`; a relative path stays one."""
    if scheme_of(address):
        return as_path(address, name)
    return pathlib.Path(address).expanduser()


def refuse_scheme(value: str | os.PathLike, binding: str) -> None:
    """Refuses an address such as gs://bucket/folder where a path is expected.

    For files that go through the operating system only, which would take `gs:` for
    the name of a local folder. Others go through `fmjax.storage`.

    Args:
      value: the path to check.
      binding: the gin field, option or environment variable that holds it.

    Raises:
      UserError: the path begins with SCHEME://.
    """
    if scheme_of(value):
        raise UserError(
            f"{binding} = {os.fspath(value)!r}: expected a path of a mounted file "
            "system; addresses of buckets and other SCHEME:// are not supported here."
        )


def is_bucket(path: os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in _PACKAGES))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _use_fsspec() -> None:
    """Makes epath use fsspec, without its caches of listings."""
    # epath prefers TensorFlow where it is installed, whose wheels have no S3. It asks
    # once, maybe before this.
    os.environ["EPATH_USE_TF"] = "false"
    if "etils.epath.gpath" in sys.modules:
        with contextlib.suppress(AttributeError):
            sys.modules["etils.epath.gpath"]._is_tf_installed.cache_clear()
    import fsspec.config

    # TensorStore and other processes write too, which a cached listing would not show.
    for protocol in ("s3", "s3a", "gs", "gcs"):
        options = fsspec.config.conf.setdefault(protocol, {})
        options["use_listings_cache"] = False

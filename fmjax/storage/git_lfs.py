"""Git LFS pointers: small texts that stand for large files that were not fetched."""

from pathlib import Path

from fmjax.errors import UserError

_START = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(file: Path) -> None:
    """Raises a UserError for a file that is a pointer of Git LFS; reads few bytes."""
    with file.open("rb") as opened:
        if opened.read(len(_START)) != _START:
            return
    raise UserError(
        f"{file} is a pointer of Git LFS, not the file itself. Run `git lfs pull` in "
        "its repository, or `hf download` instead of `git clone`."
    )

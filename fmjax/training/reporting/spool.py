"""A run's reports in a bucket: files that grow, written locally and uploaded whole."""

import pathlib
import shutil
import sys
import tempfile
import threading

from fmjax.storage import objects
from fmjax.storage.paths import is_bucket
from fmjax.training.reporting import events, goodput, metrics, starts
from fmjax.training.reporting.trackers import mlflow, weights_and_biases

SECONDS = 30.0
_SMALL_BYTES = 1 << 26
# Files that a run goes on with.
_CONTINUED = (
    metrics.FILE,
    metrics.TEXTS,
    events.FILE,
    goodput.FILE,
    starts.FILE,
    mlflow.FILE,
    weights_and_biases.FILE,
)


class Spool:
    """The folder that a run's reports are written to; a context manager.

    On a file system it is the run directory, and nothing is uploaded. Objects of a
    bucket cannot be appended to: reports are then written to a temporary folder, and
    files that changed are uploaded every SECONDS, when `upload` is called, and at the
    exit. A killed process loses the lines since then.

    Args:
      run_dir: the run directory.

    Attributes:
      folder: where reports are written.
      uploads: whether they have to be uploaded.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._run_dir = run_dir
        self.uploads = is_bucket(run_dir)
        self.folder = run_dir
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._uploading = threading.Lock()
        self._ended = threading.Event()
        self._failed: str | None = None

    def __enter__(self) -> "Spool":
        if self.uploads:
            # Weights & Biases takes its name for the run's.
            place = pathlib.Path(tempfile.mkdtemp(prefix="fmjax-"))
            self.folder = place / self._run_dir.name
            self.folder.mkdir()
        return self

    def __exit__(self, *exception) -> None:
        if not self.uploads:
            return
        self._ended.set()
        if self.upload():
            shutil.rmtree(self.folder.parent, ignore_errors=True)
        else:
            self._say(f"the last reports of {self._run_dir} are in {self.folder}")

    def begin(self, fetch: bool) -> None:
        """Begins to upload in the background; the caller must hold the run's lock.

        Args:
          fetch: first get the reports of earlier starts, to go on with; for the first
            process of a run, which alone writes them.

        Raises:
          OSError: the store does not answer.
        """
        if not self.uploads:
            return
        for name in _CONTINUED if fetch else ():
            content = objects.read_or_none(self._run_dir / name)
            if content is not None:
                (self.folder / name).write_bytes(content)
                self._uploaded[name] = _version(self.folder / name)
        threading.Thread(target=self._keep_up, daemon=True).start()

    def upload(self) -> bool:
        """Uploads what changed; returns False if the store refused, and tries later."""
        if not self.uploads:
            return True
        with self._uploading:
            try:
                for file in sorted(self.folder.rglob("*")):
                    self._upload(file)
            except OSError as error:
                if str(error) != self._failed:
                    self._say(f"reports wait to be uploaded: {error}")
                self._failed = str(error)
                return False
            self._failed = None
            return True

    def _upload(self, file: pathlib.Path) -> None:
        if file.is_symlink() or not file.is_file():
            return
        name = file.relative_to(self.folder).as_posix()
        try:
            # Taken before it is read: a line that is added meanwhile changes it again.
            version = _version(file)
            if self._uploaded.get(name) == version:
                return
            # A request whose body grows while it is sent fails.
            content = file.read_bytes() if version[0] < _SMALL_BYTES else None
        except FileNotFoundError:
            return  # a temporary file of Weights & Biases
        if content is None:
            objects.upload(file, self._run_dir / name)
        else:
            objects.write(self._run_dir / name, content)
        self._uploaded[name] = version

    def _keep_up(self) -> None:
        while not self._ended.wait(SECONDS):
            self.upload()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _version(file: pathlib.Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns

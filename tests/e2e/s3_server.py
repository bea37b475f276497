"""An S3 server on this machine (moto's), and a Python that has s3fs beside fmjax."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator

import tensorstore as ts

import fmjax

BUCKET = "bucket"
PACKAGES = ("s3fs>=2025.7", "moto[server]>=5.1")


def python_with_s3(folder: pathlib.Path) -> pathlib.Path:
    """Makes a Python with the packages of this one, s3fs and moto.

    They are installed beside this one's, whose versions they may not fit.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    packages.add(str(pathlib.Path(fmjax.__file__).parents[1]))
    pathlib.Path(own, "tests.pth").write_text("\n".join(sorted(packages)))
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


class Server:
    """A running server.

    Attributes:
      environment: variables that lead the clients of a process to it.
    """

    def __init__(self, url: str):
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._url = url
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"))

    def objects(self, folder: str) -> dict[str, bytes]:
        """Contents by name of all objects of a folder, as TensorStore reads them."""
        store = self._store(folder)
        return {
            key.decode(): store.read(key).result().value
            for key in sorted(store.list().result())
        }

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Replaces an object."""
        self._store(folder).write(name, content).result()

    def steps(self, folder: str) -> list[int]:
        """Steps of the complete checkpoints of a run directory."""
        names = self._store(f"{folder}/checkpoints").list().result()
        parts = [name.decode().split("/") for name in names]
        return sorted(int(p[0]) for p in parts if p[1:] == ["commit_success.txt"])

    def _store(self, folder: str) -> ts.KvStore:
        os.environ |= {n: x for n, x in self.environment.items() if "KEY" in n}
        spec = {"driver": "s3", "bucket": BUCKET, "path": f"{folder}/"}
        spec |= {"endpoint": self._url, "aws_region": "us-east-1"}
        return ts.KvStore.open(spec).result()


@contextlib.contextmanager
def s3_server(python: pathlib.Path, log: pathlib.Path) -> Iterator[Server]:
    """Starts a server with an empty bucket."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(url)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
        yield Server(url)
    finally:
        process.terminate()
        process.wait()

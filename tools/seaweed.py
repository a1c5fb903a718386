"""An S3 server to try with: SeaweedFS in one process on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore import exceptions, sign, store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEY, SECRET = "shardgit", "only-to-try"
BUCKET = "shardgit"
GRPC_OFFSET = 10_000  # what weed adds to a port for its own calls
STARTS_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Seaweed:
    """A server that runs."""

    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        return environment_for(self.endpoint)

    def fresh_url(self) -> str:
        """Return the URL of a prefix that nobody has written to."""
        return f"s3://{BUCKET}/{os.urandom(6).hex()}"


def environment_for(endpoint: str) -> dict[str, str]:
    """Return the variables that lead to a server, or to a proxy of one."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def free_ports(count: int) -> list[int]:
    """Return ports that are free, and so are those GRPC_OFFSET above them."""
    found: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(found) < count:
            one = socket.socket()
            held.append(one)
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port + GRPC_OFFSET > 65_535:
                continue
            with socket.socket() as above:
                try:
                    above.bind(("127.0.0.1", port + GRPC_OFFSET))
                except OSError:
                    continue
            found.append(port)
    finally:
        for one in held:
            one.close()
    return found


def weed_binary() -> str:
    """Return the path of weed; RuntimeError when it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("weed is not installed: run .ci/cluster-setup")
    return found


@contextmanager
def seaweed(
    folder: Path, *, ports: Sequence[int] = (), host: str = "127.0.0.1"
) -> Iterator[Seaweed]:
    """Run a server with one bucket, its data in ``folder``.

    ``ports`` are those of master, volumes, filer and S3, and it uses those GRPC_OFFSET above them; with them it goes on
    with what the folder has, and ends in order. Without it is for a test: on free ports, and killed in the end.
    """
    folder.mkdir(exist_ok=True)
    config = folder / "s3.json"
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    identity = {
        "name": "shardgit",
        "credentials": credentials,
        "actions": ["Admin", "Read", "Write"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = ports or free_ports(4)
    data = folder / "data"
    data.mkdir(exist_ok=bool(ports))
    words = [weed_binary(), "-logtostderr=true", "server", f"-ip={host}", f"-ip.bind={host}"]
    words += [f"-dir={data}", f"-master.port={master}", f"-volume.port={volume}"]
    words += [f"-filer.port={filer}", f"-s3.port={s3}", "-s3", f"-s3.config={config}"]
    words += ["-master.volumeSizeLimitMB=64", "-volume.max=40", "-master.volumePreallocate=false"]
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.port.grpc=0"]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
        try:
            made = Seaweed(f"http://{host}:{s3}", process)
            _make_bucket(made, folder / "weed.log")
            yield made
        finally:
            if ports:
                process.terminate()
            else:
                process.kill()  # asked to end it takes ten seconds, and its data is nobody's
            process.wait()


def _make_bucket(made: Seaweed, log: Path) -> None:
    """Make the bucket and put a first object, as soon as the server does both."""
    root = store.S3Store(
        BUCKET,
        endpoint=made.endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    end = time.monotonic() + STARTS_WITHIN_S
    is_made = False
    while True:
        try:
            if not is_made:
                url = sign(root, "PUT", "", timedelta(minutes=5))
                request = urllib.request.Request(url, method="PUT", data=b"")
                urllib.request.urlopen(request, timeout=10).close()
                is_made = True
            root.put("first", b"x", use_multipart=False)
        except (exceptions.BaseError, OSError):  # not up yet, or no writable volumes yet
            if made.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(log.read_text("utf-8", "replace")[-2_000:]) from None
            time.sleep(0.2)
        else:
            return

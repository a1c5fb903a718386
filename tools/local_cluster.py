"""Run a whole cluster on this machine, until ctrl-C: etcd, an S3 server, nodes, and a load balancer where there is one.

    python tools/local_cluster.py                       # three nodes, in build/cluster
    python tools/local_cluster.py --nodes 5 --folder /tmp/five

What it has written stays, and is gone on with at the next start. docs/cluster.md does the same by hand.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import etcds
import seaweed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
ETCD_PORTS = (7371, 7372, 7373, 7374, 7375, 7376)
S3_PORTS = (7381, 7382, 7383, 7384)
GRPC, HTTP = 7420, 7421  # of the load balancer
STARTS_WITHIN_S = 60.0
BALANCER = """\
global
  log stderr local0 warning
defaults
  log global
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  retries 3
  option redispatch
listen http
  mode http
  bind 127.0.0.1:{http}
  option httpchk GET /readyz
  balance leastconn
{http_nodes}
listen grpc
  mode tcp
  bind 127.0.0.1:{grpc}
  option httpchk GET /readyz
  balance leastconn
{grpc_nodes}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is: ports of its own, one after another as a single server has them."""

    number: int
    folder: Path

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    def port(self, at: int) -> int:
        return 7420 + 10 * self.number + at

    def config(self, name: str, endpoints: Sequence[str], url: str) -> str:
        listed = ", ".join(f'"{one}"' for one in endpoints)
        return f"""\
data = "{self.folder / self.name}"
grpc = "127.0.0.1:{self.port(0)}"
http = "127.0.0.1:{self.port(1)}"
ssh = "127.0.0.1:{self.port(2)}"
admin = "127.0.0.1:{self.port(3)}"
ssh_host_key = "{self.folder / "ssh_host_ed25519_key"}"
workers = 1

[cluster]
name = "{name}"
etcd = [{listed}]
node = "{self.name}"
zone = "{self.name}"
listen = "127.0.0.1:{self.port(4)}"

[blocks]
url = "{url}"
tier_bytes = {4 << 30}
"""


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def running(words: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a program while the block lasts."""
    with log.open("ab") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=environment, cwd=ROOT)
    try:
        yield
        if process.poll() is not None:
            raise SystemExit(f"{words[0]} has ended; see {log}")
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def await_ready(port: int, log: Path) -> None:
    """Wait until a node serves."""
    end = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(f"node does not come up; see {log}") from None
            time.sleep(0.1)
        else:
            return


def balancer() -> str | None:
    """Return where haproxy is, if it is there."""
    beside = ROOT / ".venv/cluster/haproxy/haproxy"
    return str(beside) if beside.exists() else shutil.which("haproxy")


def balancer_config(places: Sequence[Place]) -> str:
    """Return what haproxy goes by: a node that drains says so at its admin port, and is given nothing more."""

    def nodes(at: int) -> str:
        return "\n".join(
            f"  server {one.name} 127.0.0.1:{one.port(at)} check port {one.port(3)} inter 500"
            for one in places
        )

    return BALANCER.format(http=HTTP, grpc=GRPC, http_nodes=nodes(1), grpc_nodes=nodes(0))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build/cluster")
    parser.add_argument("--nodes", type=int, default=3)
    words = parser.parse_args()
    folder = words.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    places = [Place(number, folder) for number in range(1, words.nodes + 1)]
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    shardgit = str(Path(sys.executable).with_name("shardgit"))
    with ExitStack() as held:
        say("starting etcd, three members")
        members = held.enter_context(etcds.running(folder / "etcd", ports=ETCD_PORTS))
        say("starting an S3 server")
        s3 = held.enter_context(seaweed.seaweed(folder / "s3", ports=S3_PORTS))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SHARDGIT_")}
        environment = {**kept, **s3.environment}
        lines = [f"export {key}={value}" for key, value in s3.environment.items()]
        (folder / "env").write_text("\n".join(lines) + "\n")
        for place in places:
            file, log = folder / f"{place.name}.toml", folder / f"{place.name}.log"
            url = f"s3://{seaweed.BUCKET}/local"
            file.write_text(place.config("local", members.endpoints, url))
            say(f"starting {place.name}")
            serve = [shardgit, "serve", "--config", str(file)]
            held.enter_context(running(serve, log, environment))
            await_ready(place.port(3), log)
        for place in places:
            file = folder / f"{place.name}.toml"
            join = [shardgit, "cluster", "join", "--config", str(file)]
            subprocess.run(join, env=environment, check=True, capture_output=True)
        program = balancer()
        (folder / "haproxy.cfg").write_text(balancer_config(places))
        if program is not None:
            command = [program, "-db", "-f", str(folder / "haproxy.cfg")]
            held.enter_context(running(command, folder / "haproxy.log", environment))
        tell(places, folder, is_balanced=program is not None)
        stopped.wait()
        say("stopping")


def tell(places: Sequence[Place], folder: Path, *, is_balanced: bool) -> None:
    """Print where everything is."""
    first = places[0]
    http = HTTP if is_balanced else first.port(1)
    say("")
    if is_balanced:
        say(f"  all nodes:  http://127.0.0.1:{HTTP}/NAME.git, gRPC 127.0.0.1:{GRPC} (haproxy)")
    else:
        say(f"  a load balancer, where haproxy is installed:  haproxy -f {folder}/haproxy.cfg")
    for one in places:
        at = f"http://127.0.0.1:{one.port(1)}/NAME.git, gRPC 127.0.0.1:{one.port(0)}"
        say(f"  {one.name}:     {at}, admin http://127.0.0.1:{one.port(3)}/")
    say("")
    say("in another terminal:")
    say("")
    say(f"  . {folder}/env")
    say(f"  export SHARDGIT_DATA={folder / first.name}")
    say("  .venv/bin/shardgit cluster status")
    say("  .venv/bin/shardgit repo import demo .")
    say(f"  git clone http://127.0.0.1:{http}/demo.git")
    say("")
    say(f"Logs are in {folder}. Ctrl-C stops all of it; the data stays.")


if __name__ == "__main__":
    main()

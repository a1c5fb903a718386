"""Load a server for minutes as a host's clients would, one of them hostile, and say whether it stood: `make soak`.

    python bench/soak/run.py --minutes 10 [--out soak.json] [--workers 2] [--hostile 10] [--folder DIR]

Each kind of request is made alone, again and again; then all kinds come at random, at the rates in
bench/soak/clients.py, whether the ones before have ended or not (so a slow server cannot slow its load down). Both take
turns, PARTS times, so that a machine which is slower for a while is so for both. In the load the server is told to
reload, once. The rates take about a third of a machine of two cores, clients included: what is told is how a server
does below its limits, beside one who tries to harm it.

It ends with 1 when a well-behaved client saw an error, when what was acknowledged is not there, when the store does
not verify, when memory, files or threads grow in the last part, or when a kind's 99th hundredth takes more than twice
as long as alone and 20 ms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402
from clients import APPS, ENVIRONMENT, LARGE, Clients, Failed, Kind  # noqa: E402
from watch import Sample, Watch, growth, rows  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """\
auth = "required"
grpc_connection_s = {connection_s}
[limits]
address_requests = 128
address_rate = 6000
actor_requests = 128
actor_rate = 6000
repository_requests = 256
"""
CONFIG_WORDS = "auth required; 128 requests at once and 6,000 a minute for an address and an actor"
PARTS = 3
RELOAD_AT = (
    0.3  # of the first part, behind which growth is judged: the new workers have seen all by then
)
IDLE_MAX = 200  # requests of a kind, alone
THREADS = 48
P99_TIMES = 2.0
P99_SLACK_S = 0.02  # a machine's own noise, beside which a short request's double is nothing
GROWTH = {"memory_mib": (0.08, 16.0), "files": (0.05, 16.0), "threads": (0.05, 8.0)}  # share, least
SETTLE_S = 300.0
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 << 30


@dataclass(slots=True)
class Times:
    """Seconds that each kind's requests took, and what went wrong."""

    took: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def once(self, kind: Kind) -> None:
        """Make a request."""
        try:
            seconds = kind.does()
        except Exception as error:
            with self.lock:
                self.errors.append(f"{kind.name}: {type(error).__name__}: {error}"[:600])
        else:
            with self.lock:
                self.took.setdefault(kind.name, []).append(seconds)


def quantile(values: list[float], q: float) -> float:
    """Return the value that a share of all do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def command(*words: str) -> str:
    """Run shardgit; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "shardgit", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"shardgit {' '.join(words[:2])}: {done.stderr.strip()[-600:]}")
    return done.stdout


class Server:
    """A running server, its configuration and its log."""

    def __init__(self, folder: Path, workers: int, *, connection_s: float) -> None:
        self.data, self.log = folder / "data", folder / "server.log"
        config = folder / "shardgit.toml"
        config.write_text(CONFIG.format(connection_s=connection_s))
        words = [
            "--config",
            str(config),
            "--data",
            str(self.data),
            "--workers",
            str(workers),
            "--json",
        ]
        free = [
            word for key in ("http", "ssh", "grpc", "admin") for word in (f"--{key}", "127.0.0.1:0")
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shardgit", "serve", *words, *free],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        lines = []
        while (line := self.process.stdout.readline()) and line != "}\n":
            lines.append(line)
        if not line:
            raise Failed(f"server did not start: {self.log.read_text()[-600:]}")
        self.facts: dict[str, str] = json.loads("".join([*lines, line]))

    def events(self, name: str) -> int:
        """Return how often an event stands in the log."""
        return self.log.read_text().count(f'"event": "{name}"')

    def errors(self) -> Counter[str]:
        """Return the events of the log that are errors."""
        whole = self.log.read_text().rpartition("\n")[0].splitlines()
        told = [
            json.loads(line) if line.startswith("{") else {"level": "error", "event": line}
            for line in whole
        ]
        return Counter(
            str(one["event"]) for one in told if one.get("level") in {"error", "critical"}
        )

    def reload(self) -> None:
        """Have it replace its workers."""
        self.process.send_signal(signal.SIGHUP)

    def refused(self) -> dict[str, float]:
        """Return the samples of what was refused."""
        with urllib.request.urlopen(f"http://{self.facts['admin']}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        name = "shardgit_requests_refused_total"
        return {
            k: float(v)
            for k, _, v in (line.rpartition(" ") for line in lines)
            if k.startswith(name)
        }

    def stop(self) -> int:
        """Stop it; returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def made(folder: Path, commits: int) -> dict[str, str]:
    """Make the store: repositories, tokens and a key; returns what is secret."""
    data = folder / "data"
    source = generate.deep(folder / "source", commits=commits, files=120, seed=7)
    command("init", str(data), "--shards", "2")
    for name in (*APPS, LARGE, "mallory/x"):
        command("repo", "import", name, str(source), "--data", str(data))
    on = ("--data", str(data))
    words = [word for owner in ("team/**", "other/**") for word in ("--write", owner)]
    token = command("token", "create", "--name", "good", *words, *on).split()[-1]
    wicked = command("token", "create", "--name", "mallory", "--write", "mallory/**", *on).split()[
        -1
    ]
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    command("key", "add", f"{key}.pub", "--name", "good", "--read", "**", *on)
    head = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {"token": token, "wicked": wicked, "key": str(key), "head": head}


def alone(kinds: list[Kind], times: Times, count: int) -> None:
    """Make requests of each kind one after another, kinds in turns."""
    for _ in range(count):
        for kind in kinds:
            if kind.sampled:
                times.once(kind)


@contextmanager
def client_folder(folder: Path) -> Iterator[Path]:
    """Have a folder for clients, in memory where there is room: their writes do not keep the server's disk busy."""
    place = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES else folder
    with tempfile.TemporaryDirectory(
        prefix="clients-", dir=place, ignore_cleanup_errors=True
    ) as made:
        yield Path(made)


def rested(watch: Watch, kinds: list[Kind], times: Times, count: int) -> tuple[float, float]:
    """Make requests of each kind alone; returns when that began and ended."""
    begun = watch.now_s
    alone(kinds, times, count)
    return begun, watch.now_s


def together(
    kinds: list[Kind], times: Times, seconds: float, reload_at: float, server: Server
) -> int:
    """Have requests of all kinds come at random for so long; returns how many were late.

    Each kind is a Poisson process of its own.
    """
    begun = time.monotonic()
    due = {kind.name: random.expovariate(kind.a_minute / 60) for kind in kinds}
    by_name = {kind.name: kind for kind in kinds}
    reloaded, late = False, 0
    with ThreadPoolExecutor(THREADS) as pool:
        while True:
            name = min(due, key=due.__getitem__)
            at = due[name]
            if at >= seconds:
                break
            if not reloaded and at >= reload_at:
                reloaded = True
                server.reload()
            wait = begun + at - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            elif wait < -1:
                late += 1
            pool.submit(times.once, by_name[name])
            due[name] = at + random.expovariate(by_name[name].a_minute / 60)
    return late


@contextmanager
def attacked(
    server: Server, secrets: dict[str, str], a_second: float, told: Counter[str]
) -> Iterator[None]:
    """Have the hostile client beside; counts what it was told."""
    if not a_second:
        yield
        return
    facts = server.facts
    process = subprocess.Popen(
        [
            *(sys.executable, str(HERE / "hostile.py"), facts["http"], facts["ssh"], facts["grpc"]),
            *(secrets["wicked"], str(a_second)),
        ],
        env={**os.environ, "SOAK_WANT": secrets["head"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=60)
    for attack, answers in json.loads(out).items():
        told.update({f"{attack} {answer}": count for answer, count in answers.items()})


def verified(server: Server, clients: Clients, folder: Path) -> list[str]:
    """Return what is wrong with the store: acknowledged refs that are not there, repositories, a clone by git."""
    wrong = []
    for app in (*APPS, LARGE):
        listed = [line.split() for line in clients.git("ls-remote", clients.url(app)).splitlines()]
        refs = {name: oid for oid, name in listed}
        acknowledged = {
            ref: oid for (name, ref), oid in clients.acknowledged.items() if name == app
        }
        wrong += [
            f"{app} {ref} was acknowledged"
            for ref, oid in acknowledged.items()
            if refs.get(ref) != oid
        ]
        target = folder / f"judge-{app.replace('/', '-')}"
        try:
            clients.git("clone", "-q", "--mirror", clients.url(app), str(target))
            clients.git("fsck", "--strict", "--no-dangling", cwd=target)
            command("repo", "verify", app, "--eager", "--data", str(server.data))
        except Failed as error:
            wrong.append(f"{app}: {error}")
    try:
        command("shard", "verify", "--data", str(server.data))
    except Failed as error:
        wrong.append(str(error))
    return wrong


def table(kinds: list[Kind], idle: Times, load: Times) -> list[dict[str, Any]]:
    """Return a row for each kind."""
    found = []
    for kind in kinds:
        one, two = idle.took.get(kind.name, []), load.took.get(kind.name, [])
        row: dict[str, Any] = {"kind": kind.name, "a_minute": kind.a_minute}
        for side, values in (("idle", one), ("load", two)):
            row[side] = {
                "count": len(values),
                **{f"p{q}_ms": round(quantile(values, q / 100) * 1_000, 1) for q in (50, 99)},
            }
        before, after = quantile(one, 0.99), quantile(two, 0.99)
        row["ratio"] = round(after / before, 2) if before else None
        row["within"] = not kind.sampled or after <= P99_TIMES * before + P99_SLACK_S
        found.append(row)
    return found


def say(text: str = "") -> None:
    """Print a line."""
    print(text, flush=True)


def show(result: dict[str, Any]) -> None:
    """Print the table and the verdict."""
    heads = ["a minute", "alone n", "p50 ms", "p99 ms", "load n", "p50 ms", "p99 ms", "p99 x"]
    say("\n" + f"{'kind':15}" + "".join(f"{head:>9}" for head in heads))
    for row in result["kinds"]:
        idle, load = row["idle"], row["load"]
        figures = "".join(
            f"{side[key]:>9}" for side in (idle, load) for key in ("count", "p50_ms", "p99_ms")
        )
        say(
            f"{row['kind']:15}{row['a_minute']:>9}{figures}{row['ratio'] or '-':>9}{'' if row['within'] else '  !'}"
        )
    say()
    for key, one in result["growth"].items():
        say(
            f"{key:15}mean {one['mean']:.0f}, most {one['most']:.0f}, {one['grown']:+.1f} at rest in the last part"
        )
    ours, all_of_it = result["server_cpu_share"], result["machine_cpu_share"]
    say(f"CPU in the load: {ours:.0%} of the machine for the server, {all_of_it:.0%} in all")
    say(f"hostile: {sum(result['hostile'].values())} attacks; refused: {result['refused']}")
    for what, wrong in result["wrong"].items():
        say(f"{what:15}{'well' if not wrong else f'{len(wrong)} WRONG'}")
        for each in wrong[:5]:
            say(f"  {each}")
    say("verdict: " + ("it stood" if result["stood"] else "it did not stand"))


def spent(samples: list[Sample]) -> float:
    """Return the CPU seconds that processes spent; when one ends, what it had spent is gone from the sum."""
    rises = [after.cpu_s - before.cpu_s for before, after in itertools.pairwise(samples)]
    return sum(rise for rise in rises if rise > 0)


def machine_cpu_s() -> float:
    """Return the seconds that all cores have worked since the start."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(words[at]) for at in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def soak(folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    """Run it; returns what was found."""
    seconds = words.minutes * 60
    say("making a store")
    secrets = made(folder, words.commits)
    with ExitStack() as held:
        work = held.enter_context(client_folder(folder))
        server = Server(folder, words.workers, connection_s=max(1.0, min(60.0, seconds / 10)))
        held.callback(server.stop)
        clients = Clients(work, server.facts, secrets["token"], Path(secrets["key"]))
        held.callback(clients.close)
        clients.prepare()
        kinds = clients.kinds()
        idle, load, rises = Times(), Times(), 0.0
        count = max(2, min(IDLE_MAX, int(20 * words.minutes)) // (PARTS + 1))
        alone(kinds, Times(), 1)  # what is read for the first time
        told: Counter[str] = Counter()
        late, lasted, worked = 0, 0.0, 0.0
        rests: list[tuple[float, float]] = []
        with Watch(server.process.pid) as watch:
            for part in range(PARTS):
                say(f"each kind alone, {count} times, load average {os.getloadavg()[0]:.1f}")
                rests.append(rested(watch, kinds, idle, count))
                say(f"all together, {words.minutes / PARTS:.1f} minutes")
                cpu, begun, seen = machine_cpu_s(), time.monotonic(), len(watch.samples)
                reload_at = seconds / PARTS * (RELOAD_AT if part == 0 else 2)
                with attacked(server, secrets, words.hostile, told):
                    late += together(kinds, load, seconds / PARTS, reload_at, server)
                lasted += time.monotonic() - begun
                worked += machine_cpu_s() - cpu
                rises += spent(watch.samples[seen:])
            say(f"each kind alone, {count} times")
            rests.append(rested(watch, kinds, idle, count))
            end = time.monotonic() + SETTLE_S
            while server.events("worker_replaced") < words.workers and time.monotonic() < end:
                time.sleep(0.2)
        samples = watch.samples
        refused = server.refused()
        say("verifying")
        store = verified(server, clients, work)
        code = server.stop()
    errors = server.errors()
    grown = {key: growth(samples, key, rests[2:]) for key in GROWTH}
    grows = [
        f"{key} by {grown[key]['grown']:.1f}"
        for key, (share, least) in GROWTH.items()
        if not grown[key]["grown"] <= max(share * grown[key]["at_rest"], least)
    ]
    rated = table(kinds, idle, load)
    slow = [f"{row['kind']}: {row['ratio']}" for row in rated if not row["within"]]
    wrong = {
        "clients": idle.errors + load.errors,
        "store": store,
        "memory": grows,
        "latency": slow,
        "server": [f"{name} {count} times in the log" for name, count in errors.items()]
        + ([] if code == 0 else [f"exit code {code}"])
        + ([] if server.events("reloaded") == 1 else ["it did not reload"])
        + ([f"{died} workers died"] if (died := server.events("worker_died")) else [])
        + ([f"{late} requests began late"] if late else []),
    }
    return {
        "minutes": words.minutes,
        "workers": words.workers,
        "cores": os.cpu_count(),
        "configuration": CONFIG_WORDS,
        "hostile_a_second": words.hostile,
        "kinds": rated,
        "growth": {
            key: {name: round(value, 2) for name, value in one.items()}
            for key, one in grown.items()
        },
        "server_cpu_share": round(rises / lasted / (os.cpu_count() or 1), 3),
        "machine_cpu_share": round(worked / lasted / (os.cpu_count() or 1), 3),
        "hostile": dict(sorted(told.items())),
        "refused": refused,
        "reloads": server.events("reloaded"),
        "acknowledged_refs": len(clients.acknowledged),
        "wrong": wrong,
        "stood": not any(wrong.values()),
        "samples": rows(samples),
    }


def main() -> None:
    """Soak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--hostile", type=float, default=10.0, help="attacks a second; 0 for none")
    parser.add_argument(
        "--commits", type=int, default=400, help="of the history that the repositories have"
    )
    parser.add_argument(
        "--folder", type=Path, help="where everything lies; it stays; else a temporary one"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    words = parser.parse_args()
    folder = words.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = soak(folder, words)
    finally:
        if words.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if words.out is not None:
        words.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    raise SystemExit(0 if result["stood"] else 1)


if __name__ == "__main__":
    main()

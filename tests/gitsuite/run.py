"""Runs git's own network tests against shardgit and compares with the list of expected failures.

    python tests/gitsuite/run.py GIT_SRC [--only t5500 ...] [--jobs N] [--protocol 0|1|2] [--keep]

GIT_SRC is git's source, built in place: its git, git-* programs and t/helper/test-tool are used as clients and as
the tests' tools. Nothing in it is changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gitsuite.tap import Script, parse  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = HERE.parent.parent
SCRIPTS = (
    *("t5500", "t5510", "t5516", "t5533", "t5534", "t5537", "t5538", "t5541"),
    *("t5543", "t5545", "t5551", "t5601", "t5616", "t5702", "t5703"),
)
SERVERS = (
    "git-upload-pack",
    "git-receive-pack",
    "git-upload-archive",
    "git-http-backend",
    "git-daemon",
)
PACKAGES = {
    "/usr/sbin/apache2": "apache2-bin",
    "/usr/bin/gpg": "gnupg",
    "/usr/bin/ssh-keygen": "openssh-client",
}
PASS_SHARE = 0.95
SCRIPT_TIME_MAX_S = 1_800


class NotReady(Exception):
    """Something that the suite needs is missing."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Where things stand. ``user`` is who runs the tests: git's HTTP tests refuse root."""

    source: Path
    work: Path
    scratch: Path
    user: str

    def as_user(self) -> list[str]:
        """Return the words before a command that make it run as the tests' user."""
        if not self.user:
            return []
        return ["setpriv", f"--reuid={self.user}", "--regid=nogroup", "--clear-groups"]

    @property
    def socket(self) -> Path:
        """Where the server listens."""
        return self.scratch / "socket"


def check_source(source: Path) -> None:
    """Raise NotReady unless git's source is there and built."""
    if not (source / "t" / "test-lib.sh").is_file():
        raise NotReady(f"{source} is not git's source: it has no t/test-lib.sh")
    for name in ("git", "t/helper/test-tool", "GIT-BUILD-OPTIONS"):
        if not (source / name).exists():
            raise NotReady(
                f"git's source in {source} is not built: {name} is missing; see its INSTALL"
            )
    if not (source / "git-remote-http").exists():
        raise NotReady(
            f"git in {source} is built without curl: the HTTP tests need git-remote-http"
        )


def install_packages() -> None:
    """Install the Debian packages that the tests need, where they are missing and we may."""
    missing = [package for path, package in PACKAGES.items() if not Path(path).exists()]
    if not missing:
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        print(f"missing: {' '.join(missing)}; the tests that need them are skipped")
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def make_programs(suite: Suite) -> None:
    """Lay out the exec path: the shims in front, everything else links to the real programs."""
    shim = suite.work / "shim"
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-O1", f'-DSOCKET="{suite.socket}"']
    command += [f'-DREAL_GIT="{suite.source}/git"']
    command += [f'-DREAL_TEST_TOOL="{suite.source}/t/helper/test-tool"']
    subprocess.run([*command, "-o", str(shim), str(HERE / "shim.c")], check=True)
    for name in ("exec", "bin"):
        shutil.rmtree(suite.work / name, ignore_errors=True)
        (suite.work / name).mkdir()
        for program in SERVERS:
            (suite.work / name / program).symlink_to(shim)
    for path in suite.source.iterdir():
        if path.name in SERVERS or not path.name.startswith("git"):
            continue
        if path.name == "git" or path.name.startswith("git-"):
            (suite.work / "exec" / path.name).symlink_to(path)
    (suite.work / "exec" / "mergetools").symlink_to(suite.source / "mergetools")
    shutil.rmtree(suite.work / "real", ignore_errors=True)
    (suite.work / "real").mkdir()
    (suite.work / "real" / "git").symlink_to(suite.source / "git")
    for name in ("git", "test-tool"):
        (suite.work / "bin" / name).symlink_to(shim)


def environment(suite: Suite, protocol: str) -> dict[str, str]:
    """Return the environment of the tests."""
    kept = {k: os.environ[k] for k in ("PATH", "LANG", "TERM", "TZ") if k in os.environ}
    made = {
        **kept,
        "HOME": str(suite.scratch / "home"),
        "GIT_TEST_INSTALLED": str(suite.work / "bin"),
        "GIT_TEST_EXEC_PATH": str(suite.work / "exec"),
        "GIT_TEST_OPTS": "",
        "GIT_TEST_HTTPD": "true",
        "GIT_TEST_GIT_DAEMON": "true",
        "TEST_OUTPUT_DIRECTORY": str(suite.scratch / "output"),
        "TEST_NO_MALLOC_CHECK": "t",
    }
    if protocol:
        made["GIT_TEST_PROTOCOL_VERSION"] = protocol
    return made


@contextmanager
def served(suite: Suite) -> Iterator[None]:
    """Run the suite's server."""
    log = (suite.work / "server.log").open("wb")
    command = [
        sys.executable,
        str(HERE / "server.py"),
        str(suite.socket),
        str(suite.source / "git"),
    ]
    with (
        log,
        subprocess.Popen(
            [*suite.as_user(), *command, str(suite.scratch / "stores")],
            stdout=subprocess.PIPE,
            stderr=log,
            env={
                **os.environ,
                "HOME": str(suite.scratch / "home"),
                "GIT_CONFIG_NOSYSTEM": "1",
                "PATH": f"{suite.work / 'real'}:{os.environ['PATH']}",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        ) as process,
    ):
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise NotReady(f"the suite's server did not start; see {suite.work / 'server.log'}")
        try:
            yield
        finally:
            process.terminate()


def run_script(suite: Suite, name: str, variables: dict[str, str]) -> Script:
    """Run one script."""
    (path,) = (suite.source / "t").glob(f"{name}-*.sh")
    begun = time.monotonic()
    log = suite.work / "logs" / f"{path.stem}.tap"
    with log.open("wb") as out:
        command = [*suite.as_user(), "nice", "/bin/sh", f"./{path.name}"]
        command += [f"--root={suite.scratch / 'trash'}", "--verbose-log", "-x"]
        try:
            subprocess.run(
                command,
                cwd=path.parent,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=SCRIPT_TIME_MAX_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            out.write(b"# over the time limit\n")
    script = parse(path.stem, log.read_text("utf-8", "replace"))
    script.seconds = time.monotonic() - begun
    written = suite.scratch / "output" / "test-results" / f"{path.stem}.out"
    if written.is_file():
        shutil.copyfile(written, suite.work / "logs" / f"{path.stem}.out")
    return script


def expected_failures() -> dict[str, dict[str, str]]:
    """Return titles and reasons by script."""
    found = tomllib.loads((HERE / "expected_failures.toml").read_text())
    return {script: dict(tests) for script, tests in found.items()}


def report(scripts: list[Script], expected: dict[str, dict[str, str]]) -> bool:
    """Print the table and all that is not as expected; return whether the run is good."""
    good = True
    heads = (
        "file",
        "tests",
        "passed",
        "failed: expected",
        "unexpected",
        "skipped",
        "git's own",
        "s",
    )
    rows: list[tuple[object, ...]] = []
    notes: list[str] = []
    passed_all = ran_all = 0
    for script in scripts:
        listed = expected.get(script.name.split("-")[0], {})
        failed = [test for test in script.tests if test.state == "failed"]
        surprising = [test for test in failed if test.title not in listed]
        passed = script.count("passed")
        ran_all += passed + len(failed)
        passed_all += passed
        rows.append(
            (
                script.name,
                len(script.tests),
                passed,
                len(failed) - len(surprising),
                len(surprising),
                script.count("skipped"),
                script.count("known"),
                f"{script.seconds:.0f}",
            )
        )
        for test in surprising:
            notes.append(f"FAILED  {script.name} {test.number}: {test.title}")
        for test in script.tests:
            if test.state == "skipped":
                notes.append(f"skipped {script.name} {test.number}: {test.title} ({test.why})")
            if test.state == "passed" and test.title in listed:
                notes.append(f"passes, though it is in the list: {script.name}: {test.title}")
        if script.skipped_whole:
            notes.append(f"SKIPPED {script.name}, all of it: {script.skipped_whole}")
        if not script.ended:
            notes.append(f"BROKE OFF {script.name} after {len(script.tests)} tests")
        good = good and not surprising and script.ended and not script.skipped_whole
    widths = [max(len(str(row[at])) for row in [heads, *rows]) for at in range(len(heads))]
    for row in [heads, *rows]:
        cells = [
            str(c).ljust(w) if not at else str(c).rjust(w)
            for at, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells))
    print()
    print("\n".join(notes))
    share = passed_all / ran_all if ran_all else 0.0
    print(
        f"\n{passed_all} of {ran_all} tests that ran passed: {100 * share:.1f}% (at least {100 * PASS_SHARE:.0f}%)"
    )
    return good and share >= PASS_SHARE


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else ""
    )
    parser.add_argument("source", type=Path, metavar="GIT_SRC", help="git's source, built in place")
    parser.add_argument("--only", nargs="*", default=SCRIPTS, help="scripts, as t5500")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--protocol", default="", choices=["", "0", "1", "2"])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gitsuite")
    parser.add_argument("--keep", action="store_true", help="keep the trash folders")
    asked = parser.parse_args()
    memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="gitsuite-", dir=memory if memory.is_dir() else None))
    user = "" if os.geteuid() else "nobody"
    suite = Suite(asked.source.resolve(), asked.work.resolve(), scratch, user)
    try:
        check_source(suite.source)
        install_packages()
        (suite.work / "logs").mkdir(parents=True, exist_ok=True)
        make_programs(suite)
        for name in ("home", "trash", "output", "stores"):
            (scratch / name).mkdir()
            if user:
                shutil.chown(scratch / name, user)
        if user:
            shutil.chown(scratch, user)
        variables = environment(suite, asked.protocol)
        with served(suite), ThreadPoolExecutor(asked.jobs) as pool:
            jobs = [pool.submit(run_script, suite, name, variables) for name in asked.only]
            good = report([job.result() for job in jobs], expected_failures())
    except NotReady as error:
        print(f"git-suite: {error}", file=sys.stderr)
        return 2
    finally:
        if not asked.keep:
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            print(f"kept: {scratch}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

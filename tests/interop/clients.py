"""Git clients for the interop matrix: how each is had, and how each does what a flow asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from served import clean_environment

PROGRAMS = Path(__file__).resolve().parent / "programs"
UNSUPPORTED = 3
STEP_TIME_MAX_S = 120
INSTALL_TIME_MAX_S = 1_800


class Unsupported(Exception):
    """The client has no such feature."""


class Failed(Exception):
    """The client did not do what it was asked for."""


class Absent(Exception):
    """The client cannot be had on this machine."""


def run(
    words: list[str], *, cwd: Path | None = None, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever it is."""
    try:
        return subprocess.run(
            words,
            cwd=cwd,
            env={**clean_environment(), "GIT_TERMINAL_PROMPT": "0", **(more or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STEP_TIME_MAX_S,
            check=False,
        )
    except subprocess.TimeoutExpired as cause:
        raise Failed(f"{words[0]} took over {STEP_TIME_MAX_S} s") from cause


def checked(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program printed; Unsupported or Failed by its code."""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    if done.returncode == UNSUPPORTED:
        raise Unsupported(said[-1] if said else "not supported")
    if done.returncode:
        raise Failed(" / ".join(said[-3:])[-300:])
    return done.stdout


@dataclass(slots=True)
class Client:
    """A client over one transport.

    ``url`` makes a repository's URL of a name; ``variables`` go into its environment. ``missing``
    are flows by name with the reason why it cannot have them.
    """

    name: str
    transport: str
    variables: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def version(self) -> str:
        """Return the client's version, as far as it tells."""
        return ""

    def clone(self, url: str, folder: Path) -> None:
        """Clone everything."""
        raise Unsupported

    def shallow(self, url: str, folder: Path, depth: int) -> None:
        """Clone the last commits."""
        raise Unsupported

    def partial(self, url: str, folder: Path) -> None:
        """Clone without blobs, nothing checked out."""
        raise Unsupported

    def fetch(self, folder: Path) -> None:
        """Fetch from origin."""
        raise Unsupported

    def push(self, folder: Path, *specs: str, atomic: bool = False) -> None:
        """Push to origin; Failed when any of the refs is refused."""
        raise Unsupported


class GitClient(Client):
    """C git, of any version."""

    program = "git"

    def git(self, *words: str, cwd: Path | None = None) -> str:
        """Run it."""
        return checked(run([self.program, *words], cwd=cwd, more=self.variables))

    def version(self) -> str:
        return self.git("--version").split()[2]

    def clone(self, url: str, folder: Path) -> None:
        self.git("clone", "--quiet", url, str(folder))

    def shallow(self, url: str, folder: Path, depth: int) -> None:
        self.git("clone", "--quiet", f"--depth={depth}", url, str(folder))
        self.git("fetch", "--quiet", f"--depth={depth + 1}", "origin", "main", cwd=folder)
        if self.git("rev-list", "--count", "FETCH_HEAD", cwd=folder).strip() != str(depth + 1):
            raise Failed("deepening did not bring one more commit")
        self.git("fetch", "--quiet", "--unshallow", cwd=folder)
        if (folder / ".git" / "shallow").exists():
            raise Failed("the clone stayed shallow after --unshallow")

    def partial(self, url: str, folder: Path) -> None:
        words = ("clone", "--quiet", "--filter=blob:none", "--no-checkout", url, str(folder))
        try:
            self.git(*words)
        except Failed as error:
            if "unknown option" in str(error) or "usage: git clone" in str(error):
                raise Unsupported(f"git {self.version()} has no partial clone") from error
            raise

    def fetch(self, folder: Path) -> None:
        self.git("fetch", "--quiet", "origin", cwd=folder)

    def push(self, folder: Path, *specs: str, atomic: bool = False) -> None:
        extra = ["--atomic"] if atomic else []
        try:
            self.git("push", "--quiet", *extra, "origin", *specs, cwd=folder)
        except Failed as error:
            if "unknown option" in str(error):
                raise Unsupported(f"git {self.version()} has no --atomic") from error
            raise


class ProgramClient(Client):
    """A program of ours on a library, with one verb a call."""

    words: tuple[str, ...] = ()
    said_version = ""

    def version(self) -> str:
        return self.said_version

    def do(self, *words: str) -> None:
        """Run one verb."""
        checked(run([*self.words, *words], more=self.variables))

    def clone(self, url: str, folder: Path) -> None:
        self.do("clone", url, str(folder))

    def shallow(self, url: str, folder: Path, depth: int) -> None:
        self.do("shallow", url, str(folder), str(depth))

    def partial(self, url: str, folder: Path) -> None:
        self.do("partial", url, str(folder))

    def fetch(self, folder: Path) -> None:
        self.do("fetch", str(folder))

    def push(self, folder: Path, *specs: str, atomic: bool = False) -> None:
        self.do("atomic" if atomic else "push", str(folder), *specs)


class JgitClient(Client):
    """The jgit command."""

    def jgit(self, *words: str, cwd: Path | None = None) -> None:
        """Run it."""
        done = run(["jgit", *words], cwd=cwd, more=self.variables)
        if "is not a valid option" in done.stderr or "not a jgit command" in done.stderr:
            raise Unsupported(f"jgit {self.version()} has no {words[0]} {words[1]}")
        said = checked(done) + done.stderr
        if "rejected" in said or "fatal:" in said:
            raise Failed(" / ".join(said.strip().splitlines()[-3:])[-300:])

    def version(self) -> str:
        return checked(run(["jgit", "version"], more=self.variables)).split()[-1]

    def clone(self, url: str, folder: Path) -> None:
        self.jgit("clone", url, str(folder))

    def shallow(self, url: str, folder: Path, depth: int) -> None:
        self.jgit("clone", "--depth", str(depth), url, str(folder))

    def partial(self, url: str, folder: Path) -> None:
        raise Unsupported("jgit's command has no filter option")

    def fetch(self, folder: Path) -> None:
        self.jgit("fetch", "origin", cwd=folder)

    def push(self, folder: Path, *specs: str, atomic: bool = False) -> None:
        self.jgit("push", *(["--atomic"] if atomic else []), "origin", *specs, cwd=folder)


# ---- how they are had ----


def _package(program: str, package: str) -> None:
    """Install a Debian package, where the program is missing and we may."""
    if shutil.which(program):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise Absent(f"{program} is not installed; Debian's {package} has it")
    noninteractive = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    subprocess.run(
        ["apt-get", "update", "-qq"], env=noninteractive, capture_output=True, check=False
    )
    done = subprocess.run(words, env=noninteractive, capture_output=True, check=False)
    if done.returncode or not shutil.which(program):
        raise Absent(f"Debian's {package} cannot be installed")


def _build(words: list[str], folder: Path) -> None:
    """Run one step of an install, at low priority; Absent when it fails."""
    if not shutil.which(words[0]):
        raise Absent(f"{words[0]} is not installed")
    try:
        done = subprocess.run(
            ["nice", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_TIME_MAX_S,
            check=False,
        )
    except subprocess.TimeoutExpired as cause:
        raise Absent(f"{' '.join(words[:3])} took too long") from cause
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Absent(f"{' '.join(words[:3])}: {said[-1] if said else done.returncode}"[:200])


def jgit() -> JgitClient:
    """Return Debian's jgit."""
    _package("jgit", "jgit-cli")
    client = JgitClient("jgit", "http")
    # Debian's wrapper leaves out jars without which the program does not start.
    client.variables["JGIT_CLASSPATH"] = "/usr/share/java/*"
    client.missing["SHA-256"] = "jgit has no SHA-256"
    return client


def jgit_library(work: Path) -> ProgramClient:
    """Build our program on a current JGit, out of Maven's repository."""
    folder = work / "jgit"
    source = PROGRAMS / "jgit"
    built = folder / "classes" / "Client.class"
    if not built.is_file() or _older(built, source / "Client.java"):
        shutil.copytree(source, folder, dirs_exist_ok=True)
        _build(["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"], folder)
        _build(["javac", "-cp", "lib/*", "-d", "classes", "Client.java"], folder)
    client = ProgramClient("JGit", "http")
    client.words = ("java", "-cp", f"{folder}/classes:{folder}/lib/*", "Client")
    (jar,) = (folder / "lib").glob("org.eclipse.jgit-*.jar")
    client.said_version = jar.stem.removeprefix("org.eclipse.jgit-").split("-")[0]
    return client


def isomorphic(work: Path) -> ProgramClient:
    """Install isomorphic-git with npm."""
    folder = work / "isomorphic"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PROGRAMS / "isomorphic" / "main.mjs", folder / "main.mjs")
    if not (folder / "node_modules" / "isomorphic-git").is_dir():
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        _build(["npm", "install", "--no-audit", "--no-fund", "isomorphic-git"], folder)
    client = ProgramClient("isomorphic-git", "http")
    client.words = ("node", str(folder / "main.mjs"))
    return client


def gogit(work: Path) -> ProgramClient:
    """Build our program on go-git."""
    folder = work / "gogit"
    folder.mkdir(parents=True, exist_ok=True)
    source = PROGRAMS / "gogit"
    if not (folder / "gogit").is_file() or _older(folder / "gogit", source / "main.go"):
        for name in ("main.go", "go.mod"):
            shutil.copyfile(source / name, folder / name)
        _build(["go", "get", "github.com/go-git/go-git/v5@latest"], folder)
        _build(["go", "build", "-o", "gogit", "."], folder)
    client = ProgramClient("go-git", "http")
    client.missing["SHA-256"] = "go-git has SHA-256 only in builds for it alone"
    client.words = (str(folder / "gogit"),)
    return client


def gix(work: Path) -> ProgramClient:
    """Build our program on gix."""
    folder = work / "gix"
    binary = folder / "target" / "release" / "gix-client"
    source = PROGRAMS / "gix"
    if not binary.is_file() or _older(binary, source / "src" / "main.rs"):
        shutil.copytree(source, folder, dirs_exist_ok=True)
        _package("curl-config", "libcurl4-openssl-dev")
        _build(["cargo", "build", "--release", "--quiet"], folder)
    client = ProgramClient("gitoxide (gix)", "http")
    for flow in ("push", "atomic", "delete", "fork", "SHA-256"):
        client.missing[flow] = "gix has no push"
    client.words = (str(binary),)
    return client


def python_client(name: str, module: str) -> ProgramClient:
    """Return our program on a Python library."""
    client = ProgramClient(name, "http")
    client.words = (sys.executable, str(PROGRAMS / f"{module}_client.py"))
    asked = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    done = run([sys.executable, "-c", asked, module])
    if done.returncode:
        raise Absent(f"{module} is not installed in this Python; pip install {module}")
    client.said_version = done.stdout.strip()
    if module == "dulwich":
        client.missing["SHA-256"] = (
            "dulwich names no object format when it pushes: git refuses it too"
        )
    return client


def _older(binary: Path, source: Path) -> bool:
    return binary.stat().st_mtime < source.stat().st_mtime

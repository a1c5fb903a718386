"""What mkdocs adds to docs/: the README as first page, the changelog, and references made of the sources.

mkdocs calls on_files and on_page_markdown (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Files beside docs/ that are pages, and where the rest of the project is named as code instead of a link.
BESIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / file).read_text("utf-8") for file, page in BESIDE.items()}
    made |= references()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Lead links between the project's files to the pages that stand for them."""
    source = next((file for file, made in BESIDE.items() if made == page.file.src_uri), None)
    if source is None and page.file.generated_by:
        return markdown
    folder = (ROOT / "docs" / page.file.src_uri).parent if source is None else ROOT
    return _LINK.sub(lambda found: _led(found, folder, page.file.src_uri), markdown)


def references() -> dict[str, str]:
    """Return the pages of the reference that are made of sources: gRPC and the command line."""
    sys.path.insert(0, str(Path(__file__).parent))
    from proto_pages import described, pages

    made = {f"reference/grpc/{name}": text for name, text in pages(described()).items()}
    return {**made, "reference/command-line.md": command_line()}


def command_line() -> str:
    """Return the page of all commands."""
    from shardgit.cli.main import command
    from shardgit.cli.manual import ENVIRONMENT, EXIT, entries

    out = ["# Command line\n"]
    for entry in entries(command()):
        if entry.words:
            out.append(f"\n{'#' * (1 + len(entry.words))} shardgit {' '.join(entry.words)}\n")
        if not entry.is_group:
            out.append(f"\n    {entry.usage}\n")
        for text, verbatim in entry.blocks:
            out.append(f"\n```text\n{text}\n```\n" if verbatim else f"\n{escaped(text)}\n")
        rows = (*entry.arguments, *entry.options)
        if rows and entry.words:
            out.append("\n| | |\n|---|---|\n")
            out += [f"| `{word}` | {cell(escaped(meaning))} |\n" for word, meaning in rows]
    for title, told in (("Environment", ENVIRONMENT), ("Exit codes", EXIT)):
        out.append(f"\n## {title}\n\n| | |\n|---|---|\n")
        out += [f"| `{word}` | {escaped(meaning)} |\n" for word, meaning in told]
    return "".join(out)


def escaped(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    for each in ("\\", "*", "_", "<", "[", "`"):
        text = text.replace(each, f"\\{each}")
    return text


def cell(text: str) -> str:
    """Return text for a table's cell."""
    return text.replace("|", "\\|")


def _led(found: re.Match[str], folder: Path, page: str) -> str:
    text, target, anchor = found[1], found[2], found[3] or ""
    if "://" in target or target.startswith("mailto:"):
        return found[0]
    place = (folder / target).resolve()
    if not place.is_relative_to(ROOT) or not place.exists():
        return found[0]  # mkdocs tells of it
    file = place.relative_to(ROOT).as_posix()
    if place.is_dir():
        file = f"{file}/README.md"
    if file in BESIDE:
        goal = BESIDE[file]
    elif file.startswith("docs/") and (ROOT / file).exists():
        goal = file.removeprefix("docs/")
    else:
        return (
            text if text.startswith("`") else f"{text} (`{file}`)" if text != file else f"`{file}`"
        )
    up = "../" * page.count("/")
    return f"[{text}]({up}{goal}{anchor})"

"""The documentation is whole: every page has a place, every link a goal, the reference every method and field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import proto_pages
import pytest
import site_pages
import yaml

from shardgit.cli.main import command
from shardgit.cli.manual import entries, roff
from shardgit.config import SECTIONS, ServeConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KINDS = ("Read.", "Read,", "Write.", "Maintenance.")
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [page for each in inner for page in pages(each)]


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return site_pages.references()


def test_every_page_has_a_place_in_the_site(made: dict[str, str]) -> None:
    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(nav) == sorted(written | set(site_pages.BESIDE.values()) | set(made))


def test_every_link_between_documents_leads_somewhere() -> None:
    lost = []
    for path in [*DOCS.rglob("*.md"), *(ROOT / file for file in site_pages.BESIDE)]:
        for target, _ in LINK.findall(
            re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.S)
        ):
            if "://" not in target and not (path.parent / target).exists():
                lost.append(f"{path.relative_to(ROOT)}: {target}")
    assert not lost


def test_the_reference_has_every_service_method_message_field_and_value(
    made: dict[str, str],
) -> None:
    for file in proto_pages.described():
        page = made[f"reference/grpc/{proto_pages.page_of(file)}"]
        for service in file.service:
            assert f"\n## {service.name} {{" in page
            for method in service.method:
                assert (
                    f"\n### {method.name} {{ #{service.name.lower()}-{method.name.lower()} }}"
                    in page
                )
        for message in file.message_type:
            assert f"\n### {message.name} {{" in page
            for field in message.field:
                assert f"| `{field.name}` |" in page
        for enum in file.enum_type:
            assert all(f"| `{value.name}` |" in page for value in enum.value)


def test_every_service_and_method_says_what_it_does() -> None:
    silent = []
    for file in proto_pages.described():
        comments = proto_pages.Comments(file)
        for number, service in enumerate(file.service):
            where = (proto_pages.SERVICES, number)
            silent += [service.name] if not comments.of(where) else []
            for at, method in enumerate(service.method):
                said = comments.of((*where, proto_pages.METHODS, at))
                asked = service.name == "HookService"  # which others serve, and we call
                if not (asked and said) and not said.startswith(KINDS):
                    silent.append(f"{service.name}.{method.name}: {said[:60]}")
    assert not silent


def test_comments_show_as_they_were_written(made: dict[str, str]) -> None:
    page = made["reference/grpc/ref.md"]
    assert (
        "### ListRefs { #refservice-listrefs }\n\n[ListRefsRequest](#listrefsrequest) → stream of ["
        in page
    )
    assert "| `prefixes` | repeated bytes | 2 | all refs when there are none |" in page
    assert "HEAD left out" in page


def test_the_command_lines_page_has_every_command(made: dict[str, str]) -> None:
    page = made["reference/command-line.md"]
    for entry in entries(command()):
        if entry.words:
            assert f" shardgit {' '.join(entry.words)}\n" in page
        for word, _ in entry.options if entry.words else ():
            assert f"| `{word}` |" in page


def test_the_manual_page_has_every_command_and_no_text_that_roff_would_take_for_its_own() -> None:
    page = roff(command(), "1.0")
    for entry in entries(command()):
        if entry.words:
            assert f"\n.SS shardgit {' '.join(entry.words)}\n".replace("-", "\\-") in page
    macros = {".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".BR", ".nf", ".fi"}
    for line in page.splitlines():
        assert not line.startswith("'")
        assert not line.startswith(".") or line.split()[0] in macros


def test_the_page_of_the_configuration_has_every_key_with_its_default() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    sections = re.split(r"^## ", page, flags=re.M)[1:]
    told: dict[str, dict[str, str]] = {}
    for section in sections:
        named = re.match(r"`\[(\w+)\]`", section)
        rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (?:`([^`]*)`)? ?\|", section, re.M)
        keys = told.setdefault(named[1] if named else "", {})
        for names, default in rows:
            keys |= dict.fromkeys(re.findall(r"`(\w+)`", names), default)
    for section, shape in {"": ServeConfig, **SECTIONS}.items():
        defaults = {
            field.name: field.default
            for field in msgspec.structs.fields(shape)
            if field.name not in SECTIONS
        }
        assert told[section] == {
            key: "" if value in ("", ()) else str(value) for key, value in defaults.items()
        }

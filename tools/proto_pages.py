"""Pages of the gRPC interface, made of proto/shardgit/v1: every service, method, message, field and enum value."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor_pb2 import (
        DescriptorProto,
        EnumDescriptorProto,
        MethodDescriptorProto,
        ServiceDescriptorProto,
    )

PROTO = Path(__file__).resolve().parents[1] / "proto"
PACKAGE = "shardgit.v1"
# Numbers of fields in descriptor.proto, which paths of comments are made of.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, NESTED_ENUMS, VALUES, METHODS = 2, 3, 4, 2, 2
Where = tuple[int, ...]


def described(folder: Path = PROTO, package: str = PACKAGE) -> list[FileDescriptorProto]:
    """Return the files of a package, compiled with their comments, by name."""
    sources = sorted(str(path) for path in (folder / package.replace(".", "/")).glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        words = ["protoc", f"-I{folder}", f"-I{files('grpc_tools') / '_proto'}"]
        words += [f"--descriptor_set_out={out}", "--include_source_info", *sources]
        if protoc.main(words):
            raise SystemExit("protoc failed")
        found = FileDescriptorSet.FromString(out.read_bytes())
    return list(found.file)


def pages(found: list[FileDescriptorProto]) -> dict[str, str]:
    """Return Markdown by file name: a page a file, and index.md with all services and methods."""
    places = {name: page_of(file) for file in found for name in _names(file)}
    made = {page_of(file): "".join(Page(file, places).lines()) for file in found}
    return {"index.md": "".join(_index(found)), **made}


def page_of(file: FileDescriptorProto) -> str:
    """Return the name of a file's page."""
    return Path(file.name).with_suffix(".md").name


def _names(file: FileDescriptorProto) -> Iterator[str]:
    def inside(prefix: str, message: DescriptorProto) -> Iterator[str]:
        name = f"{prefix}.{message.name}"
        yield name
        for one in message.nested_type:
            yield from inside(name, one)
        for enum in message.enum_type:
            yield f"{name}.{enum.name}"

    for message in file.message_type:
        yield from inside(f".{file.package}", message)
    for enum in file.enum_type:
        yield f".{file.package}.{enum.name}"


def _index(found: list[FileDescriptorProto]) -> Iterator[str]:
    yield f"# gRPC\n\nPackage `{PACKAGE}`, made of `proto/shardgit/v1`. Reflection and `grpc.health.v1` are on.\n"
    for file in found:
        if not file.service:
            yield f"\n## [{Path(file.name).name}]({page_of(file)})\n\nMessages that others share.\n"
        comments = Comments(file)
        for number, service in enumerate(file.service):
            where: Where = (SERVICES, number)
            yield f"\n## [{service.name}]({page_of(file)}#{_anchor(service.name)})\n\n"
            yield f"{_sentence(comments.of(where))}\n\n| method | |\n|---|---|\n"
            for at, method in enumerate(service.method):
                told = _cell(_sentence(comments.of((*where, METHODS, at))))
                target = f"{page_of(file)}#{_anchor(f'{service.name}.{method.name}')}"
                yield f"| [{method.name}]({target}) | {told} |\n"


class Comments:
    """The comments of a file by the place of what they stand at."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._found = {
            tuple(one.path): (one.leading_comments.strip(), one.trailing_comments.strip())
            for one in file.source_code_info.location
        }

    def of(self, where: Where) -> str:
        """Return what is said before something and behind it, in one line a paragraph."""
        parts = [text for text in self._found.get(where, ("", "")) if text]
        blocks = [" ".join(block.split()) for text in parts for block in text.split("\n\n")]
        return "\n\n".join(blocks)


@dataclass(frozen=True, slots=True)
class Page:
    """One file's page; ``places`` say which page has a message or enum, by full name."""

    file: FileDescriptorProto
    places: dict[str, str]

    def lines(self) -> Iterator[str]:
        """Return the page: services first, then messages and enums."""
        comments = Comments(self.file)
        title = ", ".join(one.name for one in self.file.service) or Path(self.file.name).stem
        yield f"# {title}\n\n`{self.file.name}`\n"
        for number, service in enumerate(self.file.service):
            yield from self._service(service, (SERVICES, number), comments)
        if self.file.message_type:
            yield "\n## Messages\n"
        for number, message in enumerate(self.file.message_type):
            yield from self._message(message, "", (MESSAGES, number), comments)
        if self.file.enum_type:
            yield "\n## Enums\n"
        for number, enum in enumerate(self.file.enum_type):
            yield from self._enum(enum, "", (ENUMS, number), comments)

    def _service(
        self, service: ServiceDescriptorProto, where: Where, comments: Comments
    ) -> Iterator[str]:
        yield _heading(2, service.name, service.name)
        yield f"{_text(comments.of(where))}\n"
        for at, method in enumerate(service.method):
            yield _heading(3, method.name, f"{service.name}.{method.name}")
            yield f"{self._signature(method)}\n\n"
            yield f"{_text(comments.of((*where, METHODS, at)))}\n"

    def _signature(self, method: MethodDescriptorProto) -> str:
        asked, answered = self._link(method.input_type), self._link(method.output_type)
        asked = f"stream of {asked}" if method.client_streaming else asked
        return f"{asked} → {'stream of ' if method.server_streaming else ''}{answered}"

    def _message(
        self, message: DescriptorProto, prefix: str, where: Where, comments: Comments
    ) -> Iterator[str]:
        if message.options.map_entry:
            return
        name = f"{prefix}{message.name}"
        yield _heading(3, name, name)
        if said := comments.of(where):
            yield f"{_text(said)}\n\n"
        if message.field:
            yield "| field | type | number | |\n|---|---|---|---|\n"
        else:
            yield "No fields.\n"
        for at, field in enumerate(message.field):
            said = comments.of((*where, FIELDS, at))
            choice = ""
            if field.HasField("oneof_index") and not field.proto3_optional:
                choice = f"one of *{message.oneof_decl[field.oneof_index].name}*; "
            yield f"| `{field.name}` | {self._type(field, message)} | {field.number} | {_cell(choice + said)} |\n"
        for at, inner in enumerate(message.nested_type):
            yield from self._message(inner, f"{name}.", (*where, NESTED, at), comments)
        for at, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.", (*where, NESTED_ENUMS, at), comments)

    def _enum(
        self, enum: EnumDescriptorProto, prefix: str, where: Where, comments: Comments
    ) -> Iterator[str]:
        name = f"{prefix}{enum.name}"
        yield _heading(3, name, name)
        if said := comments.of(where):
            yield f"{_text(said)}\n\n"
        yield "| value | number | |\n|---|---|---|\n"
        for at, value in enumerate(enum.value):
            said = _cell(comments.of((*where, VALUES, at)))
            yield f"| `{value.name}` | {value.number} | {said} |\n"

    def _type(self, field: Field, message: DescriptorProto) -> str:
        entry = next(
            (
                one
                for one in message.nested_type
                if one.options.map_entry and field.type_name.endswith(f".{one.name}")
            ),
            None,
        )
        if entry is not None:
            key, value = (self._type(one, entry) for one in entry.field)
            return f"map of {key} to {value}"
        words = {Field.LABEL_REPEATED: "repeated "}.get(field.label, "")
        if field.proto3_optional:
            words = "optional "
        if field.type_name:
            return words + self._link(field.type_name)
        return words + Field.Type.Name(field.type).removeprefix("TYPE_").lower()

    def _link(self, full: str) -> str:
        name = full.removeprefix(f".{self.file.package}.")
        page = self.places.get(full)
        if page is None:
            return f"`{full.lstrip('.')}`"
        return f"[{name}]({'' if page == page_of(self.file) else page}#{_anchor(name)})"


def _anchor(name: str) -> str:
    return name.lower().replace(".", "-")


def _heading(level: int, text: str, name: str) -> str:
    return f"\n{'#' * level} {text} {{ #{_anchor(name)} }}\n\n"


def _sentence(text: str) -> str:
    """Return what a comment says first: whether it reads or writes, and a sentence."""
    kind, mark, rest = text.partition(". ")
    if mark and " " not in kind:
        return f"{kind}. {rest.partition('. ')[0].rstrip('.')}."
    return f"{kind.rstrip('.')}." if kind else ""


def _text(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    for each in ("\\", "*", "_", "<", "["):
        text = text.replace(each, f"\\{each}")
    return text


def _cell(text: str) -> str:
    return _text(text).replace("\\*", "*", 2).replace("|", "\\|").replace("\n\n", "<br>")

"""An OpenAPI description of the methods that have a path (`google.api.http`), in protobuf's JSON. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2

Json = dict[str, Any]

_VERSION = "1"
_TYPE = descriptor_pb2.FieldDescriptorProto
_SCALARS: Mapping[int, Json] = {
    _TYPE.TYPE_BOOL: {"type": "boolean"},
    _TYPE.TYPE_BYTES: {"type": "string", "format": "byte"},
    _TYPE.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _TYPE.TYPE_FLOAT: {"type": "number", "format": "float"},
    _TYPE.TYPE_INT32: {"type": "integer", "format": "int32"},
    _TYPE.TYPE_INT64: {"type": "string", "format": "int64"},
    _TYPE.TYPE_STRING: {"type": "string"},
    _TYPE.TYPE_UINT32: {"type": "integer", "format": "int64"},
    _TYPE.TYPE_UINT64: {"type": "string", "format": "uint64"},
}
_WELL_KNOWN: Mapping[str, Json] = {
    ".google.protobuf.Duration": {"type": "string", "example": "0.012s"},
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "additionalProperties": True,
    },
}
_ERROR = ".google.rpc.Status"
_HTTP: Any = annotations_pb2.http  # its stub has another type than that of an extension
_PARAMETER = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Element:
    """A message, an enum, a method or a field, with its comment."""

    name: str  # in full, with a dot before
    proto: Any
    comment: str


def describe_api(files: descriptor_pb2.FileDescriptorSet) -> Json:
    """The description of all methods with a path."""
    api = _Api(files)
    paths: Json = {}
    for method in api.methods:
        for verb, path in _bindings(method.proto.options.Extensions[_HTTP]):
            paths.setdefault(path, {})[verb] = api.describe_method(method, path)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "hotslot over HTTP and JSON",
            "version": _VERSION,
            "description": "What a proxy with a transcoder answers, for example Envoy with deploy/envoy/http-json.yaml."
            " Made from the .proto files by `make protos`.",
        },
        "paths": paths,
        "components": {"schemas": api.schemas()},
    }


def to_text(description: Json) -> str:
    """The file."""
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


class _Api:
    """The elements of all files, and the schemas that were asked for."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self._types: dict[str, Element] = {}
        self._fields: dict[str, str] = {}  # comment by full name
        self.methods: list[Element] = []
        self._wanted: dict[str, Json] = {}
        for file in files.file:
            self._add_file(file)

    def describe_method(self, method: Element, path: str) -> Json:
        """One operation."""
        names = _PARAMETER.findall(path)
        service, _, name = method.name.rpartition(".")
        suffix = "".join(f"_by_{one}" for one in names)
        first, _, _ = method.comment.partition("\n\n")
        found: Json = {
            "operationId": f"{service.rpartition('.')[2]}_{name}{suffix}",
            "tags": [service.rpartition(".")[2]],
            "summary": first.replace("\n", " "),
            "description": method.comment,
            "responses": {
                "200": _content("The answer.", self._refer(method.proto.output_type)),
                "default": _content("Why there is none; `details` has the reason.", self._refer(_ERROR)),
            },
        }
        if names:
            found["parameters"] = [
                {"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in names
            ]
        if method.proto.options.Extensions[_HTTP].body or names:
            body = _content("", self._refer(method.proto.input_type))
            found["requestBody"] = {"required": True, "content": body["content"]}
        return found

    def schemas(self) -> Json:
        """All schemas that were referred to, by name."""
        return dict(sorted(self._wanted.items()))

    def _add_file(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        comments = {tuple(place.path): _clean(place.leading_comments) for place in file.source_code_info.location}
        package = f".{file.package}"
        for number, message in enumerate(file.message_type):
            self._add_message(message, f"{package}.{message.name}", (4, number), comments)
        for number, enum in enumerate(file.enum_type):
            self._types[f"{package}.{enum.name}"] = Element(enum.name, enum, comments.get((5, number), ""))
        for number, service in enumerate(file.service):
            for place, method in enumerate(service.method):
                if method.options.Extensions[_HTTP].WhichOneof("pattern"):
                    comment = comments.get((6, number, 2, place), "")
                    self.methods.append(Element(f"{package}.{service.name}.{method.name}", method, comment))

    def _add_message(
        self, message: descriptor_pb2.DescriptorProto, name: str, place: tuple[int, ...], comments: Mapping[Any, str]
    ) -> None:
        self._types[name] = Element(name, message, comments.get(place, ""))
        for number, field in enumerate(message.field):
            self._fields[f"{name}.{field.name}"] = comments.get((*place, 2, number), "")
        for number, inner in enumerate(message.nested_type):
            self._add_message(inner, f"{name}.{inner.name}", (*place, 3, number), comments)

    def _refer(self, name: str) -> Json:
        """The schema of a type, or a reference to it."""
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        short = name.lstrip(".").removeprefix("hotslot.")
        if short not in self._wanted:
            self._wanted[short] = {}  # now, so that a type may contain itself
            element = self._types[name]
            is_enum = isinstance(element.proto, descriptor_pb2.EnumDescriptorProto)
            self._wanted[short] = _enum_schema(element) if is_enum else self._message_schema(name, element)
        return {"$ref": f"#/components/schemas/{short}"}

    def _message_schema(self, name: str, element: Element) -> Json:
        properties = {}
        for field in element.proto.field:
            schema = self._field_schema(field)
            comment = self._fields[f"{name}.{field.name}"]
            if comment:
                # Beside a reference nothing else is read.
                schema = (
                    {"allOf": [schema], "description": comment}
                    if "$ref" in schema
                    else schema | {"description": comment}
                )
            properties[field.json_name] = schema
        return {"type": "object", "description": element.comment, "properties": properties}

    def _field_schema(self, field: descriptor_pb2.FieldDescriptorProto) -> Json:
        element = self._types.get(field.type_name)
        if field.type == _TYPE.TYPE_MESSAGE and element is not None and element.proto.options.map_entry:
            return {"type": "object", "additionalProperties": self._field_schema(element.proto.field[1])}
        is_named = field.type in (_TYPE.TYPE_MESSAGE, _TYPE.TYPE_ENUM)
        schema = self._refer(field.type_name) if is_named else dict(_SCALARS[field.type])
        return {"type": "array", "items": schema} if field.label == _TYPE.LABEL_REPEATED else schema


def _bindings(rule: http_pb2.HttpRule) -> Iterator[tuple[str, str]]:
    """Verb and path of a rule and of the further ones in it."""
    verb = rule.WhichOneof("pattern")
    if verb is not None:
        yield verb, getattr(rule, verb)
    for more in rule.additional_bindings:
        yield from _bindings(more)


def _content(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _enum_schema(element: Element) -> Json:
    return {"type": "string", "description": element.comment, "enum": [value.name for value in element.proto.value]}


def _clean(comment: str) -> str:
    """A comment without the blank before each line."""
    return "\n".join(line.removeprefix(" ") for line in comment.strip("\n").split("\n")).strip()

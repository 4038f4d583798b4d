"""Definitions of KubeRay, and the fields of them that our documents use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ROOT / "deploy" / "kubernetes"
DEFINITIONS = ROOT.parent / "shared" / "schemas" / "kuberay"
FIELDS = Path(__file__).parent / "kuberay_fields.json"
"""By kind, the type of every field that the documents use, as the definitions have it: `python -m tests.deploy.kuberay`
writes it."""


def documents() -> dict[tuple[str, str], dict[str, Any]]:
    """(file, kind) -> document, of every manifest."""
    return {
        (path.name, document["kind"]): document
        for path in sorted(DOCUMENTS.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    }


def of_ray() -> dict[tuple[str, str], dict[str, Any]]:
    return {key: document for key, document in documents().items() if document["apiVersion"] == "ray.io/v1"}


def definition(kind: str) -> dict[str, Any]:
    """JSON schema of a kind, closed: a field that it does not name is an error, as `kubectl --validate=strict` says."""
    path = DEFINITIONS / f"ray.io_{kind.lower()}s.yaml"
    versions = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]["versions"]
    [schema] = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    return _closed(schema)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: value for key, value in schema.items() if key in ("type", "enum", "required", "minItems", "minimum")}
    if "properties" in schema:
        closed["properties"] = {name: _closed(inner) for name, inner in schema["properties"].items()}
        closed["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    return closed


def types_in(document: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(path, JSON type) of every value; parts of a path are separated by spaces, items of a list share one."""
    if isinstance(document, dict):
        yield where, "object"
        for key, value in document.items():
            yield from types_in(value, f"{where} {key}".strip())
    elif isinstance(document, list):
        yield where, "array"
        for value in document:
            yield from types_in(value, f"{where} []")
    else:
        yield where, {bool: "boolean", int: "integer", float: "number", str: "string"}[type(document)]


def declared(schema: dict[str, Any], path: str) -> str | list[str] | None:
    """Type that a definition gives to a path of `types_in`; None where it has no such field."""
    for part in path.split():
        inner = schema.get("items") if part == "[]" else schema.get("properties", {}).get(part)
        if inner is None and part != "[]" and isinstance(schema.get("additionalProperties"), dict):
            inner = schema["additionalProperties"]
        if inner is None:
            return None
        schema = inner
    return schema.get("type", "object")


def declared_fields() -> dict[str, dict[str, Any]]:
    """By kind, the declared type of every path that our documents use."""
    found: dict[str, dict[str, Any]] = {}
    for (_, kind), document in of_ray().items():
        of_kind = found.setdefault(kind, {})
        schema = definition(kind)
        of_kind |= {path: declared(schema, path) for path, _ in types_in(document) if "metadata" not in path}
    return {kind: dict(sorted(fields.items())) for kind, fields in found.items()}


if __name__ == "__main__":
    FIELDS.write_text(json.dumps(declared_fields(), indent=1) + "\n", encoding="utf-8")

"""Fields of type Secret, and documents in which they are sealed.

A sealed document has a digest of each secret in its place, keyed by the run. A playbook holds, compares and
prints sealed documents; the module that writes a file unseals them, from a directory private to the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, PlainSerializer, SecretStr, SerializationInfo

#: Prefix of a sealed secret. No secret begins with it; servers refuse a document with sealed secrets.
SEALED = "sealed:"

#: Hexadecimal digits of a digest: 128 bits, so that two secrets do not collide.
_DIGITS = 32
#: Shorter secrets are not replaced in arbitrary text, where they could be parts of words.
_MIN_SCRUBBED = 8


def _serialize(value: SecretStr, info: SerializationInfo) -> str:
    return value.get_secret_value() if info.context == "with secrets" else str(value)


#: A value that is absent from repr, errors, differences and JSON, except from `dump_with_secrets`.
Secret = Annotated[SecretStr, PlainSerializer(_serialize, when_used="json")]


def dump_with_secrets(document: BaseModel, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """Return the document as data for JSON with its secrets, for a file or a process that needs them."""
    return document.model_dump(mode="json", exclude_defaults=exclude_defaults, context="with secrets")


@cache
def secret_fields(kind: type[BaseModel]) -> frozenset[str]:
    """Return the fields of `kind` that are secret or contain a secret."""
    annotations = {name: field.annotation for name, field in kind.model_fields.items()}
    return frozenset(name for name, annotation in annotations.items() if _secrets_in(name, annotation))


@cache
def secret_names(kind: type[BaseModel]) -> frozenset[str]:
    """Return the names of the fields of type Secret in `kind`, at any depth."""
    return frozenset(
        found for name, field in kind.model_fields.items() for found in _secrets_in(name, field.annotation)
    )


def _secrets_in(name: str, annotation: Any) -> frozenset[str]:
    if annotation is SecretStr:
        return frozenset((name,))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return secret_names(annotation)
    return frozenset(found for part in get_args(annotation) for found in _secrets_in(name, part))


def sealed_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of keys of each sealed secret of a document."""
    if isinstance(value, SecretStr):
        if value.get_secret_value().startswith(SEALED):
            yield path
    elif isinstance(value, BaseModel):
        for name in secret_fields(type(value)):
            yield from sealed_in(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from sealed_in(each, (*path, str(key)))
    elif isinstance(value, tuple):
        for number, each in enumerate(value):
            yield from sealed_in(each, (*path, str(number)))


class Sealer:
    """Seals the secrets of documents of one kind. Only the run can read `directory`.

    All sealers of a directory share a key, so that equal secrets have equal digests.
    """

    def __init__(self, kind: type[BaseModel], directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key = self._shared_key()
        names = "|".join(sorted(map(re.escape, secret_names(kind))))
        # In the text, because a truncated file is not valid JSON and is shown nevertheless.
        self._secrets = re.compile(rf'("(?:{names})"\s*:\s*")((?:[^"\\]|\\.)+)')
        self._digests = re.compile(rf"{SEALED}([0-9a-f]{{{_DIGITS}}})")

    def seal(self, text: str) -> str:
        """Replace each secret of a document's text."""
        return self._secrets.sub(lambda match: match[1] + self._digest(match[2]), text)

    def unseal(self, text: str) -> str:
        """Replace each digest by the secret that was sealed in this run."""
        return self._digests.sub(lambda match: self._secret(match[1]) or match[0], text)

    def seal_all(self, value: Any) -> Any:
        """Seal every text in a task's result; the run's secrets are replaced wherever they occur."""
        stored = {path.read_text("utf-8"): path.name for path in self._stored()}
        known = {text: digest for text, digest in stored.items() if len(text) >= _MIN_SCRUBBED}
        return self._walk(value, known)

    def _walk(self, value: Any, known: dict[str, str]) -> Any:
        if isinstance(value, str):
            sealed = self.seal(value)
            for secret, digest in known.items():
                sealed = sealed.replace(secret, SEALED + digest)
            return (
                value if sealed == value else sealed
            )  # unchanged texts keep the origin that Ansible tags them with
        if isinstance(value, dict):
            return {key: self._walk(each, known) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._walk(each, known) for each in value)
        if is_dataclass(value) and not isinstance(value, type):  # errors in the results of Ansible
            parts = {each.name: getattr(value, each.name) for each in fields(value)}
            return replace(value, **self._walk(parts, known))
        return value

    def _digest(self, written: str) -> str:
        """Seal one secret in its JSON form."""
        if written.startswith(SEALED):
            return written
        digest = hmac.new(self._key, written.encode(), hashlib.sha256).hexdigest()[:_DIGITS]
        if not (self._directory / digest).exists():
            self._store(digest, written.encode())
        return SEALED + digest

    def _secret(self, digest: str) -> str | None:
        try:
            return (self._directory / digest).read_text("utf-8")
        except FileNotFoundError:
            return None

    def _stored(self) -> list[Path]:
        return [path for path in self._directory.iterdir() if len(path.name) == _DIGITS]

    def _shared_key(self) -> bytes:
        path = self._directory / "key"
        if not path.exists():
            self._store("key", secrets.token_bytes(32))
        return path.read_bytes()

    def _store(self, name: str, content: bytes) -> None:
        """Write a file of the directory atomically; the first of several processes wins."""
        handle, new = tempfile.mkstemp(prefix=".new-", dir=self._directory)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            with contextlib.suppress(FileExistsError):
                os.link(new, self._directory / name)
        finally:
            Path(new).unlink()


def text_with_secrets(document: BaseModel) -> str:
    """Return the text of the document's file, secrets included."""
    return json.dumps(dump_with_secrets(document, exclude_defaults=True), indent=1) + "\n"

"""What is secret: fields of type Secret. Documents are shown and compared with these sealed.

A sealed document has, in place of each secret, a digest of it under a key of the run. So a playbook can hold,
compare and print documents; only what writes a file puts the secrets back, from a directory of the run's own.
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

#: What a sealed secret begins with. No secret does: a document with sealed ones is not fit for use.
SEALED = "sealed:"

#: Digits of a digest, hexadecimal; few enough to read, and too many to meet by chance.
_DIGITS = 32
#: Secrets of fewer characters are not looked for in arbitrary text, where they could be parts of words.
_MIN_SCRUBBED = 8


def _serialize(value: SecretStr, info: SerializationInfo) -> str:
    return value.get_secret_value() if info.context == "with secrets" else str(value)


#: A value that no output shows: not repr, not an error, not a difference, not a document as JSON, unless
#: `dump_with_secrets` makes it.
Secret = Annotated[SecretStr, PlainSerializer(_serialize, when_used="json")]


def dump_with_secrets(document: BaseModel, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """The document as data for JSON, secrets included: for a file or a process that must have them."""
    return document.model_dump(mode="json", exclude_defaults=exclude_defaults, context="with secrets")


@cache
def secret_fields(kind: type[BaseModel]) -> frozenset[str]:
    """Fields of `kind` that are secret, or that have a secret somewhere below them."""
    annotations = {name: field.annotation for name, field in kind.model_fields.items()}
    return frozenset(name for name, annotation in annotations.items() if _secrets_in(name, annotation))


@cache
def secret_names(kind: type[BaseModel]) -> frozenset[str]:
    """Names of the fields of type Secret in `kind`, at any depth."""
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
    """The keys of every sealed secret of a document."""
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
    """Seals the secrets of documents of one kind; `directory` is one that the run alone can read.

    All sealers of one directory share a key, so that equal secrets are equal when sealed.
    """

    def __init__(self, kind: type[BaseModel], directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key = self._shared_key()
        names = "|".join(sorted(map(re.escape, secret_names(kind))))
        # By text, since a file that was cut short is no JSON, and is shown all the same.
        self._secrets = re.compile(rf'("(?:{names})"\s*:\s*")((?:[^"\\]|\\.)+)')
        self._digests = re.compile(rf"{SEALED}([0-9a-f]{{{_DIGITS}}})")

    def seal(self, text: str) -> str:
        """Replace each secret of a document's text."""
        return self._secrets.sub(lambda match: match[1] + self._digest(match[2]), text)

    def unseal(self, text: str) -> str:
        """Put back the secrets that were sealed in this run."""
        return self._digests.sub(lambda match: self._secret(match[1]) or match[0], text)

    def seal_all(self, value: Any) -> Any:
        """Seal every text in a task's result; secrets known to the run are replaced wherever they are."""
        stored = {path.read_text("utf-8"): path.name for path in self._stored()}
        known = {text: digest for text, digest in stored.items() if len(text) >= _MIN_SCRUBBED}
        return self._walk(value, known)

    def _walk(self, value: Any, known: dict[str, str]) -> Any:
        if isinstance(value, str):
            sealed = self.seal(value)
            for secret, digest in known.items():
                sealed = sealed.replace(secret, SEALED + digest)
            return value if sealed == value else sealed  # Ansible's texts carry their origin
        if isinstance(value, dict):
            return {key: self._walk(each, known) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._walk(each, known) for each in value)
        if is_dataclass(value) and not isinstance(value, type):  # Ansible's errors, as results hold them
            parts = {each.name: getattr(value, each.name) for each in fields(value)}
            return replace(value, **self._walk(parts, known))
        return value

    def _digest(self, written: str) -> str:
        """Seal one secret as it is written in JSON."""
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
        """Write a file of the directory whole; the first of several processes wins."""
        handle, new = tempfile.mkstemp(prefix=".new-", dir=self._directory)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            with contextlib.suppress(FileExistsError):
                os.link(new, self._directory / name)
        finally:
            Path(new).unlink()


def text_with_secrets(document: BaseModel) -> str:
    """The document as its file holds it."""
    return json.dumps(dump_with_secrets(document, exclude_defaults=True), indent=1) + "\n"

"""Prepares an inventory's registry for the rollout: verifies a built file, or builds a list into a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from unmoor.dns.hostnames.registry import MAGIC, VERSION, RegistryError, open_registry, sha256_of
from unmoor.dns.hostnames.registry_build import build
from unmoor.dns.hostnames.registry_list import BadLines, read_lines
from unmoor.dns.protocol import names
from unmoor.errors import UnmoorError

#: Files kept in the cache: the newest ones.
_KEPT = 4


def prepare(path: Path, zones: Sequence[str], cache: Path) -> tuple[Path, str, int]:
    """Return a registry, its SHA-256 in hexadecimal, and its number of hostnames.

    `path` is a registry or a list. A list is built for `zones`, once for each content, into the directory
    `cache`. Raises RegistryError if the file is damaged or has no names, BadLinesError if a list has bad
    lines, and UnmoorError if a zone's name is invalid or the cache cannot be written.
    """
    try:
        found = path.stat()
        built, digest = _prepare(path, tuple(zones), cache, (found.st_ino, found.st_size, found.st_mtime_ns))
        size = len(open_registry(built))
    except OSError as error:
        fix = "write the list, or build the registry with `unmoor dns registry build`"
        raise RegistryError(path, str(error.strerror), fix) from None
    if not size:
        raise RegistryError(path, "has no names", "write them, or remove the variable")
    return built, digest, size


@lru_cache
def _prepare(path: Path, zones: tuple[str, ...], cache: Path, _: tuple[int, ...]) -> tuple[Path, str]:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            open_registry(path)  # verifies its checksum, which a digest of a damaged file does not
            return path, sha256_of(path)
        _refuse_cut_short(path, file)
        file.seek(0)
        content = hashlib.file_digest(file, "sha256").hexdigest()
    identity = hashlib.sha256(repr((content, sorted(zones), VERSION)).encode()).hexdigest()
    built = cache / f"{identity[:32]}.registry"
    if not _is_whole(built):
        cache.mkdir(parents=True, exist_ok=True)
        bad = BadLines(str(path))
        build(read_lines(str(path), bad), list(map(_apex, zones)), built, bad)
        for old in sorted(cache.glob("*.registry"), key=lambda each: -each.stat().st_mtime)[_KEPT:]:
            old.unlink()
    return built, sha256_of(built)


def _refuse_cut_short(path: Path, file: BinaryIO) -> None:
    """Raise RegistryError if a list does not end with a line end; the gzip reader detects a cut."""
    file.seek(0)
    if file.read(2) == b"\x1f\x8b" or not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        why = "ends in the middle of a line: it may have been cut short"
        raise RegistryError(path, why, "write the file again; if it is whole, end its last line")


def _is_whole(path: Path) -> bool:
    try:
        open_registry(path)
    except RegistryError:
        return False
    return True


def _apex(zone: str) -> bytes:
    try:
        return names.from_text(zone)
    except ValueError as error:
        raise UnmoorError(
            f"the zone {zone} {error}\n    fix: write a domain name, as in example.com"
        ) from None

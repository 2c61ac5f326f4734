"""The images that hosts boot from, built once for each set of inputs and cached.

An image is a directory with three parts. `base` is the root of a fresh Debian machine; `golden` is an overlay
on top of it with the packages that the roles install; `debs` is an apt repository of those packages, the only
apt source of a guest, so that roles can install them on a bare host without a network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from unmoor import paths
from unmoor.lab import layout
from unmoor.lab.layout import GUEST_DEBS
from unmoor.lab.topology import Image
from unmoor.process import run

#: Increment this when the result of this module changes: images of another builder are not used.
BUILDER = 4

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCE = f"deb [trusted=yes] file:{GUEST_DEBS} ./\n"

# The kernel ends the mounts and processes of a build with it: nothing stays mounted below a directory that
# the next build removes.
_SANDBOX = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)

# Units that are useless in a guest, or that would change the computer.
_MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    # Resolvers run only where a test starts them.
    "kres-cache-gc.service",
    "kresd@.service",
    "modprobe@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    # Each takes an inotify instance, of which a computer allows root 128; nobody types a password in a guest.
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-timesyncd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "unbound.service",
    "unbound-resolvconf.service",
)
# `kernel.*` and `fs.*` settings are global to the computer.
_MASKED_SYSCTLS = ("50-default.conf", "50-pid-max.conf", "99-protect-links.conf")


def key(image: Image) -> str:
    """Return the name of the image of these inputs: a hash of all of them."""
    inputs = {
        "builder": BUILDER,
        "machine": os.uname().machine,
        "suite": image.suite,
        "base": sorted(set(image.packages.base)),
        "golden": sorted(set(image.packages.golden)),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def ready(image: Image) -> Iterator[Path]:
    """Build the image if it does not exist, and yield its directory, locked against removal.

    A lab that keeps using it must write its record inside the context. Raises UnmoorError.
    """
    cache = layout.cache()
    cache.mkdir(parents=True, exist_ok=True, mode=0o755)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = cache / key(image)
        _prune(cache, keep=path)
        if not path.is_dir():
            _build(image, path)
        yield path


def lower_layers(path: Path, kind: str) -> tuple[Path, ...]:
    """Return the read-only layers of a `golden` or `bare` host, the topmost first."""
    return (path / "golden", path / "base") if kind == "golden" else (path / "base",)


def _prune(cache: Path, keep: Path) -> None:
    """Remove unused images and the remains of interrupted builds."""
    used = {keep}
    for record in paths.LAB_STATE.glob("*/lab.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            used.add(Path(json.loads(record.read_text(encoding="utf-8"))["image"]))
    for path in cache.iterdir():
        if path.is_dir() and path.name != "disks" and path not in used:
            shutil.rmtree(path)


def _build(image: Image, path: Path) -> None:
    """Build in a temporary directory, then rename it, so that an image is never incomplete."""
    temporary = path.with_suffix(".new")
    umask = os.umask(0o022)
    try:
        _build_parts(image, temporary)
        temporary.rename(path)
    finally:
        os.umask(umask)
        shutil.rmtree(temporary, ignore_errors=True)


def _build_parts(image: Image, temporary: Path) -> None:
    base, golden, debs = temporary / "base", temporary / "golden", temporary / "debs"
    for directory in (temporary, golden, debs):
        directory.mkdir()
    sources = apt_sources(image.suite)
    _bootstrap(image, base, sources)
    _download(image, base, temporary / "apt", sources, debs)
    _customise(base)
    _inside(("base",), temporary, "apt-get", "update")
    if image.packages.golden:
        _install(image, temporary)


def _bootstrap(image: Image, base: Path, sources: list[str]) -> None:
    run(
        [
            *_SANDBOX,
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")),
            *(f"--aptopt={option}" for option in _apt_options()),
            # _download uses the same lists.
            "--skip=cleanup/apt/lists",
            f"--include={','.join(image.packages.base)}",
            image.suite,
            str(base),
            *sources,
        ]
    )


def _download(image: Image, base: Path, work: Path, sources: list[str], debs: Path) -> None:
    """Download the golden packages with their dependencies, and make an apt repository of them."""
    for directory in (work / "archives/partial", work / "state"):
        directory.mkdir(parents=True)
    (work / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
    places = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": work / "state",
        "Dir::State::Lists": base / "var/lib/apt/lists",
        "Dir::State::Status": base / "var/lib/dpkg/status",
        "Dir::Cache": work,
        "Dir::Cache::Archives": work / "archives",
        "APT::Sandbox::User": "root",
    }
    options = [part for name, value in places.items() for part in ("-o", f"{name}={value}")]
    if image.packages.golden:
        wanted = [*image.packages.golden]
        run(["apt-get", *options, "--yes", "--no-install-recommends", "--download-only", "install", *wanted])
    for package in (work / "archives").glob("*.deb"):
        package.rename(debs / package.name)
    _index(debs)
    shutil.rmtree(work)


def _index(debs: Path) -> None:
    for name, args in (("Packages", ["packages", "."]), ("Release", ["release", "."])):
        text = run(["env", "--chdir", str(debs), "apt-ftparchive", *args]).stdout
        (debs / name).write_text(text, encoding="utf-8")


def _customise(base: Path) -> None:
    """Configure the guest: its apt source, masked units and settings."""
    shutil.rmtree(base / "var/lib/apt/lists")
    (base / "var/lib/apt/lists/partial").mkdir(parents=True)
    (base / GUEST_DEBS.lstrip("/")).mkdir(parents=True)
    (base / "etc/apt/sources.list").write_text(_SOURCE, encoding="utf-8")
    (base / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    for unit in _MASKED_UNITS:
        _link(base / "etc/systemd/system" / unit)
    for name in _MASKED_SYSCTLS:
        _link(base / "etc/sysctl.d" / name)
    # Each host gets its own.
    for path in base.glob("etc/ssh/ssh_host_*"):
        path.unlink()


def _link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null")


def _install(image: Image, temporary: Path) -> None:
    """Install the golden packages as a guest would: from the repository alone, without a network."""
    # 101: 'action forbidden by policy'. Nothing is started while the image is made.
    policy = temporary / "golden/usr/sbin/policy-rc.d"
    policy.parent.mkdir(parents=True)
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    policy.chmod(0o755)
    install = ("apt-get", "--yes", "--no-install-recommends", "install", *image.packages.golden)
    _inside(("base", "golden"), temporary, "env", "DEBIAN_FRONTEND=noninteractive", *install)
    _inside(("base", "golden"), temporary, "apt-get", "clean")
    policy.unlink()


def _inside(layers: tuple[str, ...], temporary: Path, *command: str) -> None:
    """Run a command in the image; changes go to the last of `layers`."""
    work, root = temporary / "work", temporary / "root"
    for directory in (work, root):
        directory.mkdir()
    if len(layers) == 1:
        mount = f"mount --bind {temporary / layers[0]} {root}"
    else:
        lower = ":".join(str(temporary / name) for name in reversed(layers[:-1]))
        upper = temporary / layers[-1]
        mount = (
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work},volatile {root}"
        )
    nspawn = [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--private-network",
        "--console=pipe",
        "--resolv-conf=off",
        "--timezone=off",
        f"--bind-ro={temporary / 'debs'}:{GUEST_DEBS}",
        f"--directory={root}",
        *command,
    ]
    try:
        run(
            [*_SANDBOX, "sh", "-c", f'{mount} && exec "$@"', "sh", *nspawn],
            env={"SYSTEMD_NSPAWN_LOCK": "0"},
        )
    finally:
        for directory in (work, root):
            shutil.rmtree(directory)


def apt_sources(suite: str) -> list[str]:
    """Return apt sources of the suite: those of this computer, to use its mirror, or Debian's."""
    shown = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    wanted = (suite, f"{suite}-updates", f"{suite}-security")
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in shown.stdout.splitlines():
        uri, release, component = line.split()
        if release in wanted and component not in found[uri, release]:
            found[uri, release].append(component)
    if not any(release == suite for _, release in found):
        mirror = "http://deb.debian.org/debian"
        found = defaultdict(list, {(mirror, suite): ["main"], (mirror, f"{suite}-updates"): ["main"]})
        found["http://deb.debian.org/debian-security", f"{suite}-security"] = ["main"]
    option = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    return [f"deb {option}{uri} {release} {' '.join(parts)}" for (uri, release), parts in found.items()]


def _apt_options() -> list[str]:
    """Return settings of this computer's apt that a mirror or proxy may need."""
    shown = run(["apt-config", "dump", "--format", '%f "%v";%n', "Acquire"]).stdout.splitlines()
    return [line for line in shown if "::Proxy" in line or line.startswith("Acquire::Check-")]

"""Unmoor: hostnames and sockets cut loose from IP addresses (SIGCOMM 2021, "The Ties that un-Bind")."""

__version__: str


def __getattr__(name: str) -> str:
    """Read the version on first use: that takes longer than everything that a registration imports."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - see above

    try:
        found = version("unmoor")
    except PackageNotFoundError:  # a source tree put on sys.path by hand
        found = "0+unknown"
    globals()["__version__"] = found
    return found

"""Unmoor: hostnames and sockets cut loose from IP addresses (SIGCOMM 2021, "The Ties that un-Bind")."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("unmoor")
except PackageNotFoundError:  # a source tree put on sys.path by hand
    __version__ = "0+unknown"

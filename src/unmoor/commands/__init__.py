"""The `unmoor` command line. Each command group is a module of this package, imported on use."""

from __future__ import annotations

import errno
import os
import sys

from unmoor.errors import UnmoorError

_MORE_DESCRIPTORS = "raise it: ulimit -n 1024, or LimitNOFILE=1024 in the unit"


def main() -> None:
    """Run the command line. An UnmoorError is printed without a traceback; the exit status is 2."""
    try:
        _run(sys.argv[1:])
    except UnmoorError as error:
        _fail(str(error))
    except (OSError, ImportError) as error:
        # An import opens files too; for a shared library the error has only text, no errno.
        limits = (errno.EMFILE, errno.ENFILE)
        if getattr(error, "errno", None) not in limits and os.strerror(errno.EMFILE) not in str(error):
            raise
        _fail(f"file descriptor limit reached\n    fix: {_MORE_DESCRIPTORS}")


def _run(arguments: list[str]) -> None:
    # A listener's unit registers sockets at each start of the listener, while its addresses refuse
    # connections: that command starts without click, whose import takes longer than the rest.
    if arguments[:1] == ["sockets"]:
        from unmoor.commands.registration import fast  # noqa: PLC0415 - other commands need none of it

        if fast.run(arguments[1:]):
            return
    from unmoor.commands.root import cli  # noqa: PLC0415 - see above

    cli()


def _fail(why: str) -> None:
    print(f"unmoor: {why}", file=sys.stderr)
    sys.exit(2)

"""Entry point of the transfer process, run by its path: `python -I run_secondary.py LINK NOTIFY`.

Isolated mode leaves out PYTHONPATH and the working directory, so the directory of the package is added here.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from unmoor.dns.transfer.secondary import main

    main()

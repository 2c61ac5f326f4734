"""Write a list of hostnames like a large hoster's: `python bench/dns/hostnames.py COUNT FILE [SEED]`.

The format is CSV with two tags. Names have 15 to 35 characters in several zones; some are below another name.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

ZONES = ("example.com", "shop.example.net", "pages.example.org", "example.co.uk", "cdn.example.info")
_WORDS = ("blue", "river", "atlas", "kiwi", "harbor", "solar", "maple", "nova", "pixel", "orbit", "tiny")
_ACCOUNTS = ("free", "free", "free", "free", "business", "business", "enterprise")
_REGIONS = ("", "eu", "us", "ap")
_STEP = 100_000


def write(count: int, file: Path, seed: int = 1) -> None:
    chance = random.Random(seed + 1)
    with file.open("w") as out:
        out.write("name,account_type,region\n")
        for start in range(0, count, _STEP):
            part = names(start, min(start + _STEP, count), seed)
            out.writelines(
                f"{name},{_ACCOUNTS[chance.randrange(7)]},{_REGIONS[chance.randrange(4)]}\n" for name in part
            )


def names(start: int, end: int, seed: int = 1) -> list[str]:
    """Names by number from `start`, a multiple of 100,000; each 100,000 names have their own seed."""
    chance = random.Random(f"{seed} {start // _STEP}")
    found: list[str] = []
    for number in range(start, end):
        if number % 20 == 9:  # below the name before it
            found.append(f"www.{found[-1]}")
            continue
        below = "www.site" if number % 20 == 19 else ""  # below a name that is not in the list
        found.append(f"{below}{chance.choice(_WORDS)}-{number:x}.{chance.choice(ZONES)}")
    return found


if __name__ == "__main__":
    write(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)

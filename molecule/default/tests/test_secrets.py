"""Whole runs at -vvv over ssh, which print the results of modules, show no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
OLD_COOKIE, NEW_COOKIE = "c00c1e5ec2e7" + "0f" * 10, "c00c1e5ec2e8" + "0f" * 10
OLD_STICKY, NEW_STICKY = "an old secret of sticky answers", "a new secret of sticky answers"
OLD_TSIG, NEW_TSIG = "b2xkIHRzaWcgc2VjcmV0IG9mIHRoZSB0ZXN0", "bmV3IHRzaWcgc2VjcmV0IG9mIHRoZSB0ZXN0"
SECRETS = (OLD_COOKIE, NEW_COOKIE, OLD_STICKY, NEW_STICKY, OLD_TSIG, NEW_TSIG)
#: The secret in force on an edge, and that of the inventory.
OLD = {"cookie_secret": OLD_COOKIE, "sticky_key": OLD_STICKY, "tsig_keys": {"k": {"secret": OLD_TSIG}}}
NEW = {
    "unmoor_dns_cookie_secret": NEW_COOKIE,
    "unmoor_dns_sticky_key": NEW_STICKY,
    "unmoor_tsig_keys": {"k": {"secret": NEW_TSIG}},
}
MERGE = "import json, sys; print(json.dumps(json.load(open(sys.argv[1])) | json.loads(sys.argv[2])))"


@pytest.fixture(scope="module")
def edge_with_secrets(hosts: dict[str, Host]) -> Iterator[Host]:
    edge, path = hosts["edge1"], "/etc/unmoor/dns.json"
    edge.check_output(f"cp -p {path} /run/dns.json.before")
    try:
        merge = f"python3 -c %s {path} %s > /run/dns.json && cat /run/dns.json > {path}"
        edge.check_output(f"{merge} && systemctl reload unmoor-dns", MERGE, json.dumps(OLD))
        yield edge
    finally:
        edge.check_output(f"cp -p /run/dns.json.before {path} && rm -f /run/dns.json /run/dns.json.before")
        edge.check_output("systemctl reload unmoor-dns")


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("site.yml", "--check", "--diff"), 0, '+ "cookie_secret": "sealed:'),
        (("pool.yml",), 2, "DNS cookie_secret: changed: not a change of DNS pools alone"),
        (("pool.yml", "-e", f"unmoor_dns_cookie_secret={OLD_COOKIE}0"), 2, "is not 32"),
    ],
)
def test_a_run_shows_no_secret(
    edge_with_secrets: Host, tmp_path: Path, arguments: tuple[str, ...], status: int, expected: str
) -> None:
    (tmp_path / "secrets.json").write_text(json.dumps(NEW))
    began = edge_with_secrets.check_output("date +%s")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-vvv", "--limit", "edge1,localhost"]
    playbook, *options = arguments
    command += ["-i", "inventories/lab", f"playbooks/{playbook}", "-e", f"@{tmp_path}/secrets.json", *options]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == status, shown
    assert expected in shown
    assert [secret for secret in SECRETS if secret in shown] == []
    read_journal = "journalctl --no-pager --output=cat --identifier=ansible-unmoor.unmoor.files --since=@%s"
    journal = edge_with_secrets.check_output(read_journal, began)
    assert [secret for secret in SECRETS if secret in journal] == []

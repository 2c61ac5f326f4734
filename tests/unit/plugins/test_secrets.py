"""No output contains a secret of the inventory: types, errors, and whole runs of Ansible at -vvv."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.checkout import ROOT
from unmoor.dns.check import check
from unmoor.errors import InvalidInputError
from unmoor.model import DnsDocument, EdgeDocument, validate
from unmoor.model.change import compare, describe_change
from unmoor.model.documents import Documents
from unmoor.model.secrets import Sealer, dump_with_secrets, secret_fields, secret_names, text_with_secrets
from unmoor.model.variables import Variables

COOKIE, OTHER_COOKIE = "c00c1e5ec2e7" + "0f" * 10, "c00c1e5ec2e8" + "0f" * 10
TSIG = base64.b64encode(b"tsig secret of this test").decode()
OTHER_TSIG = base64.b64encode(b"tsig secret of this best").decode()
STICKY = 'a sticky "key" of this tést'


def document(cookie: str = COOKIE, tsig: str = TSIG, sticky: str = STICKY) -> dict[str, Any]:
    # The key's name is short: a difference once showed short values whole.
    return {
        "pop": "ams",
        "edge": "e",
        "listen": ["198.19.1.11"],
        "cookie_secret": cookie,
        "sticky_key": sticky,
        "tsig_keys": {"k": {"secret": tsig}},
    }


def no_secret_in(text: str, *more: str) -> None:
    for secret in (COOKIE, OTHER_COOKIE, TSIG, OTHER_TSIG, STICKY, json.dumps(STICKY)[1:-1], *more):
        assert secret not in text, f"{secret} is in: {text}"


def test_what_is_secret_follows_from_the_type() -> None:
    assert secret_names(DnsDocument) == {"cookie_secret", "sticky_key", "secret"}
    assert secret_fields(DnsDocument) == {"cookie_secret", "sticky_key", "tsig_keys"}
    assert secret_fields(Variables) == {"dns_cookie_secret", "dns_sticky_key", "tsig_keys"}
    assert secret_fields(EdgeDocument) == set()
    properties = DnsDocument.model_json_schema()["properties"]
    assert properties["cookie_secret"]["writeOnly"]


def test_a_document_shows_its_secrets_only_where_that_is_asked_for() -> None:
    dns = DnsDocument.model_validate(document())
    no_secret_in(f"{dns} {dns!r} {dns.model_dump()} {dns.model_dump_json()}")
    written = dump_with_secrets(dns, exclude_defaults=True)
    assert {key: written[key] for key in ("cookie_secret", "sticky_key")} == {
        "cookie_secret": COOKIE,
        "sticky_key": STICKY,
    }
    assert written["tsig_keys"]["k"]["secret"] == TSIG


def test_differences() -> None:
    old, new = (
        DnsDocument.model_validate(each) for each in (document(), document(OTHER_COOKIE, OTHER_TSIG, "x"))
    )
    edge = EdgeDocument(pop="ams", edge="e", prefixes=("198.18.0.0/20",))
    plan = compare(Documents(edge, old), Documents(edge, new))
    lines = "\n".join([*plan.lines, *plan.not_dns_alone, *describe_change(old, new)])
    no_secret_in(lines)
    for name in ("cookie_secret", "sticky_key", "tsig_keys"):
        assert f"DNS {name}: changed" in lines
        assert f"{name}: changed" in describe_change(old, new)


@pytest.mark.parametrize(
    "change",
    [
        {"cookie_secret": COOKIE[:-1]},
        {"cookie_secret": [COOKIE]},
        {"cookie_secrets": COOKIE},
        {"tsig_keys": {"k": TSIG}},
        {"tsig_keys": TSIG},
        {"tsig_keys": {"k": {"secret": [TSIG]}}},
        {"tsig_keys": {"k": {"secert": TSIG}}},
        {"tsig_key": {"k": {"secret": TSIG}}},
        {"sticky_key": [STICKY]},
    ],
    ids=str,
)
def test_errors(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as error:
        validate(DnsDocument, document() | change, "dns.json")
    no_secret_in(str(error.value), COOKIE[:-1])
    with pytest.raises(InvalidInputError) as error:
        validate(DnsDocument, [document() | change], "dns.json")
    no_secret_in(str(error.value), COOKIE[:-1], COOKIE[:8])


def test_a_sealed_document_can_be_read_compared_and_unsealed(tmp_path: Path) -> None:
    dns = DnsDocument.model_validate(document())
    text = text_with_secrets(dns)
    sealer = Sealer(DnsDocument, tmp_path / "run")
    sealed = sealer.seal(text)
    no_secret_in(sealed)
    assert sealer.unseal(sealed) == text
    # Equal secrets are equal sealed, also for another process of the run; in another run they are not.
    again = Sealer(DnsDocument, tmp_path / "run").seal(text)
    elsewhere = Sealer(DnsDocument, tmp_path / "other").seal(text)
    assert (again == sealed, elsewhere == sealed) == (True, False)
    other = DnsDocument.model_validate(document(OTHER_COOKIE))
    read = [DnsDocument.model_validate_json(sealer.seal(text_with_secrets(each))) for each in (dns, other)]
    assert describe_change(*read) == ["cookie_secret: changed"]
    # Other users cannot read the secrets.
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()} == {0o600}
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_text_that_was_cut_short_is_sealed(tmp_path: Path) -> None:
    text = text_with_secrets(DnsDocument.model_validate(document()))
    sealer = Sealer(DnsDocument, tmp_path / "run")
    for end in range(len(text)):
        if text.find(COOKIE[:6]) + 6 <= end:
            no_secret_in(sealer.seal(text[:end]), COOKIE[:6])


def test_a_sealed_document_is_refused_by_the_check(tmp_path: Path) -> None:
    sealed = Sealer(DnsDocument, tmp_path / "run").seal(
        text_with_secrets(DnsDocument.model_validate(document()))
    )
    found = check.problems(DnsDocument.model_validate_json(sealed), "dns.json")
    keys = {problem.key for problem in found if problem.why == "is sealed, but is not a secret"}
    assert keys == {"cookie_secret", "sticky_key", "tsig_keys.k.secret"}


def run(*words: str) -> tuple[int, str]:
    """Run a program of Ansible at -vvv; returns its exit status and its output."""
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    program, *rest = words
    command = [str(Path(sys.executable).with_name(program)), "-vvv", *rest]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """The lab's inventory with a value for every kind of secret."""
    shutil.copytree(ROOT / "inventories/lab", tmp_path / "lab")
    path = tmp_path / "lab/group_vars/edges.yml"
    variables = yaml.safe_load(path.read_text())
    variables |= {
        "unmoor_dns_cookie_secret": COOKIE,
        "unmoor_dns_sticky_key": STICKY,
        "unmoor_tsig_keys": {"k": {"secret": TSIG}},
    }
    path.write_text(yaml.safe_dump(variables))
    return tmp_path / "lab"


def test_the_preflight(inventory: Path) -> None:
    status, shown = run("ansible-playbook", "-i", str(inventory), "playbooks/preflight.yml")
    assert status == 0, shown
    assert "sealed:" in shown  # the documents are among it
    no_secret_in(shown)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "unmoor_dns_cookie_secret",
            OTHER_COOKIE + "0",
            "unmoor_dns_cookie_secret: is not 32 hexadecimal digits",
        ),
        ("unmoor_dns_cookie_secert", OTHER_COOKIE, "unmoor_dns_cookie_secert: is not a known key"),
        ("unmoor_tsig_keys", {"k": {"secret": OTHER_TSIG + "!"}}, "unmoor_tsig_keys.k.secret: is not base64"),
        ("unmoor_tsig_keys", {"k": OTHER_TSIG}, "unmoor_tsig_keys.k: "),
        ("unmoor_prefixes", ["198.18.0.0/33"], "is not an IP prefix"),
    ],
)
def test_a_preflight_that_fails(inventory: Path, name: str, value: Any, said: str) -> None:
    path = inventory / "group_vars/edges.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {name: value}))
    status, shown = run("ansible-playbook", "-i", str(inventory), "playbooks/preflight.yml")
    assert status != 0
    assert said in shown
    no_secret_in(shown)


PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - unmoor.unmoor.checkpoint:
        documents: {dns: "{{ directory }}/dns.json"}
        directory: "{{ directory }}/checkpoint"
      register: before
    - ansible.builtin.set_fact: {kept: "{{ before.documents.dns }}"}
    - unmoor.unmoor.files:
        files: [{path: "{{ directory }}/dns.json", content: "{{ text }}", mode: "0600", validate: "true %s"}]
    - unmoor.unmoor.files:
        files: [{path: "{{ directory }}/dns.json", content: "{{ kept }}", validate: "cat %s /nonexistent"}]
      ignore_errors: true  # a check that quotes the whole file
    - unmoor.unmoor.files:
        files: [{path: "{{ directory }}/dns.json", content: "{{ kept }}", mode: "0600", group: root}]
      when: put_back
"""


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("put_back", [False, True])
def test_modules_that_read_and_write_documents(tmp_path: Path, check_mode: bool, put_back: bool) -> None:
    old, new = (
        text_with_secrets(DnsDocument.model_validate(each))
        for each in (document(), document(OTHER_COOKIE, OTHER_TSIG))
    )
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "dns.json").write_text(old)
    given = json.dumps({"directory": str(tmp_path), "text": new, "put_back": put_back})
    (tmp_path / "given.json").write_text(given)
    options = ["--diff", *(["--check"] if check_mode else []), "-e", f"@{tmp_path}/given.json"]
    status, shown = run("ansible-playbook", *options, str(tmp_path / "play.yml"))
    assert status == 0, shown
    no_secret_in(shown)
    assert re.search(r'^- +"secret": "sealed:', shown, re.MULTILINE)  # the difference is shown all the same
    assert ("was not installed" in shown) != check_mode
    assert (tmp_path / "dns.json").read_text() == (old if check_mode or put_back else new)
    assert list(tmp_path.glob(".unmoor-*")) == []

"""Errors of zone files: the line, the value, the reason in words, and a fix that helps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor.dns.protocol import names
from unmoor.dns.zones import static_zone, zone_error

APEX = names.from_text("example.com")
ZONE = "$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 198.18.0.53\n"


def errors(text: str) -> list[tuple[int, str, str]]:
    return [(each.line, each.why, each.fix) for each in static_zone.parse(text, APEX)[1].errors]


@pytest.mark.parametrize(
    ("entry", "why", "fix"),
    [
        ("x A 198.51.100.300", "`198.51.100.300` is not an IPv4 address", "four numbers from 0 to 255"),
        ("x 60 IN A ( 198.51.100 )", "`198.51.100` is not an IPv4 address", "four numbers"),
        ("x A 2001:db8::1", "`2001:db8::1` is not an IPv4 address", "change the type to AAAA"),
        ("x AAAA 198.18.0.1", "`198.18.0.1` is not an IPv6 address", "change the type to A,"),
        ("x AAAA 2001:db8::g", "`2001:db8::g` is not an IPv6 address", "as in 2001:db8::1"),
        ('x A "198.18.0.1"', '`"198.18.0.1"` is in quotes', "`www A 198.18.0.1`"),
        ("x A", "has no addresses; each A record has one", "`www A 198.18.0.1`"),
        ("x AAAA ::1 ::2", "has 2 addresses; each AAAA record has one", "write a record for each"),
        ("x AA 198.18.0.3", "`AA` is not a record type", "correct it"),
        ("x 4294967296 A 198.18.0.1", "`4294967296` is neither a TTL nor a record type", "write seconds"),
        ("x 1y A 198.18.0.1", "`1y` is neither a TTL nor a record type", "a unit (s, m, h, d, w)"),
        ("x CH A 198.18.0.1", "`CH` is not the zone's class, IN", "write IN, or leave out"),
        ("x 60 HS TXT a", "`HS` is not the zone's class, IN", "write IN, or leave out"),
        ("x 60 IN", "has no record type", "`www 300 IN A 198.18.0.1`"),
        ("x TXT ( a", "has a `(` that is never closed", "add `)`"),
        ("x TXT a )", "has a `)` without a `(` before it", "remove it, or add the `(`"),
        ('x TXT "a', "has a quoted string that does not end in its line", 'add the closing `"`'),
        ("x TXT " + "a" * 256, "has a string of more than 255 octets", "split it into several"),
        ("a" * 64 + " A ::1", "`" + "a" * 57 + "...` has a label of more than 63 octets", "a domain name"),
        (".".join(["a" * 60] * 5) + " A ::1", "has more than 255 octets", "write a domain name"),
        (".".join(["a" * 60] * 4) + " A ::1", "has more than 255 octets with the origin", "a domain name"),
        ("a..b A 198.18.0.1", "`a..b` has an empty label", "write a domain name"),
        ("x CNAME a..b", "`a..b` has an empty label", "write a domain name"),
        ("x CNAME ns\nx A 198.18.0.1", "has a CNAME beside other records of the same name", "keep either"),
        ("x MX ten mail", "`ten` is not a number", "`@ IN MX 10 mail`"),
        ("x MX 10", "has too few values for an MX record", "`@ IN MX 10 mail`"),
        ("x MX 10 mail extra", "`extra` is more than an MX record has", "`@ IN MX 10 mail`"),
        ("x MX 70000 mail", "`70000` is not a number from 0 to 65535", "`@ IN MX 10 mail`"),
        ('x MX 10 "mail"', "`mail` is in quotes", "`@ IN MX 10 mail`"),
        ("x CAA 256 issue a", "`256` is not a number from 0 to 255", "`@ IN CAA 0 issue"),
        ("x TLSA 3 1 1 zz", "has data that is not hexadecimal", "`@ IN TLSA 3 1 1"),
        ("x DNSKEY 1 3 5 !!", "has data that is not base64", "RFC 1035 section 5"),
        ("x DS 1 8 2 0011", "is not a valid DS record: digest length inconsistent", "`@ IN DS"),
        ("x OPT", "is not a valid OPT record", "correct the line"),
        ("$TTL x", "`x` is not a TTL", "write seconds"),
        ("$TTL", "$TTL has no value", "write seconds"),
        ("$ORIGIN a..b", "`a..b` has an empty label", "write a domain name"),
        ("$ORIGIN", "$ORIGIN has no value", "write a domain name"),
        ("$INCLUDE /etc/passwd", "$INCLUDE is not allowed", "put the records of that file"),
        ("$GENERATE 1-x a$ A 1", "is not a valid $GENERATE", "`$GENERATE 1-9 host$ A 198.18.0.$`"),
        ("$FOO bar", "`$FOO` is not a directive", "use one of $ORIGIN, $TTL, $GENERATE"),
    ],
)
def test_an_error_has_its_line_its_reason_and_a_fix(entry: str, why: str, fix: str) -> None:
    found = errors(f"{ZONE}{entry}\nlast A 198.18.0.1\n")
    assert len(found) == 1, found
    assert found[0][0] == 5 + entry.count("\n")
    assert why in found[0][1]
    assert fix in found[0][2]


def test_a_record_without_a_ttl() -> None:
    assert errors("@ NS ns\n@ SOA ns h 1 2 3 4 5\nns A ::1\n")[0] == (
        1,
        "has no TTL, and neither $TTL nor an SOA record is before it",
        "begin with `$TTL 3600`",
    )


def test_all_errors_of_a_file_are_reported() -> None:
    text = ZONE + "a A 1.2\nb AA x\nc MX ten mail\nd TXT (\n  a\ne CH A 198.18.0.1\n"
    assert [line for line, _, _ in errors(text)] == [5, 6, 7, 8, 10]


@given(
    st.text('( )";\\\n\t$@.*aA1IN\xe9', max_size=30),
    st.sampled_from(["Text input is malformed.", "expecting an integer", "expecting a string", ""]),
    st.text('aA1"\\.', max_size=3),
)
def test_any_entry_is_explained(text: str, message: str, last: str) -> None:
    why, fix = zone_error.explain(text, message, last)
    assert why
    assert fix

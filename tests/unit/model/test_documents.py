"""Texts of documents that share zones: equal, to the octet, to those that are written one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from support.dns_document import document, model
from unmoor.model import Hostnames, Zone
from unmoor.model.documents import Writer
from unmoor.model.secrets import text_with_secrets

texts = st.text('ab"\\\n\r\t{}[]:,\0\u2028é', max_size=8)


@given(
    st.lists(
        st.builds(
            Zone,
            name=texts,
            records=texts,
            hostnames=st.lists(
                st.builds(
                    Hostnames,
                    tags=st.dictionaries(texts, texts, max_size=2),
                    names=st.lists(texts, max_size=3).map(tuple),
                ),
                max_size=2,
            ).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    texts.filter(bool),
)
def test_a_text_is_that_of_the_document_alone(zones: tuple[Zone, ...], edge: str) -> None:
    writer = Writer(str)
    for given_zones in (zones, zones[:1], zones):
        one = model(document()).model_copy(update={"zones": given_zones, "edge": edge})
        assert writer.text(one) == text_with_secrets(one)


def test_secrets_are_sealed_in_every_document() -> None:
    one = model(document(sticky_key="of the test"))
    other = one.model_copy(update={"edge": "edge2"})
    sealed: list[str] = []

    def seal(text: str) -> str:
        sealed.append(text)
        return text.replace("of the test", "sealed")

    writer = Writer(seal)
    for each in (one, other):
        assert writer.text(each) == text_with_secrets(each).replace("of the test", "sealed")
    assert len(sealed) == 3, "the zones are sealed once"

"""Pages cover a listing once, in order, and a token works only where it came from."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.errors import InvalidArgument
from hotclip_server.services.datasets import newest_first_key
from hotclip_server.services.paging import PageRequest


@given(st.sets(st.text(max_size=8), max_size=40), st.integers(1, 12))
def test_pages_cover_every_row_once(names: set[str], size: int) -> None:
    rows, token, seen = sorted(names), "", list[str]()
    while True:
        page, token = PageRequest.parse(size, token, listing="x").select(rows, lambda r: (r,))
        assert len(page) <= size
        seen += page
        if not token:
            break
    assert seen == rows


@given(st.text(max_size=60))
def test_any_text_is_a_token_or_a_clear_error(token: str) -> None:
    if not token:
        return
    with pytest.raises(InvalidArgument) as caught:
        PageRequest.parse(1, token, listing="x")
    assert caught.value.reason == "PAGE_TOKEN_INVALID"
    assert [v.field for v in caught.value.violations] == ["page_token"]


def test_a_token_of_another_listing_is_refused() -> None:
    _, token = PageRequest.parse(1, "", listing="versions/a").select(["1", "2"], lambda r: (r,))
    assert PageRequest.parse(1, token, listing="versions/a").after == ("1",)
    with pytest.raises(InvalidArgument):
        PageRequest.parse(1, token, listing="versions/b")
    with pytest.raises(InvalidArgument):
        PageRequest.parse(1, token, listing="versions/a", kinds=(float, str))


@pytest.mark.parametrize("key", ["5", "{{", '"x"', "[" * 2000, '["not a time", "id"]', "\ud800"])
def test_a_token_with_the_right_seal_and_a_wrong_key_is_refused(key: str) -> None:
    body = key.encode(errors="surrogatepass")
    seal = hashlib.sha256(b"x\0" + body).digest()[:8]
    token = base64.urlsafe_b64encode(seal + body).decode().rstrip("=")
    with pytest.raises(InvalidArgument) as caught:
        newest_first_key(PageRequest.parse(1, token, listing="x", kinds=(str, str)))
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


def test_sizes() -> None:
    assert PageRequest.parse(0, "", listing="x").size == 100
    assert PageRequest.parse(1000, "", listing="x").size == 1000
    with pytest.raises(InvalidArgument, match="page_size"):
        PageRequest.parse(1001, "", listing="x")

"""Enrichment: no nulls, host and path from the URL, UTM parameters from its query."""

from __future__ import annotations

from urllib.parse import unquote_plus

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.pipeline.columns import DERIVED, PROMOTED
from assets.pipeline.enrich import UTM, enrich


def parsed(urls: list[str | None], **columns: list[str | None]) -> pa.Table:
    """A parsed table with these URLs; promoted columns not given are null."""
    rows = len(urls)
    given_columns = {"current_url": urls, **columns}
    return pa.table(
        {"partition": pa.array(range(rows), pa.int32())}
        | {name: pa.array(given_columns.get(name, [None] * rows), pa.string()) for name in PROMOTED}
    )


def host_and_path(url: str | None) -> tuple[str, str]:
    [row] = enrich(parsed([url])).select(list(DERIVED)).to_pylist()
    return row["url_host"], row["url_path"]


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("https://Example.COM/Pricing?x=1#top", "example.com", "/Pricing"),
        ("https://example.com", "example.com", "/"),
        ("https://example.com?x=/a/b", "example.com", "/"),
        ("https://example.com#/route?x", "example.com", "/"),
        ("http://localhost:3000/a", "localhost", "/a"),
        ("http://example.com:/a", "example.com", "/a"),
        ("https://me:p@ss:word@example.com:8443/a", "example.com", "/a"),
        ("http://[2001:DB8::1]:8080/a", "[2001:db8::1]", "/a"),
        ("http://[::1]", "[::1]", "/"),
        ("https://BÜCHER.example/ä?ö", "bücher.example", "/ä"),
        ("https://example.com//a//b", "example.com", "//a//b"),
        ("https://example.com/a b\nc", "example.com", "/a b\nc"),
        ("myapp://screen/x", "screen", "/x"),
        ("chrome-extension://abcdef/popup.html", "abcdef", "/popup.html"),
        ("file:///srv/page.html", "", "/srv/page.html"),
        ("about:blank", "", "blank"),
        ("about:blank#x", "", "blank"),
        ("https://", "", ""),
        ("note: see https://example.com/", "", ""),
        ("just words", "", ""),
        ("/relative/path", "", ""),
        ("//example.com/x", "", ""),
        ("1http://example.com/", "", ""),
        ("?", "", ""),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_host_and_path_of_one_url(url: str | None, host: str, path: str) -> None:
    """Each form of URL gives this host and path; what is no absolute URL gives neither."""
    assert host_and_path(url) == (host, path)


@pytest.mark.parametrize(
    ("query", "source"),
    [
        ("utm_source=google", "google"),
        ("a=b&utm_source=news+letter&c", "news letter"),
        ("utm_source=spring%20sale%21", "spring sale!"),
        ("utm_source=%C3%BCber", "über"),
        ("utm_source=100%&x=1", "100%"),
        ("utm_source=%zz%4", "%zz%4"),
        ("utm_source=%ff", "\ufffd"),
        ("utm_source=first&utm_source=second", "first"),
        ("utm_source=&utm_source=second", ""),
        ("utm_source", ""),
        ("utm_source=a=b", "a=b"),
        ("utm_source=a?b", "a?b"),
        ("xutm_source=no&utm_sources=no&UTM_SOURCE=no", ""),
        ("x=utm_source=no", ""),
    ],
)
def test_utm_parameter_from_the_query(query: str, source: str) -> None:
    """A parameter is percent-decoded, its first occurrence counts, broken escapes stay text."""
    assert enrich(parsed([f"https://e.com/?{query}#f"]))["utm_source"].to_pylist() == [source]


def test_what_the_client_set_wins_over_the_url() -> None:
    """Only an empty or missing property is taken from the URL, row by row and column by column."""
    url = "https://e.com/?utm_source=url&utm_medium=mail"
    table = enrich(parsed([url] * 3, utm_source=["own", "", None], utm_medium=[None, "own", None]))
    assert table["utm_source"].to_pylist() == ["own", "url", "url"]
    assert table["utm_medium"].to_pylist() == ["mail", "own", "mail"]


def test_a_fragment_holds_no_parameters() -> None:
    """A query behind "#" belongs to the fragment."""
    assert enrich(parsed(["https://e.com/#?utm_source=x"]))["utm_source"].to_pylist() == [""]


def test_promoted_columns_have_no_nulls_and_others_are_untouched() -> None:
    """Every promoted and derived column is text without nulls; what else came in goes out."""
    before = parsed(["https://e.com/", None], os=["Linux", None])
    after = enrich(before)
    assert after.column_names == [*before.column_names, *DERIVED]
    assert after["partition"].equals(before["partition"])
    assert after["os"].to_pylist() == ["Linux", ""]
    for name in (*PROMOTED, *DERIVED):
        assert after[name].null_count == 0
        assert after.schema.field(name) == pa.field(name, pa.string(), nullable=False)
        assert after[name].num_chunks == 1
    after.validate(full=True)


def test_no_rows() -> None:
    """An empty table stays empty and gains its columns."""
    empty = enrich(parsed([]))
    assert empty.num_rows == 0
    assert set(DERIVED) < set(empty.column_names)


urls = st.one_of(
    st.none(),
    st.text(alphabet="aB:/?#&=%+@[]u ", max_size=12),
    st.builds(
        "{}://{}{}{}{}".format,
        st.sampled_from(["http", "HTTPS", "myapp"]),
        st.sampled_from(["e.com", "E.com:80", "u:p@e.com", "[::1]:9", ""]),
        st.sampled_from(["", "/", "/a/b", "/ä"]),
        st.lists(
            st.builds(
                "{}={}".format,
                st.sampled_from([*UTM, "ref"]),
                st.sampled_from(["", "x", "a+b", "%20", "%2", "%ff"]),
            ),
            max_size=4,
        ).map(lambda pairs: "?" + "&".join(pairs) if pairs else ""),
        st.sampled_from(["", "#f", "#?utm_source=f"]),
    ),
)


def expected_utm(url: str | None, name: str) -> str:
    """The parameter, read the plain way."""
    query = (url or "").partition("#")[0].partition("?")[2]
    for pair in query.split("&"):
        if pair.partition("=")[0] == name:
            return unquote_plus(pair.partition("=")[2], errors="replace")
    return ""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(urls, st.sampled_from([None, "", "own"])), max_size=12), st.data())
def test_rows_do_not_depend_on_their_neighbours(
    rows: list[tuple[str | None, str | None]], data: st.DataObject
) -> None:
    """A row is enriched alike alone, among others, sliced, and in chunks cut anywhere."""
    table = parsed([url for url, _ in rows], utm_source=[own for _, own in rows])
    at = data.draw(st.integers(0, len(rows)))
    chunked = pa.concat_tables([table.slice(0, at), table.slice(at)])
    whole = enrich(chunked)
    assert whole.equals(enrich(table))
    alone = [enrich(table.slice(row, 1)) for row in range(len(rows))]
    assert not rows or whole.equals(pa.concat_tables(alone).combine_chunks())
    for (url, own), row in zip(rows, whole.to_pylist(), strict=True):
        assert row["utm_source"] == (own or expected_utm(url, "utm_source"))
        for name in UTM[1:]:
            assert row[name] == expected_utm(url, name)

"""Whatever a corpus file holds, `read_documents` gives documents or refuses it in one line."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hostile import NAMES, hunt, mutated, mutated_json, tiers, values
from hypothesis import strategies as st

from minialbert.data.corpora import DocumentSeparator, Source, corpus_entries, find_sources, read_documents
from minialbert.data.text_streams import ReadStats

TEXT = "A first document.\nIts second line.\n\nAnother – with dashes.\r\n\r\nThe last one".encode()
ROWS = b"".join(
    json.dumps({"text": text, "id": number}).encode() + b"\n"
    for number, text in enumerate(("one", "two\nlines", "three"))
)
SEPARATORS = st.sampled_from(get_args(DocumentSeparator))


def read(source: Source, **options: Any) -> None:
    stats = ReadStats()
    last_row, size = 0, source.path.stat().st_size
    for document in read_documents(source, stats=stats, **options):
        assert document.text and not document.text.isspace()
        document.text.encode("utf-8")
        assert document.row > last_row
        last_row = document.row
        assert 0 <= stats.bytes_read <= size
    assert stats.skipped >= 0


@tiers
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst"])
def test_text(examples: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"corpus{suffix}"

    def attack(hostile: tuple[bytes, str, int, bool]) -> None:
        content, separator, limit, whole = hostile
        path.write_bytes(_packed(content, suffix) if whole else content)
        read(Source(path, "text", path.stat().st_size), separator=separator, max_document_bytes=limit)

    contents = mutated([TEXT, _packed(TEXT, suffix)])
    limits = st.sampled_from([1, 20, 4_000, 16_000_000])
    inputs = st.tuples(contents, SEPARATORS, limits, st.booleans())
    hunt(f"corpora {suffix}", examples, inputs, attack, folder=tmp_path)


def _packed(content: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    if suffix.endswith(".zst"):
        import zstandard

        return zstandard.compress(content)
    return content


@tiers
def test_json_lines(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"

    def attack(hostile: tuple[bytes, str, int]) -> None:
        content, field, limit = hostile
        path.write_bytes(content)
        read(Source(path, "jsonl", path.stat().st_size), text_field=field, max_document_bytes=limit)

    contents = st.one_of(mutated([ROWS]), mutated_json({"text": "one", "id": 1}))
    fields = st.sampled_from(["text", "text", "text", "id", "\n\x1b"])
    inputs = st.tuples(contents, fields, st.sampled_from([16_000_000, 16_000_000, 30]))
    hunt("corpora .jsonl", examples, inputs, attack, folder=tmp_path)


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


@tiers
def test_parquet(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    columns = {"text": ["one", "two", None, "a longer text of several words"] * 20, "id": list(range(80))}

    def attack(hostile: tuple[bytes, str]) -> None:
        content, field = hostile
        path.write_bytes(content)
        read(Source(path, "parquet", path.stat().st_size), text_field=field)

    samples = [parquet(columns, compression=kind, row_group_size=30) for kind in ("none", "snappy", "gzip")]
    inputs = st.tuples(mutated(samples), st.sampled_from(["text", "text", "text", "id", "\n"]))
    hunt("corpora .parquet", examples, inputs, attack, folder=tmp_path)


@tiers
def test_names_of_a_corpus(examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(TEXT)
    (tmp_path / "b.jsonl").write_bytes(ROWS)

    def attack(names: list[str]) -> None:
        if any(
            name in ("/", "~", "..", "**", "*/", "../../x") for name in names
        ):  # not a hunt through this machine
            names = ["a.txt"]
        sources = find_sources(names)
        assert sources and len({source.path for source in sources}) == len(sources)
        assert all(source.kind == "hub" or source.path.is_file() for source in sources)

    local = NAMES.filter(lambda name: not name.startswith(("/", "..", "~/", "**")))
    names = st.lists(st.one_of(local, st.sampled_from(["a.txt", "b.jsonl", "*.txt", "."])), max_size=3)
    hunt("corpora names", examples, names, attack, folder=tmp_path)


@tiers
@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_of_json(examples: int, in_memory: bool, tmp_path: Path) -> None:
    """Rows that are all JSON, of any shape."""
    path = tmp_path / "corpus.jsonl"

    def attack(rows: list[Any]) -> None:
        if in_memory:
            for source in find_sources(corpus_entries([{"text": "a text"}, *rows])):
                documents = list(read_documents(source))
                assert all(document.text.strip() and document.text.encode() for document in documents)
            return
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        read(Source(path, "jsonl", path.stat().st_size))

    row = st.one_of(
        values(),
        st.fixed_dictionaries({"text": st.text(st.characters())}),
        values().map(lambda v: {"text": v}),
    )
    hunt("corpora rows", examples, st.lists(row, max_size=3), attack, folder=tmp_path)


CSV = b'id,text\r\n1,"one, ""two""\r\nlines"\r\n\r\n2,three\r\n'
ARTICLES = (
    b'<?xml version="1.0"?>\n<!DOCTYPE a [<!ATTLIST b c CDATA "d">]>\n<PubmedArticleSet>\n<PubmedArticle>\n'
    b"<MedlineCitation><Article><ArticleTitle>A &lt;b&gt; <i>c</i></ArticleTitle><Abstract><AbstractText>d\n"
    b"</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>\n<PubmedArticle><MedlineCitation/></PubmedArticle>\n"
    b"</PubmedArticleSet>"
)


@tiers
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xml"])
def test_fields(examples: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"corpus{suffix}"
    samples = {".csv": [CSV, CSV.replace(b",", b";")], ".tsv": [CSV.replace(b",", b"\t")], ".xml": [ARTICLES]}

    def attack(hostile: tuple[bytes, str, int]) -> None:
        content, field, limit = hostile
        path.write_bytes(content)
        for source in find_sources([path]) if content else ():
            for document in read_documents(source, text_field=field, max_document_bytes=limit):
                assert document.text.strip() and document.text.encode()

    fields = st.sampled_from(["text", "text", "text", "id", "\n\x1b"])
    inputs = st.tuples(mutated(samples[suffix]), fields, st.sampled_from([16_000_000, 16_000_000, 30]))
    hunt(f"corpora {suffix}", examples, inputs, attack, folder=tmp_path)

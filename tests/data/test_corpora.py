import gzip
import json
import logging
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from minialbert.data import corpora
from minialbert.data.corpora import Document, Source, count_kinds, find_sources, read_documents
from minialbert.data.text_streams import ReadStats
from minialbert.errors import MissingExtraError, UserError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, **options):
    return list(read_documents(find_sources([path])[0], **options))


def read_error(path, **options):
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Finding files


def test_directory_is_searched_in_sorted_order(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    files = ("b.txt", "a/z.jsonl", "a/c.txt.gz", "d.parquet", "e.TSV.gz", "f.xml", "notes.md", ".hidden.txt")
    for name in (*files, ".cache/x.txt"):
        write(tmp_path / name, "x")
    sources = find_sources([tmp_path])
    found = [s.path.relative_to(tmp_path).as_posix() for s in sources]
    assert found == ["a/c.txt.gz", "a/z.jsonl", "b.txt", "d.parquet", "e.TSV.gz", "f.xml"]
    assert [s.kind for s in sources] == ["text", "jsonl", "text", "parquet", "csv", "xml"]
    assert "1 files left out, since their suffix says nothing of how to read them: notes.md" in caplog.text
    assert count_kinds(sources) == "2 text, 1 JSON lines, 1 Parquet, 1 csv or tsv, 1 PubMed XML"


def test_folders_that_a_glob_matches_are_told_unless_it_matches_files_in_them(tmp_path, caplog):
    for name in ("a.txt", "more/b.txt"):
        write(tmp_path / name, "xyz")
    caplog.set_level("INFO", "minialbert")
    assert [s.path.name for s in find_sources(str(tmp_path / "*"))] == ["a.txt"]
    told = "folders that match are left out; name them to have the files in them: more"
    assert caplog.messages == [f"{tmp_path / '*'}: {told}"]
    caplog.clear()
    assert len(find_sources(str(tmp_path / "**"))) == 2
    assert not caplog.messages


def test_globs_and_named_files(tmp_path, caplog):
    for name in ("b.txt", "a.txt", "c.md"):
        write(tmp_path / name, "xyz")
    sources = find_sources([str(tmp_path / "*.txt"), tmp_path / "c.md", tmp_path / "a.txt"])
    assert [s.path.name for s in sources] == ["a.txt", "b.txt", "c.md"]
    assert sources[2] == Source(tmp_path / "c.md", "text", 3)
    assert caplog.messages == ["read as plain text, since the suffix says nothing: c.md"]


def test_a_text_field_of_files_without_fields_is_refused(tmp_path):
    write(tmp_path / "a.txt", "text")
    with pytest.raises(UserError, match=r"--column 'TEXT': no file of the corpus \(a.txt\) has fields"):
        find_sources([tmp_path / "a.txt"], "TEXT")
    write(tmp_path / "b.csv", "TEXT\ntext")
    assert len(find_sources([tmp_path], "TEXT")) == 2


def test_missing_path_glob_and_empty_corpora(tmp_path):
    with pytest.raises(UserError, match=r"no such file or directory: .*nowhere\.txt"):
        find_sources([tmp_path / "nowhere.txt"])
    with pytest.raises(UserError, match="no file matches"):
        find_sources([str(tmp_path / "*.txt")])
    with pytest.raises(UserError, match=r"has no file: expected .*\.jsonl"):
        find_sources([tmp_path])
    write(tmp_path / "a.txt", "")
    with pytest.raises(UserError, match="is empty: all of its 1 file"):
        find_sources([tmp_path])


def test_links_that_lead_nowhere_are_refused(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "a.txt", "one")
    (folder / "notes").symlink_to(tmp_path / "gone")  # a suffix that is not read
    assert len(find_sources([folder])) == 1
    (folder / "b.txt").symlink_to(tmp_path / "gone")
    for corpus in (folder, str(folder / "*.txt"), folder / "b.txt", str(folder / "b.txt")):
        with pytest.raises(
            UserError, match=r"b\.txt is a link to a file that is not there: fetch it, or remove"
        ):
            find_sources([corpus])
    (folder / "b.txt").unlink()
    write(folder / "b.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        UserError, match=r"b\.txt is a pointer of Git LFS to a file that is not here: fetch it"
    ):
        find_sources([folder])
    (folder / "b.txt").unlink()
    (folder / "b.txt").symlink_to(write(tmp_path / "there", "two"))
    assert [read(source.path)[0].text for source in find_sources([folder])] == ["one", "two"]


def test_links_to_folders_are_told(tmp_path, caplog):
    for name in ("corpus", "more"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.txt", name)
    (tmp_path / "corpus" / ".hidden").symlink_to(tmp_path / "more")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "more")
    with caplog.at_level(logging.INFO):
        (source,) = find_sources([tmp_path / "corpus"])
    assert source.path.parent.name == "corpus"
    told = "links to folders are not followed; give what they lead to as well: linked"
    assert caplog.messages == [f"{tmp_path / 'corpus'}: {told}"]


# Text


def test_separators_and_rows(tmp_path):
    path = write(tmp_path / "a.txt", "\n\none\ntwo\n \t\n\nthree\n\nfour")
    expected = [Document("one\ntwo", 3), Document("three", 7), Document("four", 9)]
    assert read(path) == expected
    stats = ReadStats()
    lines = list(read_documents(find_sources([path])[0], separator="line", stats=stats))
    assert [d.text for d in lines] == ["one", "two", "three", "four"]
    assert stats.skipped == 5 and stats.bytes_read == path.stat().st_size
    assert read(path, separator="file")[0].text.startswith("\n\none\ntwo")


def test_crlf_and_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert read(path) == [Document("one\ntwo", 1), Document("three", 4)]
    assert [d.text for d in read(path, separator="line")] == ["one", "two", "three"]


def test_document_of_odd_spaces_is_skipped_and_counted(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\n\u00a0\u3000\n\ntwo\n")
    stats = ReadStats()
    assert len(list(read_documents(find_sources([path])[0], stats=stats))) == 2
    assert stats.skipped == 1


@pytest.mark.parametrize("separator", ["blank-line", "line", "file"])
def test_not_utf8_names_line_and_offset(tmp_path, separator):
    path = write(tmp_path / "a.txt", b"fine\n\nfirst\ncaf\xe9\n")
    message = read_error(path, separator=separator)
    assert "a.txt:4: not UTF-8 (byte 0xe9 at offset 15" in message


def test_lines_that_end_with_cr_alone_are_refused_rather_than_one_document(tmp_path):
    told = "a.txt:1: its lines end with CR alone"
    assert told in read_error(write(tmp_path / "a.txt", b"one\rtwo\r\rthree\r"))
    (one,) = read(write(tmp_path / "a.txt", b"50 %\r100 %"))
    assert one.text == "50 %\r100 %"
    assert len(read(write(tmp_path / "a.txt", b"a\rb\rc\n\nd"))) == 2


def test_a_text_may_begin_as_other_files_do(tmp_path):
    for text in ("PAR1 is a receptor.", "BZh is a word.", "%PDF as a word"):
        assert [one.text for one in read(write(tmp_path / "a.txt", text))] == [text]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"some text\0more", "NUL byte at offset 9"),
        (b"%PDF-1.7 ...", "found PDF"),
        (gzip.compress(b"text", mtime=0), "suffix .gz"),
        ("wide".encode("utf-16"), "found UTF-16 text (convert it to UTF-8)"),
        (b"PAR1\x15\x04", "found Parquet (give the file the suffix .parquet)"),
    ],
)
def test_binary_files_are_refused(tmp_path, content, expected):
    assert expected in read_error(write(tmp_path / "a.txt", content))


def test_a_huge_line_is_refused_without_reading_it_all(tmp_path):
    path = write(tmp_path / "a.txt", b"short\n\n" + b"word " * 10_000_000)
    stats = ReadStats()
    documents = read_documents(find_sources([path])[0], max_document_bytes=1_000_000, stats=stats)
    assert next(documents).text == "short"
    with pytest.raises(
        UserError, match=r"a\.txt:3: .*longer than 1 MB; --documents line .*--max-document-mb"
    ):
        next(documents)
    assert stats.bytes_read < 2_000_000
    with pytest.raises(UserError, match=r"a\.txt:1: .*--documents blank-line"):
        next(read_documents(find_sources([path])[0], separator="file", max_document_bytes=1_000_000))
    assert len(read(path, max_document_bytes=60_000_000)[1].text) == 50_000_000


def test_the_limit_is_exact(tmp_path):
    path = write(tmp_path / "a.txt", b"abcd\r\nefgh\r\n")
    assert len(read(path, max_document_bytes=10)) == 1
    assert "a.txt:1" in read_error(path, max_document_bytes=9)
    assert len(read(path, separator="line", max_document_bytes=4)) == 2


def test_unreadable_file(tmp_path, monkeypatch):
    source = find_sources([write(tmp_path / "a.txt", "text")])[0]
    source.path.unlink()
    with pytest.raises(UserError, match=r"a\.txt: not readable as file"):
        list(read_documents(source))


# Compression


def compressed(suffix, content):
    return gzip.compress(content) if suffix == ".gz" else zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_and_jsonl(tmp_path, suffix):
    text = "".join(f"document {i}\n\n" for i in range(20_000)).encode()
    twice = compressed(suffix, text[:150_006]) + compressed(suffix, text[150_006:])  # two frames
    path = write(tmp_path / f"a.txt{suffix}", twice)
    stats = ReadStats()
    documents = list(read_documents(find_sources([path])[0], stats=stats))
    assert [d.text for d in documents] == [f"document {i}" for i in range(20_000)]
    assert stats.bytes_read == path.stat().st_size
    path = write(tmp_path / f"b.jsonl{suffix}", compressed(suffix, b'{"text": "x"}\n'))
    assert read(path) == [Document("x", 1)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_corrupt_compression(tmp_path, suffix):
    whole = compressed(suffix, bytes(range(32, 127)) * 5000)
    assert "not readable as" in read_error(write(tmp_path / f"cut.txt{suffix}", whole[:-20]))
    assert "not readable as" in read_error(write(tmp_path / f"other.txt{suffix}", b"plain text"))
    wrong = whole[:30] + bytes(255 - b for b in whole[30:60]) + whole[60:]
    assert f"wrong.txt{suffix}" in read_error(write(tmp_path / f"wrong.txt{suffix}", wrong))


def test_zstandard_missing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt.zst", compressed(".zst", b"text"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        read(path)


# JSON lines and Parquet


def test_jsonl(tmp_path):
    rows = ['{"text": "one\\r\\ntwo", "id": 1}', "", '{"text": "  "}', '{"text": "half \\ud83d"}']
    path = write(tmp_path / "a.jsonl", "\r\n".join(rows))
    stats = ReadStats()
    documents = list(read_documents(find_sources([path])[0], stats=stats))
    assert documents == [Document("one\r\ntwo", 1), Document("half ?", 4)]
    assert stats.skipped == 2
    stats = ReadStats()
    path = write(tmp_path / "n.jsonl", '{"text": null}\n{"text": NaN}\n{"text": "x"}')
    assert read(path, stats=stats) == [Document("x", 3)]
    assert stats.skipped == 2  # as an empty cell of csv or Parquet
    assert read(write(tmp_path / "b.jsonl", '{"body": "x"}'), text_field="body") == [Document("x", 1)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{broken", "not a row of JSON"),
        ("[", "a corpus in JSON has one object on each line, rather than an array"),
        ("[" * 100_000, "not a row of JSON"),
        ('["a list"]', "expected a JSON object, found list; a corpus in JSON has one object on each line"),
        ('{"title": "x", "body": "y"}', "no field 'text'; the fields are: title, body"),
        ('{"text": 3}', "the field 'text' is int, not a string"),
        ('{"text": ["x"]}', "the field 'text' is list, not a string"),
    ],
)
def test_bad_rows_of_jsonl(tmp_path, row, expected):
    message = read_error(write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + row + "\n"))
    assert "a.jsonl:2: " in message and expected in message


def test_long_row_of_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 1000}))
    message = read_error(path, max_document_bytes=500)
    assert "a.jsonl:1: " in message and "--max-document-mb" in message and "--documents" not in message


# csv, tsv and XML

NOTES = (
    '"ROW_ID","CATEGORY","TEXT"\r\n'
    '1,"Discharge, final","Admission:\r\n\r\nShe said ""no"", and left."\r\n'
    '\r\n2,"Report","Second"\r\n3,"Report",""\r\n'
)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_column_of_csv_is_read_cell_by_cell(tmp_path, suffix, caplog):
    caplog.set_level(logging.INFO)
    content = NOTES.encode() if not suffix else compressed(suffix, NOTES.encode())
    path, stats = write(tmp_path / f"NOTEEVENTS.csv{suffix}", content), ReadStats()
    found = [Document('Admission:\n\nShe said "no", and left.', 2), Document("Second", 6)]
    assert read(path, text_field="TEXT", stats=stats) == found
    assert stats.skipped == 1 and stats.bytes_read == path.stat().st_size
    assert caplog.text == ""
    assert read(path) == found  # whatever its case
    assert "the text is the column 'TEXT' of ROW_ID, CATEGORY, TEXT" in caplog.text
    assert [document.text for document in read(path, text_field="CATEGORY")] == [
        "Discharge, final", "Report", "Report",
    ]  # fmt: skip


def test_other_delimiters_and_the_usual_columns(tmp_path):
    for delimiter in ",;\t|":
        rows = f"id{delimiter}Note{delimiter}stars\n1{delimiter}good, I say{delimiter}5\n"
        content = rows if delimiter != "," else rows.replace("good, I say", '"good, I say"')
        assert read(write(tmp_path / "a.csv", content)) == [Document("good, I say", 2)]
    spaced = 'id, text\n1, "one, two"\n2, three\n'
    assert read(write(tmp_path / "s.csv", spaced)) == [Document("one, two", 2), Document("three", 3)]
    assert read(write(tmp_path / "t.csv", "id,text\n1, one\n")) == [Document(" one", 2)]
    assert read(write(tmp_path / "b.csv", "sep=;\nid;text\n1;one\n")) == [Document("one", 3)]
    assert read(write(tmp_path / "c.csv", "text\none\ntwo\n")) == [Document("one", 2), Document("two", 3)]
    assert read(write(tmp_path / "d.csv", "\n\n")) == []


def test_tsv_has_a_row_a_line_and_quotes_of_its_own(tmp_path):
    content = 'id\ttext\n1\ta 5" disk\n2\t"said ""no"""\n3\t"open\n'
    texts = [document.text for document in read(write(tmp_path / "a.tsv", content))]
    assert texts == ['a 5" disk', 'said "no"', '"open']


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "id,review,stars\n1,fine,5\n",
            r"a.csv:1: no column 'text'; the columns are: id, review, stars (--column)",
        ),
        (
            "note,body\n1,2\n",
            "a.csv:1: 2 columns may be the text; the columns are: note, body (--column)",
        ),
        (
            "id,text\n1,one\n2,two, three\n",
            "a.csv:3: expected 2 columns as in the header, found 3; a cell with",
        ),
        (
            'id,text\n1,"one\n2,two\n',
            "a.csv:2: not readable as csv (a quote that opens in this row is never closed)",
        ),
        (
            "id,text\n1,one\nid,text\n2,two\n",
            "a.csv:3: the header once more, as of files put together: remove",
        ),
        (b"id,text\n1,caf\xe9\n", "a.csv:2: not UTF-8 (byte 0xe9 at offset 13"),
        ('id,text\n1,"' + "one\n" * 30, "a.csv:2: the document that starts here is longer than 0.0001 MB"),
        ("id,text\n1," + "x" * 101, "a.csv:2: the document that starts here is longer than 0.0001 MB"),
    ],
)
def test_bad_csv(tmp_path, content, expected):
    assert expected in read_error(write(tmp_path / "a.csv", content), max_document_bytes=100)


PUBMED = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle//EN" "https://example.org/pubmed.dtd">
<PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID>1</PMID><Article><Journal><Title>J</Title></Journal>
<ArticleTitle>Cystic <i>fibrosis</i> &lt;CF&gt;.</ArticleTitle>
<Abstract><AbstractText Label="AIM">To see H<sub>2</sub>O.</AbstractText><AbstractText>  We
saw.</AbstractText><CopyrightInformation>C</CopyrightInformation></Abstract></Article>
<OtherAbstract><AbstractText>Autre.</AbstractText></OtherAbstract></MedlineCitation>
<PubmedData><ReferenceList><Reference><Citation>Other</Citation></Reference></ReferenceList></PubmedData></PubmedArticle>
<PubmedArticle><MedlineCitation><Article><ArticleTitle/></Article></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><Article><ArticleTitle>Second</ArticleTitle></Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>
"""


def test_titles_and_abstracts_of_pubmed(tmp_path):
    path, stats = write(tmp_path / "pubmed26n0001.xml.gz", compressed(".gz", PUBMED.encode())), ReadStats()
    documents = read(path, stats=stats)
    assert documents == [
        Document("Cystic fibrosis <CF>.\nTo see H2O.\nWe saw.", 4), Document("Second", 11)
    ]  # fmt: skip
    assert stats.skipped == 1
    nested = "<ArticleTitle>a<MedlineCitation>b</MedlineCitation></ArticleTitle>"
    whole = f"<MedlineCitation><Article>{nested}</Article></MedlineCitation>"
    assert [document.text for document in read(write(tmp_path / "nested.xml", whole))] == ["ab"]
    many = PUBMED.replace(
        "</PubmedArticleSet>", PUBMED.partition("Set>")[2].replace("</PubmedArticleSet>", "") * 2000
    )
    assert len(read(write(tmp_path / "many.xml", many + "</PubmedArticleSet>"))) == 4002


def test_a_reader_of_ones_own_replaces_ours_for_xml(tmp_path, monkeypatch):
    for table in (corpora._KIND_OF_SUFFIX, corpora._REGISTERED):
        monkeypatch.setattr(corpora, "_KIND_OF_SUFFIX" if ".txt" in table else "_REGISTERED", dict(table))
    corpora.register_reader(".xml", lambda path: [path.read_text()])
    assert read(write(tmp_path / "a.xml", "<a/>")) == [Document("<a/>", 1)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><PubmedArticleSet>&b;</PubmedArticleSet>',
            "a.xml:1: the entity 'a' is declared or used",
        ),
        (
            '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><PubmedArticleSet>&a;</PubmedArticleSet>',
            "a.xml:1: the entity 'a' is declared or used",
        ),
        (PUBMED.replace("Second", "&alpha;"), "a.xml:11: the entity 'alpha' is declared or used"),
        (
            "<article><body>text</body></article>",
            "a.xml:1: an XML file of 'article': of XML, PubMed's articles",
        ),
        (PUBMED[:-30], "a.xml:11: not readable as XML (unclosed token"),
        ("no XML", "a.xml:1: not readable as XML (syntax error"),
        (
            PUBMED.replace("We", "We " * 100),
            "a.xml:4: the document that starts here is longer than 0.0001 MB",
        ),
        ("<PubmedArticleSet>" + "<a>" * 200, "a.xml:1: elements within elements, more than a hundred deep"),
    ],
)
def test_bad_xml(tmp_path, content, expected):
    assert expected in read_error(write(tmp_path / "a.xml", content), max_document_bytes=100)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None, " ", "två"], "id": [1, 2, 3, 4]}), path)
    stats = ReadStats()
    assert list(read_documents(find_sources([path])[0], stats=stats)) == [
        Document("one", 1),
        Document("två", 4),
    ]
    assert stats.skipped == 2 and stats.bytes_read == path.stat().st_size
    assert "the columns are: text, id" in read_error(path, text_field="body")
    assert "is int64, not string" in read_error(path, text_field="id")
    assert "a.parquet:1: " in read_error(path, max_document_bytes=2)
    write(path, path.read_bytes()[:-50])
    assert "not readable as Parquet" in read_error(path)


# The hub


def test_hub_entries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for entry in ("hub:owner/name", "owner/name"):
        assert [s.kind for s in find_sources([entry])] == ["hub"]
    with pytest.raises(UserError, match="expected hub:owner/name"):
        find_sources(["hub:a/b:c:d:e"])
    with pytest.raises(UserError, match="no such file"):
        find_sources(["owner/name.txt"])
    write(tmp_path / "owner/name/a.txt", "local wins")
    assert [s.kind for s in find_sources(["owner/name"])] == ["text"]


def test_hub_rows(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return [{"text": "one"}, {"text": ""}, {"text": "two"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = find_sources(["hub:owner/name:20231101.en:validation"])[0]
    assert list(read_documents(source)) == [Document("one", 1), Document("two", 3)]
    assert calls == [(("owner/name", "20231101.en"), {"split": "validation", "streaming": True})]
    list(read_documents(find_sources(["hub:owner/name"])[0]))
    assert calls[1] == (("owner/name", None), {"split": "train", "streaming": True})
    with pytest.raises(UserError, match="no field 'body'; the fields are: text"):
        list(read_documents(source, text_field="body"))


def test_hub_out_of_reach(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("offline mode is enabled\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        list(read_documents(find_sources(["hub:owner/name"])[0]))
    assert str(caught.value).startswith("could not reach the hub for owner/name: give a local path, or")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["~nobody-at-all/corpus.txt", "a\0b", "x" * 5_000, "\ud800"])
def test_a_path_that_no_file_can_have(name):
    with pytest.raises(UserError, match="is not a path that can be opened") as caught:
        find_sources([name])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_a_row_with_names_of_any_kind_is_told_in_one_short_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"\x1b[31m\n" * 500: 1, "\ud800": 2}) + "\n")
    with pytest.raises(UserError, match="no field 'text'") as caught:
        list(read_documents(find_sources([path])[0]))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600

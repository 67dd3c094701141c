"""Named-entity files and hub data sets of tagged sentences."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minialbert.data.examples import TokenExample
from minialbert.data.ner import LINES, TagReader, read_tagged
from minialbert.data.tables import load_table
from minialbert.data.tasks import load_task
from minialbert.errors import UserError
from minialbert.recipes.schema import TaskRecipe

TRAIN = "Familial\tB-Disease\ncancer\tI-Disease\nand\tO\nzinc\tB-Chemical\n\nno\tO\ncure\tO\n"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_bio(path, *, repair="repair"):
    """Read the sentences of a file, and what was done to their tags."""
    table = read_tagged(path)
    tags = TagReader(table.error, repair)
    sentences = [
        TokenExample(tuple(cells["tokens"]), tags.read(cells["tags"], cells[LINES]))
        for _, cells in table.rows
    ]
    return SimpleNamespace(
        sentences=sentences, repaired=tags.repaired, notes=(*table.notes, *tags.notes("train"))
    )


def load_ner(folder, **options):
    return load_table(folder, "token", **options)


def read(tmp_path, content, **options):
    return read_bio(write(tmp_path / "ncbi" / "train.tsv", content), **options)


def pairs(file):
    return [list(zip(sentence.words, sentence.tags, strict=True)) for sentence in file.sentences]


def write_tagged(path, sentences):
    """Write sentences as `read_bio` takes them: a word, TAB and its tag on each line."""
    blocks = ("".join(f"{w}\t{t}\n" for w, t in zip(s.words, s.tags, strict=True)) for s in sentences)
    text = "\n".join(blocks)
    # Of the first word: a reader takes only the first mark away.
    path.write_bytes((("\ufeff" if text.startswith("\ufeff") else "") + text).encode())


def error_of(function, *args, **options):
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One file


def test_words_tags_and_first_rows(tmp_path):
    file = read(tmp_path, TRAIN)
    assert pairs(file) == [
        [("Familial", "B-Disease"), ("cancer", "I-Disease"), ("and", "O"), ("zinc", "B-Chemical")],
        [("no", "O"), ("cure", "O")],
    ]
    assert (file.repaired, file.notes) == (0, ())


@pytest.mark.parametrize(
    "content",
    [
        "a\tO\nb\tB-X\n\nc\tO",  # no line end after the last row
        "a\tO\r\nb\tB-X\r\n\r\nc\tO\r\n",
        b"\xef\xbb\xbfa\tO\nb\tB-X\n\nc\tO\n",
        "\n\na\tO\nb\tB-X\n \t \n\n\nc\tO\n\n\n",
        "-DOCSTART-\tO\n\na\tO\nb\tB-X\n-DOCSTART- (2)\nc\tO\n",
        "# id 1\tdomain=en\na _ _ O\nb _ _ B-X\n\n# id 2\tdomain=en\nc _ _ O\n",
        "# id 1 domain=en\n# by hand\na O\nb B-X\n\n\n# id 2 domain=en\nc O\n",
        "# text = a b\na\tO\n# within\nb\tB-X \n\n# id = 2\nc\tO\n",
        "a NN O\nb  NN I-NP B-X\n\nc . O\n",
    ],
)
def test_layouts_of_the_same_sentences(tmp_path, content):
    assert pairs(read(tmp_path, content)) == [[("a", "O"), ("b", "B-X")], [("c", "O")]]


def test_conll_2003_becomes_iob2(tmp_path):
    content = (
        "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\nParis NNP I-NP I-LOC\n"
        "Rome NNP I-NP B-LOC\nItaly NNP I-NP I-LOC\n. . O O\n\nPeter NNP I-NP I-PER\nBlackburn NNP I-NP I-PER\n"
    )
    file = read(tmp_path, content)
    assert [sentence.tags for sentence in file.sentences] == [
        ("B-ORG", "O", "B-MISC", "B-LOC", "B-LOC", "I-LOC", "O"),
        ("B-PER", "I-PER"),
    ]
    assert file.repaired == 4
    assert file.notes == ("train: 4 I- tags that followed nothing were read as B-",)
    message = error_of(read, tmp_path, content, repair="refuse")
    assert "train.tsv:3: 'I-ORG' follows no entity: expected 'B-ORG'" in message


def test_an_entity_does_not_go_on_past_a_sentence_or_into_another_type(tmp_path):
    file = read(tmp_path, "a\tB-X\n\nb\tI-X\nc\tI-Y\nd\tI-Y\n")
    assert [sentence.tags for sentence in file.sentences] == [("B-X",), ("B-X", "B-Y", "I-Y")]
    assert file.repaired == 2
    message = error_of(read, tmp_path, "b\tB-X\nc\tI-Y\n", repair="refuse")
    assert ":2: 'I-Y' follows an entity X" in message
    assert read(tmp_path, "a\tI-X\n").notes == ("train: 1 I- tag that followed nothing was read as B-",)


def test_quotes_marks_and_odd_spaces_are_ordinary(tmp_path):
    file = read(tmp_path, "\"\tO\n#\tO\n# 1\tO\n''\tO\na\u00a0b\tO\n\u2028x\tO\nNA\tO\n")
    assert file.sentences[0].words == ('"', "#", "# 1", "''", "a\u00a0b", "\u2028x", "NA")
    assert read(tmp_path, "# O\nx B-Y\n").sentences[0].words == ("#", "x")
    assert read(tmp_path, "# NN O\n# NN B-Y\nx NN O\n").sentences[0].words == ("#", "#", "x")


def test_columns_between_word_and_tag(tmp_path):
    file = read(tmp_path, "foo\t1\tNN\tB-X\nbar\tO\n")
    assert pairs(file) == [[("foo", "B-X"), ("bar", "O")]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has 0 sentences"),
        ("\n \n-DOCSTART- -X- O O\n", "has 0 sentences"),
        ("a\tO\nb\n", ":2: expected at least 2 columns separated by TAB, found 1: 'b'"),
        ("a O\nb\n", ":2: expected at least 2 columns separated by spaces, found 1: 'b'"),
        ("a\tO\nb O\n", ":2: expected at least 2 columns separated by TAB, found 1: 'b O'"),
        ("a\tO\n\n\tO\n", ":3: the word in column 1 is empty"),
        ("a\tO\n \tO\n", ":2: the word in column 1 is empty"),
        ("a\tO\nb\tX\n", ":2: expected a tag O, B-TYPE or I-TYPE, found 'X'"),
        ("a\tB\n", ":1: expected a tag O, B-TYPE or I-TYPE, found 'B'"),
        ("a\tB-\n", ":1: expected a tag O, B-TYPE or I-TYPE, found 'B-'"),
        ("a\t\n", ":1: expected a tag O, B-TYPE or I-TYPE, found ''"),
        ("a\tS-\n", ":1: expected a tag O, B-TYPE or I-TYPE, found 'S-'"),
        ("a\tS\n", ":1: expected a tag O, B-TYPE or I-TYPE, found 'S'"),
        ("a\tE- X\n", ":1: expected a tag O, B-TYPE or I-TYPE, found 'E- X'"),
        (b"a\tO\n\xe9t\xe9\tO\n", ":2: not UTF-8 .byte 0xe9."),
    ],
)
def test_errors_name_file_and_row(tmp_path, content, message):
    found = error_of(read, tmp_path, content)
    assert str(tmp_path / "ncbi" / "train.tsv") in found
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read (No such file" in error_of(read_bio, tmp_path / "nowhere.tsv")


def test_a_first_column_that_numbers_the_words(tmp_path):
    file = read(tmp_path, "1\tfoo\tNN\tB-X\n2\tbar\tNN\tI-X\n\n1\t2\tCD\tO\n")
    assert pairs(file) == [[("foo", "B-X"), ("bar", "I-X")], [("2", "O")]]
    note = "the first column has numbers, so the words are read from the second"
    assert file.notes == (note,)
    file = read(tmp_path, "7\tim\tO\n8-9\tim\t_\n8\tin\tO\n8.1\tx\tO\n\n9\tdem\tO\n")
    assert [sentence.words for sentence in file.sentences] == [("im", "in"), ("dem",)]
    assert file.notes == (note, "2 rows whose number is not a whole one are left out")
    assert read(tmp_path, "1\tCD\tO\nx\tCD\tO\n").sentences[0].words == ("1", "x")
    assert read(tmp_path, "1\tO\n2\tB-X\n").sentences[0].words == ("1", "2")


@pytest.mark.parametrize(
    ("tags", "expected", "note"),
    [
        ("B-X I-X E-X S-Y O", "B-X I-X I-X B-Y O", "train: tags in BIOES were read as IOB2 (1 E-, 1 S-)"),
        ("B-X L-X U-X U-X O", "B-X I-X B-X B-X O", "train: tags in BILOU were read as IOB2 (1 L-, 2 U-)"),
        ("B-X M-X E-X", "B-X I-X I-X", "train: tags in BIOES were read as IOB2 (1 E-, 1 M-)"),
        ("W-X W-X O", "B-X B-X O", "train: tags in BIOES were read as IOB2 (2 W-)"),
        ("B-X E-X I-X E-X", "B-X I-X B-X I-X", "train: tags in BIOES were read as IOB2 (2 E-)"),
    ],
)
def test_other_schemes_become_iob2(tmp_path, tags, expected, note):
    file = read(tmp_path, "".join(f"w\t{tag}\n" for tag in tags.split()))
    assert file.sentences[0].tags == tuple(expected.split())
    assert file.notes[0] == note and file.repaired == ("E-X I-X" in tags)


# Writing


@st.composite
def _sentences(draw):
    characters = st.characters(codec="utf-8", exclude_characters="\t\n")
    words = st.text(characters, min_size=1).map(str.strip)
    words = words.filter(lambda word: word and "-DOCSTART-" not in word)
    words |= st.sampled_from(["#", "# x", '"', "-DOCSTART-s", "\ufeffa", "a\r.", "O", "-"])
    types = st.sampled_from(["Disease", "cell-line", "x\u00e9", "I-", "two words"])
    drawn = []
    for length in draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)):
        tags, previous = [], None
        for _ in range(length):
            tags.append(draw(st.just("O") | types.map("B-{}".format) | st.just(previous or "O")))
            previous = None if tags[-1] == "O" else f"I-{tags[-1][2:]}"
        drawn.append(TokenExample(tuple(draw(words) for _ in tags), tuple(tags)))
    return drawn


@settings(deadline=None)
@given(_sentences())
def test_what_is_written_is_read_back(tmp_path_factory, sentences):
    path = tmp_path_factory.getbasetemp() / "written.tsv"
    write_tagged(path, sentences)
    file = read_bio(path, repair="refuse")
    assert file.sentences == sentences


# A directory


def test_a_task_from_a_directory(tmp_path):
    folder = tmp_path / "NCBI-Disease"
    write(folder / "train.tsv", TRAIN)
    write(folder / "train_dev.tsv", "not read")
    write(folder / "devel.tsv", "zinc\tI-Chemical\n")
    write(folder / "test.tsv", "cancer\tB-Disease\n\nx\tO\n")
    task = load_ner(folder)
    assert (task.name, task.problem, task.metric) == ("ncbi-disease", "token", "entity_f1")
    assert task.labels == ("O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease")
    assert {split: len(sentences) for split, sentences in task.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 2,
    }
    assert task.splits["validation"] == [TokenExample(("zinc",), ("B-Chemical",))]
    assert task.notes == (
        "NCBI-Disease: left out train_dev.tsv",
        "validation: 1 I- tag that followed nothing was read as B-",
    )
    assert load_ner(str(folder), name="n").name == "n"
    assert "devel.tsv:1" in error_of(load_ner, folder, repair="refuse")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("train.conll", "testa.conll", "testb.conll"),
        ("train.iob", "dev.iob2", "test.bio"),
        ("Train.TSV", "validation.tsv", "test.tsv"),
    ],
)
def test_names_of_the_files(tmp_path, train, validation, test):
    write(tmp_path / train, TRAIN)
    write(tmp_path / validation, "v\tO\n")
    write(tmp_path / test, "t\tO\n")
    task = load_ner(tmp_path)
    assert [task.splits[split][0].words[0] for split in ("train", "validation", "test")] == [
        "Familial",
        "v",
        "t",
    ]


def test_only_train(tmp_path):
    write(tmp_path / "Set" / "train.tsv", TRAIN)
    task = load_ner(tmp_path / "Set")
    assert set(task.splits) == {"train"}
    assert (task.name, task.notes) == ("set", ())


def test_directories_that_do_not_fit(tmp_path):
    folder = tmp_path / "set"
    assert error_of(load_ner, folder) == f"no such file or directory: {folder}"
    write(folder / "train_dev.tsv", TRAIN)
    message = error_of(load_ner, folder)
    assert "no train split; expected train with one of .csv .tsv" in message and ".conll" in message
    assert message.endswith("found train_dev.tsv")
    write(folder / "train.yaml", "{}")
    assert "train.yaml: unknown extension" in error_of(load_ner, folder)
    file = write(folder / "train.tsv", "a\tO\n")
    assert "expected at least two labels, found only 'O'" in error_of(load_ner, folder)
    write(file, TRAIN)
    assert load_ner(file).splits == load_ner(folder).splits
    write(file, TRAIN)
    write(folder / "dev.tsv", TRAIN)
    write(folder / "devel.txt", TRAIN)
    assert "both dev.tsv and devel.txt could be the validation split" in error_of(load_ner, folder)


def test_a_type_that_train_does_not_have(tmp_path):
    write(tmp_path / "train.tsv", TRAIN)
    write(tmp_path / "test.tsv", "a\tO\n\n# note\nb\tB-Disease\nc\tB-Gene\nd\tB-Gene\n")
    task = load_ner(tmp_path)
    assert task.labels == ("O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease")
    assert task.notes == (
        "test: labels that are not among those of the train split count as missed: Gene (2)",
    )


# The hub

NAMES = ["O", "B-Disease", "I-Disease"]


def hub_split(words, tags, names=NAMES, columns=("tokens", "ner_tags")):
    value = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = {columns[0]: datasets.List(datasets.Value("string")), columns[1]: datasets.List(value)}
    return datasets.Dataset.from_dict(
        {columns[0]: words, columns[1]: tags}, features=datasets.Features(features)
    )


@pytest.fixture
def hub(monkeypatch):
    """Gives load_dataset something to return, and the list of its calls."""

    def serve(**splits):
        calls = []

        def load_dataset(*args):
            calls.append(args)
            return datasets.DatasetDict(splits)

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        return calls

    return serve


def load_hub(data, **options):
    return load_task(TaskRecipe(**{"name": "ner", **options}, data=data), carve=False)


def test_a_hub_data_set_with_classes(hub):
    calls = hub(
        train=hub_split([["a", "b", "c"], [], ["d"]], [[1, 2, 0], [], [2]]),
        validation=hub_split([["e"]], [[1]]),
        test=hub_split([["f", "g"]], [[-1, -1]]),
    )
    task = load_hub("hub:ncbi/NCBI_disease:small")
    assert calls == [("ncbi/NCBI_disease", "small")]
    assert (task.name, task.labels) == ("ncbi_disease", ("O", "B-Disease", "I-Disease"))
    assert task.splits["train"] == [
        TokenExample(("a", "b", "c"), ("B-Disease", "I-Disease", "O")),
        TokenExample(("d",), ("B-Disease",)),
    ]
    assert task.splits["test"] == [TokenExample(("f", "g"), None)]
    assert task.reported_split == "validation"
    assert task.notes == (
        "hub:ncbi/NCBI_disease:small (train): 1 I- tag that followed nothing was read as B-",
        "hub:ncbi/NCBI_disease:small (train): 1 row without words left out",
        "test: no row has a label, so none is scored; found the columns 'tokens', 'ner_tags'",
    )
    message = error_of(load_hub, "hub:ncbi/NCBI_disease:small", iob="refuse")
    assert "(train), row 3: 'I-Disease' follows no entity" in message


def test_a_hub_data_set_with_strings(hub):
    calls = hub(
        train=hub_split([["a", "b"]], [["B-X", "O"]], None, ("words", "tags")),
        dev=hub_split([["c"]], [["O"]], None, ("words", "tags")),
    )
    task = load_hub("hub:owner/name", name="mine", problem="token")
    assert calls == [("owner/name", None)]
    assert (task.name, task.labels, set(task.splits)) == (
        "mine",
        ("O", "B-X", "I-X"),
        {"train", "validation"},
    )
    assert task.splits["train"] == [TokenExample(("a", "b"), ("B-X", "O"))]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            hub_split([["a"]], [[1]], columns=("text", "ner_tags")),
            "expected columns tokens and tags, or text and spans; found the columns 'text', 'ner_tags'",
        ),
        (
            hub_split([["a"]], [[1]], columns=("tokens", "pos")),
            "no tags column; expected one of tags, ner_tags, labels, found the columns 'tokens', 'pos'",
        ),
        (hub_split([["a"]], [[1, 0]]), "row 1: 1 words and 2 tags"),
        (hub_split([["a"], ["b"]], [[1], [-1]]), "row 2: no label; every row of train needs one"),
        (
            hub_split([["a"], ["b", "c"]], [[1], [0, -1]]),
            "row 2: expected a list of strings in column 'ner_tags', found ['O', None]",
        ),
        (hub_split([["a"], ["b", ""]], [[1], [0, 0]]), "row 2: word 2 is empty"),
        (hub_split([["a"]], [[1]], ["O", "S-"]), "row 1: expected a tag O, B-TYPE or I-TYPE, found 'S-'"),
        (hub_split([[]], [[]]), "has 0 sentences"),
        (hub_split([["a"]], [[0]]), "expected at least two labels, found only 'O'"),
        (
            datasets.Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[1]]}),
            "row 1: the tags in column 'ner_tags' are numbers, and their names are not known: name them in the order",
        ),
    ],
)  # fmt: skip
def test_hub_data_sets_that_do_not_fit(hub, train, message):
    hub(train=train)
    found = error_of(load_hub, "hub:owner/name")
    assert found.startswith("hub:owner/name (train)") and message in found


def test_hub_splits_that_do_not_fit(hub):
    split = hub_split([["a"]], [[1]])
    hub(dev=split, test=split)
    assert "has no train split: expected train, found dev, test" in error_of(load_hub, "hub:owner/name")
    hub(train=split, test=hub_split([["b"]], [[1]], ["O", "B-Gene"]))
    note = "test: labels that are not among those of the train split count as missed: Gene (1)"
    assert load_hub("hub:owner/name").notes == (note,)
    for name in ("hub:name", "hub:a/b:c:d", "hub:a/b/c", "hub:"):
        assert "expected hub:OWNER/NAME" in error_of(load_hub, name)


def test_the_hub_does_not_answer(monkeypatch):
    def load_dataset(*args):
        raise ConnectionError("offline mode is enabled\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    message = error_of(load_hub, "hub:owner/name")
    assert message.startswith("could not load hub:owner/name: give a local directory, or check the name")
    assert message.endswith("(ConnectionError: offline mode is enabled)")


def test_a_sentence_of_ranges_alone_has_no_words(tmp_path):
    (tmp_path / "train.conll").write_text("1-2\tab\tO\n\n1\ta\tB-X\n2\tb\tO\n")
    with pytest.raises(UserError, match=r"train.conll:1: there are no words"):
        load_table(tmp_path / "train.conll", "token")

"""Labelled examples as model inputs: windows of words, labels, batches, and their order."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaTokenizerFast

from minialbert.data.examples import Task, TextExample, TokenExample
from minialbert.data.masking import IGNORED_LABEL
from minialbert.data.task_inputs import (
    LengthGroupedSampler,
    PaddingCollator,
    encode_sentences,
    encode_texts,
    label_value,
    make_cutter,
)
from minialbert.errors import UserError
from minialbert.tasks.models import load_task_tokenizer

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
TOKENS = Task("t", "token", TAGS, "entity_f1", {})
CLASSES = Task("t", "single-label", ("neg", "neutral", "pos"), "accuracy", {})


def token_task(*labels):
    return Task("t", "token", labels, "entity_f1", {})


def word_windows(words, tokenizer, *, max_length, overlap):
    (windows,) = make_cutter(tokenizer, max_length=max_length, overlap=overlap).words([words])
    return windows


def firsts(window):
    """Whether each position is the first piece of a word that belongs to the window."""
    positions, words = window.first_pieces
    assert words == [window.words[position] for position in positions]
    return tuple(position in positions for position in range(len(window.words)))


# Windows of words


def own_pieces(words, tokenizer, room):
    """Pieces of each word, tokenised by itself: WordPiece looks at nothing but the word."""
    found = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    return [(ids or [tokenizer.unk_token_id])[:room] for ids in found]


def word_range(window, pieces):
    """First and last word (exclusive) of a window, found from the place of a word that it owns."""
    position, word = next((p, w) for p, w in enumerate(window.words) if w >= 0)
    before, begin = position - 1, word
    while before > 0:
        begin -= 1
        before -= len(pieces[begin])
    assert before == 0, "a window begins inside a word"
    held, end = 0, begin
    while held < len(window.input_ids) - 2:
        held += len(pieces[end])
        end += 1
    assert held == len(window.input_ids) - 2, "a window ends inside a word"
    return begin, end


words_of_all_kinds = st.one_of(
    st.sampled_from(["the", "of", "a", "King", "river", "\u200b", "\u00ad", ".", "(x)", "houseing", "中国"]),
    st.integers(1, 30).map(lambda n: ("xyzab" * 6)[:n]),
    st.integers(101, 110).map(lambda n: "z" * n),  # beyond what WordPiece takes: unknown
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(words_of_all_kinds, max_size=40),
    max_length=st.integers(3, 24),
    overlap=st.integers(0, 20),
)
def test_windows_of_any_sentence(tiny_tokenizer, words, max_length, overlap):
    room = max_length - 2
    windows = word_windows(words, tiny_tokenizer, max_length=max_length, overlap=overlap)
    pieces = own_pieces(words, tiny_tokenizer, room)
    assert bool(windows) == bool(words)

    # Every word has one first piece over all windows, in order, and all of its pieces beside it.
    assert [
        word for window in windows for word, first in zip(window.words, firsts(window), strict=True) if first
    ] == list(range(len(words)))
    owned = [word for window in windows for word in window.words if word >= 0]
    assert owned == [index for index, ids in enumerate(pieces) for _ in ids]

    ranges = []
    for window in windows:
        assert len(window.input_ids) == len(window.words) == len(firsts(window)) <= max_length
        assert window.input_ids[0] == tiny_tokenizer.cls_token_id
        assert window.input_ids[-1] == tiny_tokenizer.sep_token_id
        assert window.words[0] == window.words[-1] == -1
        assert not firsts(window)[0]
        assert not firsts(window)[-1]
        begin, end = word_range(window, pieces)
        ranges.append((begin, end))
        content = window.input_ids[1:-1]
        assert content == tuple(piece for ids in pieces[begin:end] for piece in ids)
        position = 1
        for word in range(begin, end):
            here = set(window.words[position : position + len(pieces[word])])
            assert here in ({word}, {-1})
            assert firsts(window)[position] == (here == {word})
            position += len(pieces[word])

    # Windows follow each other without a gap, with new words in each, and share no more than asked.
    for (begin, end), (next_begin, next_end) in zip(ranges, ranges[1:], strict=False):
        assert begin < next_begin <= end < next_end
        assert sum(map(len, pieces[next_begin:end])) <= overlap
    if words:
        assert ranges[0][0] == 0
        assert ranges[-1][1] == len(words)

    # A word belongs where it has most words on its poorer side; the ends of the sentence hide nothing.
    def context(word, begin, end):
        left = word - begin if begin else len(words)
        right = end - 1 - word if end < len(words) else len(words)
        return min(left, right)

    for window, (first, last) in zip(windows, ranges, strict=True):
        for word in set(window.words) - {-1}:
            most = max(context(word, begin, end) for begin, end in ranges if begin <= word < end)
            assert context(word, first, last) == most


def test_windows_by_hand(tiny_tokenizer):
    words = list("abcdefgh")
    windows = word_windows(words, tiny_tokenizer, max_length=7, overlap=2)
    assert [tiny_tokenizer.decode(window.input_ids) for window in windows] == [
        "[CLS] a b c d e [SEP]",
        "[CLS] d e f g h [SEP]",
    ]
    # Of the shared words the first goes with the words before it, the second with those after.
    assert [window.words for window in windows] == [(-1, 0, 1, 2, 3, -1, -1), (-1, -1, 4, 5, 6, 7, -1)]


def test_a_sentence_that_fits_is_one_window_with_the_tokenizers_ids(tiny_tokenizer):
    words = ["The", "king's", "house"]
    (window,) = word_windows(words, tiny_tokenizer, max_length=64, overlap=8)
    assert list(window.input_ids) == tiny_tokenizer("The king's house")["input_ids"]
    assert window.words == (-1, 0, 1, 1, 1, 2, -1)
    assert firsts(window) == (False, True, True, False, False, True, False)


def test_a_word_without_pieces_becomes_the_unknown_token(tiny_tokenizer):
    (window,) = word_windows(["a", "\u200b", "b"], tiny_tokenizer, max_length=8, overlap=0)
    assert tiny_tokenizer.convert_ids_to_tokens(window.input_ids) == ["[CLS]", "a", "[UNK]", "b", "[SEP]"]


def test_a_word_longer_than_a_window_loses_its_end(tiny_tokenizer):
    windows = word_windows(["a", "xyzxyz", "b"], tiny_tokenizer, max_length=6, overlap=2)
    assert [tiny_tokenizer.convert_ids_to_tokens(window.input_ids)[1:-1] for window in windows] == [
        ["a"],
        ["x", "##y", "##z", "##x"],
        ["b"],
    ]


def test_no_words_no_window(tiny_tokenizer):
    assert word_windows([], tiny_tokenizer, max_length=8, overlap=2) == []


def test_a_length_without_room_for_words_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="max_length 2 leaves no room for words beside 2 special tokens"):
        word_windows(["a"], tiny_tokenizer, max_length=2, overlap=0)


def test_a_tokenizer_that_cuts_by_itself_does_not_shorten_windows(tiny_tokenizer):
    # As some published tokenizer.json files do.
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=6)
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("cls", "sep", "pad", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    (window,) = word_windows(list("abcdef"), tokenizer, max_length=10, overlap=0)
    assert tokenizer.convert_ids_to_tokens(window.input_ids) == ["[CLS]", *"abcdef", "[SEP]"]


# Byte-level tokenizers, which tell a word by the space before it


@pytest.fixture(scope="module")
def byte_level_backend():
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["the model of the city by the river was large", "a small house was in the city"]
    backend.train_from_iterator(text * 5, trainer)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return backend


@pytest.fixture(params=["as it is", "roberta", "roberta, set already"])
def byte_level_dir(request, byte_level_backend, tmp_path):
    if request.param == "as it is":  # what ModernBERT's directory holds
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(byte_level_backend.to_str()),
            bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>",
            pad_token="<pad>", mask_token="<mask>",
        )  # fmt: skip
    else:
        merges = json.loads(byte_level_backend.to_str())["model"]["merges"]
        tokenizer = RobertaTokenizerFast(
            vocab=byte_level_backend.get_vocab(),
            merges=[tuple(merge) for merge in merges],
            add_prefix_space="already" in request.param,
        )
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_words_of_a_byte_level_tokenizer_are_the_pieces_of_the_sentence(byte_level_dir):
    tokenizer = load_task_tokenizer(str(byte_level_dir), words=True)
    words = ["the", "city", "was", "large", "by", "the", "river"]
    (window,) = word_windows(words, tokenizer, max_length=64, overlap=8)
    assert tokenizer.convert_ids_to_tokens(window.input_ids) == [
        "<s>", "Ġthe", "Ġcity", "Ġwas", "Ġlarge", "Ġby", "Ġthe", "Ġriver", "</s>",
    ]  # fmt: skip
    assert list(window.input_ids) == tokenizer(" " + " ".join(words))["input_ids"]
    assert window.words == (-1, 0, 1, 2, 3, 4, 5, 6, -1)


def test_words_of_a_byte_level_tokenizer_survive_saving(byte_level_dir, tmp_path):
    tokenizer = load_task_tokenizer(str(byte_level_dir), words=True)
    tokenizer.save_pretrained(tmp_path / "tuned")
    again = load_task_tokenizer(str(tmp_path / "tuned"), words=True)
    words = ["river", "\u200b", "xyz", "中国", "city"]
    assert word_windows(words, again, max_length=12, overlap=2) == word_windows(
        words, tokenizer, max_length=12, overlap=2
    )


def test_windows_of_a_byte_level_tokenizer(byte_level_dir):
    tokenizer = load_task_tokenizer(str(byte_level_dir), words=True)
    words = [
        "the",
        "small",
        "house",
        "of",
        "the",
        "model",
        "was",
        "in",
        "the",
        "city",
        "by",
        "the",
        "large",
        "river",
    ]
    windows = word_windows(words, tokenizer, max_length=8, overlap=2)
    assert len(windows) > 2
    owned = [
        piece
        for window in windows
        for piece, word in zip(window.input_ids, window.words, strict=True)
        if word >= 0
    ]
    assert owned == tokenizer(" " + " ".join(words), add_special_tokens=False)["input_ids"]


def test_text_tasks_leave_a_byte_level_tokenizer_alone(byte_level_backend, tmp_path):
    merges = json.loads(byte_level_backend.to_str())["model"]["merges"]
    made = RobertaTokenizerFast(
        vocab=byte_level_backend.get_vocab(), merges=[tuple(merge) for merge in merges]
    )
    made.save_pretrained(tmp_path)
    tokenizer = load_task_tokenizer(str(tmp_path), words=False)
    assert tokenizer.tokenize("the city") == ["the", "Ġcity"]


# Windows of texts, beside those that tokenizers cut themselves

LONG = "the city was house, river all language x 1 king was teachers " * 4


def windows_of_texts(texts, tokenizer, *, max_length, overlap):
    return list(make_cutter(tokenizer, max_length=max_length, overlap=overlap).texts(texts))


@pytest.mark.parametrize("overlap", [0, 4])
@pytest.mark.parametrize("text", [LONG, ("the king", LONG), (LONG, "the king")])
def test_windows_are_those_of_the_tokenizer(tiny_tokenizer, text, overlap):
    pair = text if isinstance(text, tuple) else (text,)
    reference = tiny_tokenizer(
        *pair,
        truncation="only_second" if pair[-1] == LONG and len(pair) == 2 else "only_first",
        max_length=16,
        stride=overlap,
        return_overflowing_tokens=True,
    )
    (result,) = windows_of_texts([text], tiny_tokenizer, max_length=16, overlap=overlap)
    assert [row.input_ids for row in result.rows] == reference["input_ids"]
    assert [row.token_type_ids for row in result.rows] == reference["token_type_ids"]
    assert sum(result.weights) == len(tiny_tokenizer(LONG, add_special_tokens=False)["input_ids"])
    assert result.cut == 0


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_windows_of_byte_level_tokenizers(special, paired):
    """Two separators between the texts of a pair, as in RoBERTa; or no special tokens at all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if special:
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    long = "déjà vu 中 in the city"
    text = ("a b", long) if paired else long
    reference = tokenizer(
        *(text if paired else (text,)),
        truncation="only_second" if paired else "only_first",
        max_length=14,
        stride=2,
        return_overflowing_tokens=True,
    )
    windows, empty = windows_of_texts([text, ""], tokenizer, max_length=14, overlap=2)
    assert [row.input_ids for row in windows.rows] == reference["input_ids"]
    assert len(windows.rows) > 1
    assert empty.rows[0].input_ids == ([0, 2] if special else [1])


def test_window_without_room_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="max_length 3 leaves no room for text beside 3 special tokens"):
        windows_of_texts([("the", "king")], tiny_tokenizer, max_length=3, overlap=0)


# Tags of words


def test_tags_stand_on_first_pieces(tiny_tokenizer):
    sentence = TokenExample(("the", "xyz", "house", "city"), ("O", "B-A", "I-A", "B-B"))
    encoded = encode_sentences([sentence], tiny_tokenizer, TOKENS, max_length=16, overlap=4)
    assert encoded.rows[0]["labels"] == [
        IGNORED_LABEL,
        0,
        1,
        IGNORED_LABEL,
        IGNORED_LABEL,
        2,
        3,
        IGNORED_LABEL,
    ]


def test_tags_of_all_pieces_go_on_with_inner_tags(tiny_tokenizer):
    sentence = TokenExample(("to", "xyz", "mno", "abc"), ("O", "B-A", "I-A", "O"))
    encoded = encode_sentences([sentence], tiny_tokenizer, TOKENS, max_length=16, overlap=4, all_pieces=True)
    assert encoded.rows[0]["labels"] == [IGNORED_LABEL, 0, 1, 2, 2, 2, 2, 2, 0, 0, 0, IGNORED_LABEL]


def test_pieces_whose_inner_tag_the_task_lacks_are_ignored(tiny_tokenizer):
    sentence = TokenExample(("xy",), ("B-A",))
    encoded = encode_sentences(
        [sentence], tiny_tokenizer, token_task("O", "B-A"), max_length=8, overlap=2, all_pieces=True
    )
    assert encoded.rows[0]["labels"] == [IGNORED_LABEL, 1, IGNORED_LABEL, IGNORED_LABEL]


@pytest.mark.parametrize("all_pieces", [False, True])
def test_over_windows_each_word_is_labelled_once(tiny_tokenizer, all_pieces):
    words, tags = ("xy", "a", "b", "cd", "e", "f", "gh"), ("B-A", "I-A", "O", "B-B", "B-A", "O", "B-B")
    sentences = [
        TokenExample(("a",), ("O",)), TokenExample(()), TokenExample(words, tags), TokenExample(("b",))
    ]  # fmt: skip
    encoded = encode_sentences(
        sentences, tiny_tokenizer, TOKENS, max_length=6, overlap=2, all_pieces=all_pieces
    )
    assert encoded.owners[0] == 0
    assert set(encoded.owners[1:-1]) == {2}
    assert encoded.owners[-1] == 3
    assert "labels" not in encoded.rows[-1]
    assert len(encoded) == len(encoded.windows) == len(encoded.owners) > 4
    found = [label for row in encoded.rows[1:-1] for label in row["labels"] if label != IGNORED_LABEL]
    once = [TAGS.index(tag) for tag in tags]
    rest = {0: [2], 3: [4], 6: [4]}
    by_piece = [label for word, first in enumerate(once) for label in [first, *rest.get(word, [])]]
    assert found == (by_piece if all_pieces else once)


# Texts and pairs


def test_labels_by_name(tiny_tokenizer):
    examples = [TextExample("the king", label="pos"), TextExample("a", label="neg"), TextExample("b")]
    encoded = encode_texts(examples, tiny_tokenizer, CLASSES, max_length=16)
    assert [row.get("labels") for row in encoded.rows] == [2, 0, None]
    assert encoded.owners == [0, 1, 2]
    assert encoded.lengths == [4, 3, 3]
    assert encoded[0]["input_ids"] == tiny_tokenizer("the king")["input_ids"]


def test_values_of_labels():
    ids = {"x": 0, "y": 1, "z": 2}
    assert label_value("y", ids) == 1
    assert label_value(("z", "x"), ids) == [1.0, 0.0, 1.0]
    assert label_value((), ids) == [0.0, 0.0, 0.0]
    assert label_value(2.5, {}) == 2.5
    assert isinstance(label_value(3, {}), float)


def test_texts_that_are_too_long_are_cut_and_counted(tiny_tokenizer):
    examples = [TextExample("a b c d e f"), TextExample("a b c d"), TextExample("a b c d e")]
    encoded = encode_texts(examples, tiny_tokenizer, CLASSES, max_length=6)
    assert encoded.cut == 2
    assert [tiny_tokenizer.decode(row["input_ids"]) for row in encoded.rows] == ["[CLS] a b c d [SEP]"] * 3


def test_pairs_have_token_types(tiny_tokenizer):
    encoded = encode_texts([TextExample("a b", "c")], tiny_tokenizer, CLASSES, max_length=16)
    assert tiny_tokenizer.decode(encoded[0]["input_ids"]) == "[CLS] a b [SEP] c [SEP]"
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert encoded.cut == 0


@pytest.mark.parametrize(
    ("text", "pair", "kept"),
    [
        ("a b c d e f g h", "k l", "[CLS] a b c [SEP] k l [SEP]"),
        ("a b", "k l m n o p q r", "[CLS] a b [SEP] k l m [SEP]"),
    ],
)
def test_a_pair_is_cut_at_the_end_of_its_longer_text(tiny_tokenizer, text, pair, kept):
    encoded = encode_texts([TextExample(text, pair)], tiny_tokenizer, CLASSES, max_length=8)
    assert tiny_tokenizer.decode(encoded[0]["input_ids"]) == kept
    assert len(encoded[0]["token_type_ids"]) == 8
    assert encoded.cut == 1


def test_two_long_texts_are_cut_to_equal_parts(tiny_tokenizer):
    example = TextExample("a " * 20, "b " * 30)
    encoded = encode_texts([example], tiny_tokenizer, CLASSES, max_length=13)
    assert tiny_tokenizer.decode(encoded[0]["input_ids"]) == "[CLS] a a a a a [SEP] b b b b b [SEP]"


def test_one_row_without_its_pair_gets_an_empty_one(tiny_tokenizer):
    encoded = encode_texts([TextExample("a", "b"), TextExample("a")], tiny_tokenizer, CLASSES, max_length=9)
    assert tiny_tokenizer.decode(encoded[1]["input_ids"]) == "[CLS] a [SEP] [SEP]"


def test_no_texts(tiny_tokenizer):
    assert len(encode_texts([], tiny_tokenizer, CLASSES, max_length=8)) == 0


# Batches


@pytest.mark.parametrize(
    ("kind", "labels", "dtype"),
    [
        ("class", [1, 0], torch.long),
        ("score", [2.5, 0.0], torch.float),
        ("classes", [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], torch.float),
    ],
)
def test_a_batch_of_texts(kind, labels, dtype):
    rows = [
        {"input_ids": [2, 9, 8, 3], "token_type_ids": [0, 0, 1, 1], "labels": labels[0]},
        {"input_ids": [2, 3], "token_type_ids": [0, 1], "labels": labels[1]},
    ]
    batch = PaddingCollator(7, kind)(rows)
    assert batch["input_ids"].tolist() == [[2, 9, 8, 3], [2, 3, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch["labels"].tolist() == labels
    assert batch["labels"].dtype == dtype
    assert {batch[name].dtype for name in ("input_ids", "attention_mask", "token_type_ids")} == {torch.long}


def test_a_batch_of_sentences_without_token_types():
    rows = [
        {"input_ids": [2, 3], "labels": [IGNORED_LABEL, 1]},
        {"input_ids": [2, 5, 3], "labels": [0, 4, IGNORED_LABEL]},
    ]
    batch = PaddingCollator(0, "token")(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [[IGNORED_LABEL, 1, IGNORED_LABEL], [0, 4, IGNORED_LABEL]]
    assert batch["labels"].dtype == torch.long


def test_a_batch_with_an_unlabelled_row_has_no_labels():
    assert "labels" not in PaddingCollator(0, "class")([{"input_ids": [1], "labels": 0}, {"input_ids": [1]}])


def test_a_tokenizer_without_token_types(byte_level_backend):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_backend,
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    encoded = encode_texts(
        [TextExample("the city", "was"), TextExample("a", "b")], tokenizer, CLASSES, max_length=16
    )
    batch = PaddingCollator(tokenizer.pad_token_id, "class")(encoded.rows)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()


# The order of rows


def batches_of(sampler, size):
    order = list(sampler)
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def padding(batches, lengths):
    return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) - sum(lengths)


@pytest.mark.parametrize(("rows", "size"), [(1003, 8), (64, 8), (3, 8), (1, 1), (450, 4)])
def test_an_epoch_has_every_row_once(rows, size):
    generator = random.Random(0)
    lengths = [generator.randint(3, 100) for _ in range(rows)]
    sampler = LengthGroupedSampler(lengths, size, seed=3)
    assert len(sampler) == rows
    assert sorted(sampler) == list(range(rows))


def test_the_order_follows_from_seed_and_epoch():
    lengths = [length % 17 + 1 for length in range(200)]

    def order(seed, epoch):
        sampler = LengthGroupedSampler(lengths, 8, seed)
        sampler.set_epoch(epoch)
        torch.rand(1)  # the global generator plays no part
        return list(sampler)

    orders = {key: order(*key) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert all(order(*key) == found for key, found in orders.items())
    assert len({tuple(found) for found in orders.values()}) == 4


def test_rows_of_a_batch_are_of_similar_length():
    generator = random.Random(1)
    lengths = [generator.randint(5, 128) for _ in range(2000)]
    in_order = list(range(len(lengths)))
    generator.shuffle(in_order)
    random_batches = [in_order[begin : begin + 16] for begin in range(0, len(in_order), 16)]
    grouped = batches_of(LengthGroupedSampler(lengths, 16, seed=0), 16)
    assert padding(grouped, lengths) < padding(random_batches, lengths) / 10


def test_batches_are_not_in_order_of_length():
    lengths = list(range(400))
    means = [sum(batch) / len(batch) for batch in batches_of(LengthGroupedSampler(lengths, 8, seed=0), 8)]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_the_short_batch_is_the_last():
    # Were it elsewhere, the batches after it would mix rows of two lengths.
    lengths = [10 * (row // 8 + 1) for row in range(36)]
    batches = batches_of(LengthGroupedSampler(lengths, 8, seed=5), 8)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 4]
    spread = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
    assert max(spread) <= 10

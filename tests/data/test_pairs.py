"""Two tokenizers of one text: which tokens share characters, what the teacher reads, and how it spells words."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

from minialbert.data.masking import MaskedLanguageModelCollator
from minialbert.data.pairs import PairedCollator, compared, means, shared_characters, translate, translated

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "Déjà vu: naïve 😀 Playing"


def word_pieces(*words, lower):
    return BertTokenizer(vocab={word: i for i, word in enumerate([*SPECIAL, *words])}, do_lower_case=lower)


def bytes_alone():
    """A byte-level tokenizer whose tokens are single bytes, with two special tokens at the end."""
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> </s>", special_tokens=[(name, i) for i, name in enumerate(special)]
    )
    named = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


LOWER = word_pieces("deja", "vu", ":", "na", "##ive", "play", "##ing", lower=True)
CASED = word_pieces("Dé", "##jà", "vu", ":", "naïve", "Play", "##ing", lower=False)
BYTES = bytes_alone()


def window(tokenizer, text=TEXT, window_id=0):
    return {"input_ids": np.array(tokenizer(text)["input_ids"]), "window_id": window_id}


def beside(collator, batch):
    """Return what the teacher reads in the first row, and for each of the student's tokens what goes with it."""
    names = collator.teacher.convert_ids_to_tokens(batch["teacher_input_ids"].flatten().tolist())
    stretches = zip(
        batch["teacher_offsets"][:-1].tolist(), batch["teacher_offsets"][1:].tolist(), strict=True
    )
    found = [[names[i] for i in batch["teacher_indices"][a:b].tolist()] for a, b in stretches]
    return names[: int(batch["teacher_attention_mask"][0].sum())], found[: batch["input_ids"].shape[1]]


@pytest.fixture
def pair():
    def make(student, teacher, **options):
        collator = PairedCollator(student, teacher, **{"longest": 64, "mask_probability": 0.0, **options})
        collator.teacher = teacher
        return collator

    return make


# By hand. The bytes: D éé j àà, space, v u :, space, n a ïï v e, space, 😀😀😀😀, space, P l a y i n g.
@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (LOWER, CASED, [(0, 2), (2, 3), (3, 4), (4, 5), (4, 5), (5, 6), (6, 7), (7, 8)]),
        (CASED, LOWER, [(0, 1), (0, 1), (1, 2), (2, 3), (3, 5), (5, 6), (6, 7), (7, 8)]),
        (LOWER, BYTES, [(0, 6), (7, 9), (9, 10), (11, 13), (13, 17), (18, 22), (23, 27), (27, 30)]),
    ],
    ids=["cased", "lower", "bytes"],
)
def test_tokens_go_with_those_that_share_characters(ours, theirs, expected):
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    offsets = (np.array(one(TEXT, **options)["offset_mapping"]) for one in (ours, theirs))
    assert shared_characters(*offsets).tolist() == [list(pair) for pair in expected]


def test_a_token_without_characters_goes_with_nothing():
    spans = shared_characters(np.array([[0, 2], [2, 2], [2, 4]]), np.array([[0, 3], [3, 4]]))
    assert spans.tolist() == [[0, 1], [0, 0], [0, 2]]
    assert shared_characters(np.array([[0, 2]]), np.empty((0, 2), dtype=int)).tolist() == [[0, 0]]


def test_a_teacher_reads_what_the_students_tokens_spell(pair):
    read, found = beside(*(lambda one: (one, one([window(CASED)])))(pair(CASED, LOWER)))
    # The smiling face is unknown to the student, so nobody reads it.
    assert read == ["[CLS]", "deja", "vu", ":", "na", "##ive", "play", "##ing", "[SEP]"]
    assert found[:10] == [
        ["[CLS]"], ["deja"], ["deja"], ["vu"], [":"], ["na", "##ive"], [], ["play"], ["##ing"], ["[SEP]"],
    ]  # fmt: skip
    assert found[10:] == [[]] * 6  # padding


def test_letters_of_several_bytes_are_read_as_letters(pair):
    collator = pair(BYTES, LOWER, pad_to_multiple_of=None)
    batch = collator([window(BYTES, "é naïve 😀")])
    read, found = beside(collator, batch)
    assert read == ["[CLS]", "[UNK]", "na", "##ive", "[UNK]", "[SEP]"]  # the teacher has no e of its own
    tokens = BYTES.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    e, smile = [["[UNK]"]] * 2, [["[UNK]"]] * 4
    assert tokens[:3] == ["<s>", "Ã", "©"] and found[:3] == [["[CLS]"], *e]
    assert found[3:] == [[], ["na"], ["na"], *[["##ive"]] * 4, [], *smile, ["[SEP]"], []]
    assert compared(batch)[0].tolist() == [bool(one) for one in found]


def test_the_teacher_hides_what_the_student_does_not_see_and_reads_no_more_than_it_can(pair):
    collator = pair(LOWER, BYTES, longest=16, mask_probability=0.5, seed=5)
    examples = [window(LOWER, "vu : playing vu naive", one) for one in range(20)]
    batch = collator(examples)
    assert (
        batch["teacher_input_ids"].shape == (20, 16) and (batch["teacher_attention_mask"].sum(1) == 16).all()
    )
    mask, offsets = BYTES.mask_token_id, batch["teacher_offsets"].view(-1)[:-1].view(20, -1)
    hidden = batch["input_ids"] != torch.from_numpy(
        np.stack([np.pad(e["input_ids"], (0, 7)) for e in examples])
    )
    for row, place in hidden.nonzero().tolist():
        begin = offsets[row, place]
        end = begin + batch["teacher_offsets"].diff().view(20, -1)[row, place]
        assert (batch["teacher_input_ids"].flatten()[batch["teacher_indices"][begin:end]] == mask).all()
    cut = [bool(one) for one in compared(batch)[0]]
    assert cut == [True] * 5 + [False] * 3 + [True] + [False] * 7  # [CLS] vu : play ##ing | vu na ##ive [SEP]
    assert hidden[:, :5].any() and (batch["teacher_input_ids"] == mask).any(1).sum() > 5


def test_a_teacher_of_the_same_tokens_reads_the_students_batch():
    words = LOWER.convert_ids_to_tokens(range(5, len(LOWER)))
    more = word_pieces(*words, "more", lower=True)
    options = {"mask_probability": 0.6, "seed": 3}
    paired, plain = (
        PairedCollator(LOWER, more, longest=64, **options),
        MaskedLanguageModelCollator(LOWER, **options),
    )
    examples = [window(LOWER, "vu : playing naive deja vu", one) for one in range(30)]
    batch, expected = paired(examples), plain(examples)
    assert all(torch.equal(batch[name], values) for name, values in expected.items())
    assert torch.equal(batch["teacher_input_ids"], expected["input_ids"])
    assert torch.equal(batch["teacher_attention_mask"], expected["attention_mask"])
    assert torch.equal(compared(batch), expected["attention_mask"].bool())
    states = torch.randn(expected["input_ids"].numel(), 4)
    kept = states * expected["attention_mask"].view(-1, 1)
    assert torch.equal(means(states, batch["teacher_indices"], batch["teacher_offsets"]), kept)
    replaced = (batch["labels"] >= 0) & (batch["input_ids"] != batch["labels"]) & (batch["input_ids"] != 4)
    assert replaced.sum() > 3


# Vocabularies


def spelt(student, teacher):
    found = translate(student, teacher)
    return found, [teacher.convert_ids_to_tokens(ids) for ids in found]


def test_words_are_spelt_in_the_teachers_tokens():
    found, words = spelt(CASED, LOWER)
    expected = [
        *([one] for one in SPECIAL),
        ["[UNK]"],
        ["[UNK]"],
        ["vu"],
        [":"],
        ["na", "##ive"],
        ["play"],
        ["##ing"],
    ]
    assert words == expected
    rows = torch.randn(len(LOWER), 3)
    table = translated(rows, found)
    for row, pieces in zip(table, expected, strict=True):
        assert torch.equal(row, rows[LOWER.convert_tokens_to_ids(pieces)].mean(0))
    assert torch.equal(translated(rows[:, 0], found), table[:, 0])


def test_words_of_other_conventions_and_what_cannot_be_spelt():
    _, words = spelt(LOWER, BYTES)
    assert words[LOWER.convert_tokens_to_ids("vu")] == ["Ġ", "v", "u"]
    assert words[LOWER.convert_tokens_to_ids("##ing")] == ["i", "n", "g"]
    assert words[2:5] == [["<s>"], ["</s>"], ["<mask>"]]
    back, _ = spelt(BYTES, LOWER)
    rows = torch.randn(len(LOWER), 3)
    part_of_a_letter = BYTES.convert_tokens_to_ids("Ã")
    assert torch.allclose(translated(rows, back)[part_of_a_letter], rows.mean(0))
    assert translate(LOWER, LOWER) == [[token_id] for token_id in range(len(LOWER))]

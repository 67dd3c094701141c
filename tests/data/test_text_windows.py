"""Windows of long texts and pairs, beside those that tokenizers cut themselves."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from minialbert.data.text_windows import text_windows
from minialbert.errors import UserError

LONG = "the city was house, river all language x 1 king was teachers " * 4


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
    (result,) = text_windows([text], tiny_tokenizer, max_length=16, overlap=overlap)
    assert [row["input_ids"] for row in result.rows] == reference["input_ids"]
    assert [row["token_type_ids"] for row in result.rows] == reference["token_type_ids"]
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
    windows, empty = text_windows([text, ""], tokenizer, max_length=14, overlap=2)
    assert [row["input_ids"] for row in windows.rows] == reference["input_ids"]
    assert len(windows.rows) > 1
    assert empty.rows[0]["input_ids"] == ([0, 2] if special else [1])


def test_window_without_room_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="max_length 3 leaves no room for text beside 3 special tokens"):
        text_windows([("the", "king")], tiny_tokenizer, max_length=3, overlap=0)

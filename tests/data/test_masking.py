import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.errors import UserError

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


def window(tokenizer, window_id, length=254, **extra):
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    content = np.random.default_rng(window_id).choice(ordinary, length)
    ids = np.concatenate([[tokenizer.cls_token_id], content, [tokenizer.sep_token_id]])
    return {"input_ids": ids, "window_id": window_id, **extra}


def within(count, trials, probability, sigmas=4.5):
    return abs(count - trials * probability) < sigmas * np.sqrt(trials * probability * (1 - probability))


def test_rates_are_those_of_bert(tokenizer):
    examples = [window(tokenizer, i) for i in range(1000)]
    batch = MaskedLanguageModelCollator(tokenizer)(examples)
    original = torch.from_numpy(np.stack([e["input_ids"] for e in examples]))
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    total, count = 254 * 1000, int(chosen.sum())
    assert within(count, total, 0.15)
    seen, was = batch["input_ids"][chosen], original[chosen]
    masked = seen == tokenizer.mask_token_id
    ordinary = len(tokenizer) - len(tokenizer.all_special_ids)
    same = 0.1 + 0.1 / ordinary  # kept, or replaced by itself
    assert within(int(masked.sum()), count, 0.8)
    assert within(int((seen == was).sum()), count, same)
    replaced = seen[(seen != was) & ~masked]
    assert not set(replaced.tolist()) & set(tokenizer.all_special_ids)
    assert len(set(replaced.tolist())) == ordinary  # every ordinary token turns up


def test_special_tokens_are_never_chosen(tokenizer):
    unknown = {"input_ids": [2, tokenizer.unk_token_id, 30, 3], "window_id": 0}
    batch = MaskedLanguageModelCollator(tokenizer, mask_probability=1.0, pad_to_multiple_of=None)([unknown])
    assert batch["labels"].tolist() == [[-100, -100, 30, -100]]
    nothing = MaskedLanguageModelCollator(tokenizer, mask_probability=0.0)([unknown])
    assert (nothing["labels"] == -100).all()


def test_shapes_and_padding(tokenizer):
    examples = [window(tokenizer, 3, 7), window(tokenizer, 2**40, 17)]
    batch = MaskedLanguageModelCollator(tokenizer)(examples)
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        **dict.fromkeys(("input_ids", "attention_mask", "labels", "token_type_ids"), (2, 24)),
        "window_ids": (2,),
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["window_ids"].tolist() == [3, 2**40]
    assert batch["attention_mask"].sum(1).tolist() == [9, 19]
    assert (batch["input_ids"][0, 9:] == tokenizer.pad_token_id).all() and (
        batch["labels"][0, 9:] == -100
    ).all()
    exact = MaskedLanguageModelCollator(tokenizer, pad_to_multiple_of=None)(examples)
    assert exact["input_ids"].shape == (2, 19)


def test_token_types_only_where_the_model_takes_them():
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert "token_type_ids" not in MaskedLanguageModelCollator(tokenizer)([window(tokenizer, 0)])


def test_masks_are_a_function_of_seed_epoch_and_window(tokenizer):
    collator = MaskedLanguageModelCollator(tokenizer)
    alone = collator([window(tokenizer, 5, 40)])
    torch.manual_seed(1)
    np.random.default_rng(1)
    collator([window(tokenizer, 9)])
    beside = collator([window(tokenizer, 4, 200), window(tokenizer, 5, 40, epoch=0)])
    assert torch.equal(alone["input_ids"][0, :42], beside["input_ids"][1, :42])
    assert torch.equal(alone["labels"][0, :42], beside["labels"][1, :42])
    copy = pickle.loads(pickle.dumps(collator))([window(tokenizer, 5, 40)])
    assert all(torch.equal(copy[name], alone[name]) for name in alone)
    others = [
        collator([window(tokenizer, 5, 40, epoch=1)]),
        MaskedLanguageModelCollator(tokenizer, seed=43)([window(tokenizer, 5, 40)]),
        collator([{**window(tokenizer, 5, 40), "window_id": 6}]),
    ]
    assert not any(torch.equal(other["labels"], alone["labels"]) for other in others)


def test_known_masks_stay_as_they_are(tokenizer):
    # A change of the scheme would break the resumption of older runs.
    batch = MaskedLanguageModelCollator(tokenizer)(
        [{"input_ids": np.arange(20, 60), "window_id": 7, "epoch": 2}]
    )
    chosen = (batch["labels"][0] != -100).nonzero().flatten().tolist()
    assert chosen == [10, 12, 13, 23, 25, 32]


def test_whole_words(tokenizer):
    text = "small kings modelling the teacher " * 40  # "modelling": model ##l ##ing
    ids = tokenizer(text)["input_ids"]
    continued = np.array([t.startswith("##") for t in tokenizer.convert_ids_to_tokens(ids)])
    assert continued.sum() >= 80
    collator = MaskedLanguageModelCollator(tokenizer, whole_word=True, pad_to_multiple_of=None)
    chosen = collator([{"input_ids": ids, "window_id": i} for i in range(400)])["labels"].numpy() != -100
    pieces = np.flatnonzero(continued)
    assert (chosen[:, pieces] == chosen[:, pieces - 1]).all()
    # Words of up to three pieces are drawn together, which widens the bound.
    assert within(int(chosen.sum()), (len(ids) - 2) * 400, 0.15, sigmas=4.5 * np.sqrt(3))


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_whole_words_of_other_tokenizers(mark):
    vocab = {
        t: i for i, t in enumerate(["<pad>", "<mask>", "<s>", "</s>", f"{mark}re", "do", "ing", f"{mark}it"])
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=[])),
        pad_token="<pad>",
        mask_token="<mask>",
        bos_token="<s>",
        eos_token="</s>",
    )
    collator = MaskedLanguageModelCollator(tokenizer, whole_word=True, mask_probability=0.5)
    ids = np.array([2, 5, 6, 4, 5, 6, 7, 3])  # a window may begin inside a word
    chosen = collator([{"input_ids": ids, "window_id": i} for i in range(200)])["labels"].numpy() != -100
    assert (chosen[:, 1] == chosen[:, 2]).all()
    assert (chosen[:, 3] == chosen[:, 4]).all() and (chosen[:, 4] == chosen[:, 5]).all()
    assert (chosen[:, 3] != chosen[:, 6]).any() and (chosen[:, 2] != chosen[:, 3]).any()


def test_unfit_tokenizers_and_values(tokenizer):
    without = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"<pad>": 0, "a": 1}, merges=[])), pad_token="<pad>"
    )
    with pytest.raises(UserError, match="has no mask token"):
        MaskedLanguageModelCollator(without)
    without.mask_token = "a"
    with pytest.raises(UserError, match="marks no words"):
        MaskedLanguageModelCollator(without, whole_word=True)
    without.pad_token = None
    with pytest.raises(UserError, match="has no pad token"):
        MaskedLanguageModelCollator(without)
    with pytest.raises(UserError, match="mask_probability"):
        MaskedLanguageModelCollator(tokenizer, mask_probability=15)
    with pytest.raises(UserError, match="pad_to_multiple_of"):
        MaskedLanguageModelCollator(tokenizer, pad_to_multiple_of=0)
    with pytest.raises(UserError, match="seed"):
        MaskedLanguageModelCollator(tokenizer, seed=-1)


class Windows:
    """Stands for a `WindowDataset`."""

    def __init__(self, count, texts_per_row=1):
        self.count, self.texts_per_row = count, texts_per_row

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"input_ids": np.array([2, 10 + index, 3]), "window_id": index}


def test_every_epoch_is_another_permutation():
    samples = ShuffledWindows(Windows(50), 125, seed=3)
    items = [samples[i] for i in range(len(samples))]
    assert len(samples) == 125 and [item["epoch"] for item in items] == [0] * 50 + [1] * 50 + [2] * 25
    orders = [[item["window_id"] for item in items[start : start + 50]] for start in (0, 50)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1] != list(range(50))
    with pytest.raises(IndexError):
        samples[125]


def test_the_order_needs_no_state():
    def order(seed, indices):
        samples = ShuffledWindows(Windows(50), 500, seed)
        return {i: (samples[i]["epoch"], samples[i]["window_id"]) for i in indices}

    forwards = order(3, range(500))
    assert order(3, reversed(range(500))) == forwards
    assert order(3, [377])[377] == forwards[377]
    assert order(4, range(500)) != forwards
    copy = pickle.loads(pickle.dumps(ShuffledWindows(Windows(50), 500, 3)))
    assert copy[377]["window_id"] == forwards[377][1]


def test_loader_processes_change_nothing(tokenizer):
    def batches(workers):
        samples = ShuffledWindows(Windows(40), 60, seed=1)
        collator = MaskedLanguageModelCollator(tokenizer)
        return list(DataLoader(samples, batch_size=8, collate_fn=collator, num_workers=workers))

    for one, two in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_nothing_to_shuffle():
    with pytest.raises(UserError, match="no windows"):
        ShuffledWindows(Windows(0), 10, seed=0)
    with pytest.raises(UserError, match="num_samples"):
        ShuffledWindows(Windows(3), -1, seed=0)

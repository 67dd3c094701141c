"""Packed windows: what goes where, and that models and losses cannot tell them from padded ones."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    BertConfig,
    BertLMHeadModel,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.data.masking import MaskedLanguageModelCollator
from minialbert.data.packing import PackedCollator, block_mask, pack_rows
from minialbert.errors import UserError
from minialbert.method.encoders import (
    PACKING_FAMILIES,
    enable_recording,
    forward_inputs,
    packed_inputs,
    supports_packing,
)
from minialbert.method.fast.recording import RECORDING, record_attention
from minialbert.method.losses import attention_loss, mean_divergence
from minialbert.method.objective import DistillationObjective, EncoderView, Request, TokenCounts

EXACT = {"rtol": 0, "atol": 1e-10}
LENGTHS = [12, 5, 4, 9, 7, 3, 12]  # 52 tokens


def window(tokenizer, window_id, length):
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    content = np.random.default_rng(window_id).choice(ordinary, length - 2)
    ids = np.concatenate([[tokenizer.cls_token_id], content, [tokenizer.sep_token_id]])
    return {"input_ids": ids, "window_id": window_id, "epoch": 1}


def windows(tokenizer, lengths=LENGTHS):
    return [window(tokenizer, 7 * i + 3, length) for i, length in enumerate(lengths)]


@pytest.fixture
def collator(tiny_tokenizer):
    return MaskedLanguageModelCollator(tiny_tokenizer, mask_probability=0.4, pad_to_multiple_of=4)


# Which windows share a row


@pytest.mark.parametrize(
    ("lengths", "row_length", "rows"),
    [
        ([3, 7, 5, 5, 6, 4], 10, [[0, 1], [2, 3], [4, 5]]),  # no room left in any row
        ([6, 5, 5, 4], 10, [[0, 3], [1, 2]]),  # in the order given, 6 | 5 5 | 4 would take three rows
        ([2, 2, 2, 6, 6, 6, 2, 2, 2], 8, [[0, 3], [1, 4], [2, 5], [6, 7, 8]]),
        ([1] * 10, 10, [list(range(10))]),
        ([8, 8, 8], 8, [[0], [1], [2]]),
        ([5, 6, 5], 10, [[0, 2], [1]]),
        ([], 10, []),
    ],
)
def test_hand_made_cases_take_as_few_rows_as_can_be(lengths, row_length, rows):
    assert pack_rows(lengths, row_length) == rows


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.lists(st.integers(1, n)), st.integers(n, 60))))
def test_rows_never_overflow_and_every_window_is_used_once(case):
    lengths, row_length = case
    rows = pack_rows(lengths, row_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[index] for index in row) for row in rows)
    assert all(total <= row_length for total in sums)
    assert len(sums) < 2 or sums[0] + sums[1] > row_length  # no two rows could be one
    assert rows == pack_rows(tuple(lengths), row_length)
    assert rows == sorted(rows) and all(row == sorted(row) for row in rows)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7))
def test_rows_are_within_the_known_bound_of_the_best(lengths):
    def fewest(left, free):
        if not left:
            return len(free)
        length, *rest = left
        tries = [fewest(rest, [*free, 12 - length])]
        for row in {space: i for i, space in enumerate(free) if space >= length}.values():
            tries.append(fewest(rest, [*free[:row], free[row] - length, *free[row + 1 :]]))
        return min(tries)

    assert 9 * len(pack_rows(lengths, 12)) <= 11 * fewest(lengths, []) + 6


def test_a_large_batch():
    lengths = np.random.default_rng(0).integers(5, 129, 4096).tolist()
    rows = pack_rows(lengths, 128)
    assert sum(lengths) / 128 <= len(rows) <= 1.02 * sum(lengths) / 128


def test_windows_longer_than_a_row_are_refused(collator, tiny_tokenizer):
    with pytest.raises(
        UserError, match="window 1 of 3 has 11 tokens but a packed row holds 10: set the row length"
    ):
        pack_rows([10, 11, 3], 10)
    with pytest.raises(UserError, match="window 0 of 7 has 12 tokens"):
        PackedCollator(collator, 11)(windows(tiny_tokenizer))
    with pytest.raises(UserError, match="row_length must be at least 1 or None, found 0"):
        PackedCollator(collator, 0)


# Batches


def pieces(batch, name):
    """One tensor per window of a packed batch, row by row."""
    return [
        batch[name][row][sequences == sequence]
        for row, sequences in enumerate(batch["sequence_ids"])
        for sequence in range(int(sequences.max()) + 1)
    ]


@pytest.mark.parametrize("row_length", [None, 12, 14, 30])
def test_each_window_is_masked_as_by_the_other_collator(collator, tiny_tokenizer, row_length):
    examples = windows(tiny_tokenizer)
    padded, packed = collator(examples), PackedCollator(collator, row_length)(examples)
    assert packed.keys() == padded.keys() | {"position_ids", "sequence_ids"}
    order = [i for row in pack_rows(LENGTHS, row_length or 12) for i in row]
    assert order != sorted(order)
    for name in ("input_ids", "labels", "token_type_ids", "attention_mask"):
        for window_index, piece in zip(order, pieces(packed, name), strict=True):
            assert torch.equal(piece, padded[name][window_index, : LENGTHS[window_index]])
    assert (packed["labels"] != -100).sum() == (padded["labels"] != -100).sum() > 0
    assert packed["window_ids"].tolist() == [example["window_id"] for example in examples]
    assert all(tensor.dtype == torch.int64 for tensor in packed.values())


def test_a_packed_batch_by_hand(collator):
    examples = [
        {"input_ids": [2, 20, 21, 3], "window_id": 0},
        {"input_ids": [2, 30, 31, 32, 33, 3], "window_id": 1},
        {"input_ids": [2, 3], "window_id": 2},
    ]
    collator.mask_probability = 0.0
    batch = PackedCollator(collator, 7)(examples)
    pad = collator.pad_token_id
    assert batch["input_ids"].tolist() == [[2, 20, 21, 3, 2, 3, pad, pad], [2, 30, 31, 32, 33, 3, pad, pad]]
    assert batch["sequence_ids"].tolist() == [[0, 0, 0, 0, 1, 1, -1, -1], [0, 0, 0, 0, 0, 0, -1, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0] * 2] * 2
    assert (batch["labels"] == -100).all() and batch["labels"].shape == (2, 8)
    assert PackedCollator(collator, 12)(examples)["input_ids"].shape == (1, 12)


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=20), spare=st.integers(0, 30))
def test_rows_hold_no_more_than_they_may(tiny_tokenizer, lengths, spare):
    wrapped, row_length = MaskedLanguageModelCollator(tiny_tokenizer), max(lengths) + spare
    batch = PackedCollator(wrapped, row_length)(windows(tiny_tokenizer, lengths))
    held = batch["attention_mask"].sum(1)
    assert held.sum() == sum(lengths) and held.max() <= row_length
    assert batch["input_ids"].shape[1] == -(-int(held.max()) // 8) * 8


def test_without_a_row_length_rows_are_no_longer_than_padded_ones(collator, tiny_tokenizer):
    examples = windows(tiny_tokenizer, [9, 3, 6, 6])  # padded to 12
    batch = PackedCollator(collator)(examples)
    assert batch["input_ids"].shape == (2, 12) and (batch["attention_mask"] == 1).all()


def test_where_nothing_is_saved_the_rows_are_those_of_the_other_collator(collator, tiny_tokenizer):
    examples = windows(tiny_tokenizer, [10, 12, 11, 7])
    padded, packed = collator(examples), PackedCollator(collator, 12)(examples)
    assert packed.keys() == padded.keys()
    for name, tensor in padded.items():
        assert torch.equal(packed[name], tensor)


def test_batches_are_the_same_each_time_and_in_another_process(collator, tiny_tokenizer):
    packing = PackedCollator(collator, 16)
    first = packing(windows(tiny_tokenizer))
    torch.manual_seed(1)
    for again in (packing, pickle.loads(pickle.dumps(packing))):
        batch = again(windows(tiny_tokenizer))
        assert all(torch.equal(batch[name], tensor) for name, tensor in first.items())


def test_token_types_only_where_the_other_collator_gives_them(collator, tiny_tokenizer):
    collator.with_token_types = False
    assert "token_type_ids" not in PackedCollator(collator)(windows(tiny_tokenizer))


def test_block_mask_by_hand():
    mask = block_mask(torch.tensor([[0, 0, 1, -1, -1], [0, 1, 1, 2, -1]]))
    assert mask.dtype == torch.bool and mask.shape == (2, 1, 5, 5)
    drawn = [" ".join("".join("01"[seen] for seen in query) for query in row) for row in mask[:, 0].tolist()]
    assert drawn == ["11000 11000 00100 00011 00011", "10000 01100 01100 00010 00001"]


# Models

SHAPE = {
    "vocab_size": 135,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,  # shorter than a packed row
}
CONFIGS = {
    "bert": lambda: BertConfig(**SHAPE),
    "roberta": lambda: RobertaConfig(**SHAPE, pad_token_id=1),
    "camembert": lambda: CamembertConfig(**SHAPE, pad_token_id=1),
    "xlm-roberta": lambda: XLMRobertaConfig(**SHAPE, pad_token_id=1),
    "electra": lambda: ElectraConfig(**SHAPE, embedding_size=16),
    "albert": lambda: AlbertConfig(**SHAPE, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=135, dim=32, n_layers=4, n_heads=4, hidden_dim=48, max_position_embeddings=16
    ),
    "mpnet": lambda: MPNetConfig(**SHAPE, pad_token_id=1),
    "minialbert": lambda: MiniAlbertConfig(**SHAPE, embedding_size=16, adapter_reduction_factor=8),
}


def encoder(family="bert", implementation=RECORDING, **changes):
    """A random encoder in fp64 whose attention is sharp, so that a wrong mask shows."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = (
        MiniAlbertForMaskedLM(config) if family == "minialbert" else AutoModelForMaskedLM.from_config(config)
    )
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    if implementation == RECORDING:
        enable_recording(model)
    else:
        model.set_attn_implementation(implementation)
    return model


@pytest.fixture
def batches(collator, tiny_tokenizer):
    """The same windows padded and packed, and a function that puts packed values in the padded places."""
    collator.pad_token_id = 1  # that of RoBERTa's kin; no window contains it
    assert tiny_tokenizer.convert_ids_to_tokens(1) == tiny_tokenizer.unk_token
    examples = windows(tiny_tokenizer)
    padded, packed = collator(examples), PackedCollator(collator, 20)(examples)
    assert packed["input_ids"].shape == (3, 20)
    order = [index for row in pack_rows(LENGTHS, 20) for index in row]

    def tokens(values, of_packed):
        """The values of every token, window by window."""
        if not of_packed:
            return torch.cat([values[i, :length] for i, length in enumerate(LENGTHS)])
        by_window = dict(zip(order, pieces({**packed, "values": values}, "values"), strict=True))
        return torch.cat([by_window[i] for i in range(len(LENGTHS))])

    return padded, packed, tokens


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("implementation", [RECORDING, "sdpa", "eager"])
@torch.no_grad()
def test_packed_tokens_have_the_hidden_states_of_padded_ones(family, implementation, batches):
    if family == "mpnet" and implementation != "eager":
        assert encoder(family).config._attn_implementation == "eager"  # it has no other
        return
    padded, packed, tokens = batches
    model = encoder(family, implementation)
    assert model.config._attn_implementation == implementation and supports_packing(model)
    # The softmax of our own eager attention is always in fp32.
    close = {"rtol": 0, "atol": 1e-5} if (family, implementation) == ("minialbert", "eager") else EXACT
    for part in (model, model.base_model):
        assert supports_packing(part)
        separate = part(**forward_inputs(part, padded), output_hidden_states=True)
        together = part(**packed_inputs(part, packed), output_hidden_states=True)
        assert len(separate.hidden_states) == 5
        for one, other in zip(separate.hidden_states, together.hidden_states, strict=True):
            torch.testing.assert_close(tokens(other, True), tokens(one, False), **close)
        if "logits" in separate:
            torch.testing.assert_close(tokens(together.logits, True), tokens(separate.logits, False), **close)


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_without_the_mask_or_the_positions_they_have_others(family, batches):
    padded, packed, tokens = batches
    model = encoder(family, max_position_embeddings=40)
    expected = tokens(model(**forward_inputs(model, padded)).logits, False)
    inputs = packed_inputs(model, packed)
    whole_rows = {**inputs, "attention_mask": packed["attention_mask"]}
    running_positions = {name: value for name, value in inputs.items() if name != "position_ids"}
    torch.testing.assert_close(tokens(model(**inputs).logits, True), expected, **EXACT)
    for wrong in (whole_rows, running_positions):
        assert (tokens(model(**wrong).logits, True) - expected).abs().max() > 1e-2


def test_arguments_of_a_model(batches):
    _, packed, _ = batches
    mask, padding = block_mask(packed["sequence_ids"]), packed["attention_mask"] == 0
    bert = packed_inputs(encoder("bert"), packed)
    assert sorted(bert) == ["attention_mask", "input_ids", "position_ids", "token_type_ids"]
    assert torch.equal(bert["attention_mask"], mask)
    assert torch.equal(bert["position_ids"], packed["position_ids"])
    roberta = packed_inputs(encoder("roberta", "eager").float(), packed)
    assert roberta["attention_mask"].dtype == torch.float32
    assert torch.equal(roberta["attention_mask"] == 0, mask)
    assert (roberta["attention_mask"][~mask] == torch.finfo(torch.float32).min).all()
    assert torch.equal(roberta["position_ids"][~padding], packed["position_ids"][~padding] + 2)
    assert (roberta["position_ids"][padding] == 1).all()
    assert "token_type_ids" not in packed_inputs(encoder("distilbert"), packed)


def test_every_family_that_is_named_is_tried():
    assert set(CONFIGS) == PACKING_FAMILIES


def test_what_does_not_work_is_told():
    small = {**SHAPE, "num_hidden_layers": 1}
    local = ModernBertConfig(**small, local_attention=4, **dict.fromkeys(("pad_token_id", "bos_token_id"), 0))
    for config in (local, DebertaV2Config(**small)):
        assert not supports_packing(AutoModelForMaskedLM.from_config(config))
    assert not supports_packing(BertLMHeadModel(BertConfig(**small, is_decoder=True)))
    model = encoder()
    assert supports_packing(model)
    model.config._attn_implementation = "flex_attention"
    assert not supports_packing(model)


def test_models_without_position_ids_or_ready_made_masks_are_told(monkeypatch):
    class Older(DistilBertForMaskedLM):
        def forward(self, input_ids=None, attention_mask=None):
            return super().forward(input_ids, attention_mask)

    assert not supports_packing(Older(CONFIGS["distilbert"]()))
    model = encoder("mpnet")
    assert supports_packing(model)
    monkeypatch.delattr("transformers.models.mpnet.modeling_mpnet.create_bidirectional_mask")
    assert not supports_packing(model)


# Losses


@pytest.fixture
def rows_in_double(monkeypatch):
    """The recorder computes its rows in fp32; here in fp64, to tell rounding from mistakes."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def view(model, inputs, layers, positions):
    eager = model.config._attn_implementation == "eager"
    with record_attention(Request(attention_layers=layers)) as recorder:
        outputs = model(**inputs, output_hidden_states=True, output_attentions=eager)
    rows = {layer: outputs.attentions[layer - 1] for layer in layers} if eager else recorder.rows
    assert sorted(rows) == list(layers)
    return EncoderView(
        dict(enumerate(outputs.hidden_states)), rows, log_rows=not eager, logits=outputs.logits[positions]
    )


def loss_terms(student, teacher, batch, inputs, objective, **counts):
    """Terms of a distillation step and the gradients of the total."""
    positions = objective.positions(batch["labels"], batch["attention_mask"])
    with torch.no_grad():
        teacher_view = view(teacher, inputs(teacher, batch), [2, 4], positions)
    terms = objective(
        view(student, inputs(student, batch), [1, 2], positions),
        teacher_view,
        labels=batch["labels"],
        attention_mask=batch["attention_mask"],
        num_teacher_layers=4,
        **counts,
    )
    student.zero_grad()
    terms.total.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    return dict(terms.items()), gradients


PAIRS = pytest.mark.parametrize(
    ("student", "teacher", "implementation"),
    [
        ("minialbert", "bert", RECORDING),
        ("minialbert", "roberta", RECORDING),
        ("bert", "electra", RECORDING),
        ("bert", "bert", "eager"),
        ("distilbert", "mpnet", "eager"),
    ],
)


@PAIRS
@pytest.mark.parametrize("output_positions", ["masked", "all"])
@pytest.mark.usefixtures("rows_in_double")
def test_all_terms_and_gradients_are_those_of_a_padded_batch(
    student, teacher, implementation, output_positions, batches
):
    padded, packed, _ = batches
    layers = "n_layers" if student == "distilbert" else "num_hidden_layers"
    student, teacher = encoder(student, implementation, **{layers: 2}), encoder(teacher, implementation)
    objective = DistillationObjective(
        mlm_weight=1.0,
        attention_weight=1.0,
        hidden_weight=1.0,
        output_weight=1.0,
        embedding_weight=1.0,
        attention_reduction="rows",
        output_positions=output_positions,
    )
    expected, expected_gradients = loss_terms(student, teacher, padded, forward_inputs, objective)
    found, gradients = loss_terms(student, teacher, packed, packed_inputs, objective)
    assert all(value > 1e-3 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) > 20
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            gradients[name], gradient, **EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.usefixtures("rows_in_double")
def test_sums_per_window_are_divided_by_the_windows_not_by_the_rows(batches):
    padded, packed, _ = batches
    student, teacher = encoder("minialbert", num_hidden_layers=2), encoder()
    objective = DistillationObjective(token_reduction="sum")
    expected, _ = loss_terms(student, teacher, padded, forward_inputs, objective)
    counts = TokenCounts(
        (packed["labels"] != -100).sum(), packed["attention_mask"].sum(), len(packed["window_ids"])
    )
    found, _ = loss_terms(student, teacher, packed, packed_inputs, objective, counts=counts)
    assert counts.windows == 7 and packed["labels"].shape[0] == 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT)


@pytest.mark.usefixtures("rows_in_double")
@torch.no_grad()
def test_a_mean_over_elements_changes_with_the_length_of_the_rows(batches):
    losses = {}
    for batch, inputs in zip(batches[:2], (forward_inputs, packed_inputs), strict=True):
        positions = batch["labels"] != -100
        rows = [
            view(model, inputs(model, batch), [2], positions).attention_rows[2]
            for model in (encoder("minialbert"), encoder())
        ]
        losses[rows[0].shape[-1]] = attention_loss(
            *rows, batch["attention_mask"], reduction="elements", log_rows=True
        )
    assert sorted(losses) == [12, 20] and losses[12] > 1e-3
    torch.testing.assert_close(12 * losses[12], 20 * losses[20], **EXACT)
    assert losses[20] < 0.7 * losses[12]


def test_rows_that_are_compared_as_they_are_made(batches):
    found = []
    for batch, inputs in zip(batches[:2], (forward_inputs, packed_inputs), strict=True):
        student, teacher = encoder("minialbert"), encoder("roberta")
        with torch.no_grad(), record_attention(Request(attention_inputs=[2, 4])) as reference:
            teacher(**inputs(teacher, batch))
        references = {1: reference.inputs[2], 2: reference.inputs[4]}
        with record_attention(Request(references=references)) as recorder:
            student(**inputs(student, batch))
        loss = sum(mean_divergence(rows, batch["attention_mask"]) for rows in recorder.divergences.values())
        loss.backward()
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        found.append([loss.detach(), *gradients])
    assert len(found[0]) > 20 and found[0][0] > 1e-3
    torch.testing.assert_close(found[1], found[0], **EXACT)


def test_the_loss_that_a_model_computes_itself_is_the_same(batches):
    padded, packed, _ = batches
    model = encoder()
    separate = model(**forward_inputs(model, padded), labels=padded["labels"]).loss
    together = model(**packed_inputs(model, packed), labels=packed["labels"]).loss
    torch.testing.assert_close(together, separate, **EXACT)

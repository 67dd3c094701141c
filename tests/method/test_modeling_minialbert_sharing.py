"""What iterations share, and what tells them apart: against loops written by hand, with their starts and files."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from small_teachers import make_student, make_teacher, perturbed
from torch import nn

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM, MiniAlbertForSequenceClassification
from minialbert.errors import UserError
from minialbert.method import configuration_minialbert
from minialbert.method.adapters import (
    add_adapters,
    backbone_fingerprint,
    freeze_all_but_adapters,
    load_adapters,
    save_adapters,
)
from minialbert.method.costs import forward_flops_per_token
from minialbert.method.modeling_minialbert import MiniAlbertModel
from minialbert.method.start import build_student, initialize_from_teacher
from minialbert.recipes.schema import StudentRecipe


def small(**overrides):
    values = {
        "vocab_size": 61, "embedding_size": 8, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 16, "adapter_reduction_factor": 8,
    }  # fmt: skip
    return MiniAlbertConfig(**{**values, **overrides})


def build(model_class=MiniAlbertModel, seed=0, **overrides):
    return perturbed(model_class, small(**overrides), seed)


IDS = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("iterations", "groups", "order", "expected"),
    [
        (6, 1, "runs", "000000"),
        (6, 3, "runs", "001122"),
        (6, 3, "turns", "012012"),
        (6, 3, "ends", "011112"),
        (6, 4, "ends", "011223"),
        (7, 2, "runs", "0000111"),
        (4, 4, "runs", "0123"),
        (3, 3, "ends", "012"),
        (5, 2, "turns", "01010"),
    ],
)
def test_groups_come_in_runs_in_turn_or_with_ends_of_their_own(iterations, groups, order, expected):
    config = small(num_hidden_layers=iterations, num_hidden_groups=groups, hidden_group_order=order)
    assert "".join(str(config.group_of(iteration)) for iteration in range(iterations)) == expected
    assert config.group_of(iterations + 3) == int(expected[-1])  # past the last, the last repeats


@pytest.mark.parametrize("iterations", [3, 4, 5, 6, 12])
@pytest.mark.parametrize("order", ["runs", "turns", "ends"])
def test_every_group_is_used(iterations, order):
    for groups in range(3, iterations + 1):
        config = small(num_hidden_layers=iterations, num_hidden_groups=groups, hidden_group_order=order)
        assert {config.group_of(iteration) for iteration in range(iterations)} == set(range(groups))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_groups": 7}, r"must lie between 1 .*num_hidden_layers \(6\), got 7"),
        ({"num_hidden_groups": 0}, "num_hidden_groups must be at least 1"),
        ({"num_hidden_groups": 2, "hidden_group_order": "ends"}, "must lie between 3"),
        ({"hidden_group_order": "pairs"}, "'runs', 'turns' or 'ends', got 'pairs'"),
    ],
)
def test_impossible_groups_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        small(**values)
    with pytest.raises(ValueError, match="num_hidden_groups is for arch 'minialbert'"):
        StudentRecipe(arch="bert", init="random", num_hidden_groups=2)
    with pytest.raises(ValueError, match="lora_rank is for arch 'minialbert': a bert has no"):
        StudentRecipe(arch="bert", init="random", lora_rank=4)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lora_rank": 4}, "lora_rank=4 has no effect: groups=1, adapters='bottleneck'"),
        ({"lora_layers": ["ffn"], "adapter_kind": "scale+layer-norm"}, "lora_layers=['ffn'] has no effect"),
        ({"lora_rank": 4, "adapter_kind": "scale+lora"}, ""),
        ({"adapter_kind": "lora", "adapter_reduction_factor": None}, "adapter_kind='lora' has no effect"),
        ({"hidden_group_order": "turns"}, "hidden_group_order='turns' has no effect: groups=1"),
        ({"hidden_group_order": "ends", "num_hidden_groups": 6}, "hidden_group_order='ends' has no effect"),
        ({"hidden_group_order": "ends", "num_hidden_groups": 5}, ""),
        ({"groups_share_attention": True}, "groups_share_attention=True has no effect: groups=1"),
        ({"groups_share_attention": True, "num_hidden_groups": 6}, ""),
    ],
)
def test_settings_without_effect_are_told_once(values, told, caplog):
    configuration_minialbert._warn_once.cache_clear()
    for _ in range(2):
        small(**values)
    assert [line.getMessage()[: len(told)] for line in caplog.records] == [told] * bool(told)


@torch.no_grad()
@pytest.mark.parametrize("share_attention", [False, True])
def test_two_groups_in_turn_are_a_loop_over_two_blocks(share_attention):
    model = build(num_hidden_groups=2, hidden_group_order="turns", groups_share_attention=share_attention)
    state = model.embeddings(IDS, None, None, None)
    for iteration in range(6):
        block = (model.block, model.further_blocks[0])[iteration % 2]
        attention = model.block.attention if share_attention else block.attention
        attended, _ = attention(model.attention_adapters[iteration](state), None, False)
        attended = model.ffn_adapters[iteration](attended)
        inner = nn.functional.gelu(block.ffn(attended))
        state = block.LayerNorm(block.ffn_output(inner) + attended)
    torch.testing.assert_close(model(IDS).last_hidden_state, state)
    of_attention = 4 * (32 * 32 + 32) + 2 * 32
    of_network = 2 * 32 * 48 + 48 + 32 + 2 * 32
    one = build().num_parameters()
    assert model.num_parameters() - one == of_network + (0 if share_attention else of_attention)


@torch.no_grad()
def test_one_group_is_the_student_of_before():
    torch.manual_seed(0)
    model = MiniAlbertForMaskedLM(small()).eval()
    keys = list(model.state_dict())
    assert not any("further_blocks" in key for key in keys) and "minialbert.block.ffn.weight" in keys
    # Recorded before there were groups.
    assert model(IDS).logits.double().abs().sum().item() == pytest.approx(5.8756362891131175, rel=1e-6)
    assert backbone_fingerprint(model.minialbert)[:16] == "3afe29e75db27532"
    assert (
        not {"num_hidden_groups", "hidden_group_order", "groups_share_attention"}
        & model.config.to_dict().keys()
    )


@torch.no_grad()
@pytest.mark.parametrize("share_attention", [False, True])
def test_groups_survive_saving_and_travel_with_adapters(tmp_path, share_attention):
    values = {"num_hidden_groups": 3, "hidden_group_order": "ends", "groups_share_attention": share_attention}
    model = build(MiniAlbertForSequenceClassification, **values)
    model.save_pretrained(tmp_path / "model")
    loaded = MiniAlbertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["num_hidden_groups"] == 3 and written["hidden_group_order"] == "ends"
    save_adapters(model, tmp_path / "adapters")
    again = load_adapters(loaded, tmp_path / "adapters")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    runs = build(MiniAlbertForSequenceClassification, **values | {"hidden_group_order": "runs"})
    with pytest.raises(UserError, match="trained on the backbone"):
        load_adapters(runs, tmp_path / "adapters")


def test_gradient_reaches_every_group_with_and_without_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = build(num_hidden_groups=3, groups_share_attention=True).train()
        model.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
        model(IDS).last_hidden_state.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@torch.no_grad()
@pytest.mark.parametrize(
    ("order", "layers"), [("runs", [2, 4, 6]), ("turns", [2, 3, 4]), ("ends", [2, 3, 6])]
)
def test_groups_start_as_the_layers_that_they_stand_for(order, layers, tiny_tokenizer):
    teacher = make_teacher(num_hidden_layers=6)
    student = make_student(
        teacher, tiny_tokenizer, num_hidden_layers=5, num_hidden_groups=3, hidden_group_order=order
    )
    report = initialize_from_teacher(student, teacher, [])
    # Five iterations stand for layers 2, 3, 4, 5 and 6 of six; a group for what its first iteration stands for.
    assert f"3 groups: the teacher's layers {', '.join(map(str, layers))}" in report
    for block, layer in zip(student.minialbert.blocks, layers, strict=True):
        source = teacher.model.bert.encoder.layer[layer - 1]
        assert torch.equal(block.attention.value.weight, source.attention.self.value.weight)
        assert torch.equal(block.ffn_output.bias, source.output.dense.bias)
    initialize_from_teacher(student, teacher, [], layer=4)
    fourth = teacher.model.bert.encoder.layer[3].intermediate.dense.weight
    assert all(torch.equal(block.ffn.weight, fourth) for block in student.minialbert.blocks)


# What tells iterations apart

KINDS = ("bottleneck", "lora", "layer-norm", "scale", "iteration-embedding")
EXACT = {"adapter_layer_norm": False, "adapter_init": "identity"}
WIDTH, INNER, DEPTH = 32, 48, 6


def unshared(model):
    """Return a copy without adapters of one block per iteration, to write what adapters do into."""
    values = {"num_hidden_groups": DEPTH, "adapter_reduction_factor": None}
    plain = MiniAlbertModel(small(**values)).eval()
    plain.embeddings.load_state_dict(model.embeddings.state_dict())
    for block in plain.blocks:
        block.load_state_dict(model.block.state_dict())
    return plain


@torch.no_grad()
def test_lora_merged_by_hand_is_the_adapted_model():
    model = build(adapter_kind="lora", lora_rank=4, **EXACT)
    merged = unshared(model)
    for index, block in enumerate(merged.blocks):
        for adapter, owner in (
            (model.attention_adapters[index], block.attention),
            (model.ffn_adapters[index], block),
        ):
            for name, up in adapter.up.items():
                getattr(owner, name).weight += up.weight @ adapter.down[name].weight
    torch.testing.assert_close(merged(IDS).last_hidden_state, model(IDS).last_hidden_state)
    assert not torch.allclose(
        merged(IDS).last_hidden_state, unshared(model)(IDS).last_hidden_state, atol=1e-3
    )


@torch.no_grad()
def test_layer_norms_and_biases_of_their_own_are_those_of_blocks_of_their_own():
    model = build(adapter_kind="layer-norm", **EXACT)
    merged = unshared(model)
    for index, block in enumerate(merged.blocks):
        for adapter, owner in (
            (model.attention_adapters[index], block.attention),
            (model.ffn_adapters[index], block),
        ):
            for name, vectors in adapter.vectors.items():
                layer = getattr(owner, name)
                factor = 1.0 if vectors.scale is None else 1 + vectors.scale
                if vectors.scale is not None:
                    layer.weight.mul_(factor)
                layer.bias.copy_(layer.bias * factor + vectors.shift)
    torch.testing.assert_close(merged(IDS).last_hidden_state, model(IDS).last_hidden_state)


@torch.no_grad()
def test_scales_are_rows_of_matrices_and_an_embedding_is_added_to_what_an_iteration_reads():
    model = build(adapter_kind="scale", **EXACT)
    merged = unshared(model)
    for index, block in enumerate(merged.blocks):
        for adapter, layer in ((model.attention_adapters[index].vectors["dense"], block.attention.dense),
                               (model.ffn_adapters[index].vectors["ffn_output"], block.ffn_output)):  # fmt: skip
            layer.weight.mul_(1 + adapter.scale[:, None])
            layer.bias.mul_(1 + adapter.scale)
    torch.testing.assert_close(merged(IDS).last_hidden_state, model(IDS).last_hidden_state)

    model = build(adapter_kind="iteration-embedding", **EXACT)
    plain, state = unshared(model), model.embeddings(IDS, None, None, None)
    for adapter, block in zip(model.attention_adapters, plain.blocks, strict=True):
        state, _ = block(state + adapter.vectors["input"].shift, nn.Identity(), nn.Identity())
    torch.testing.assert_close(model(IDS).last_hidden_state, state)


@torch.no_grad()
def test_kinds_joined_are_one_after_the_other():
    model = build(adapter_kind="+".join(KINDS), lora_layers=["value", "ffn"], **EXACT)
    state = model.embeddings(IDS, None, None, None)
    for attention, ffn in zip(model.attention_adapters, model.ffn_adapters, strict=True):
        block = copy.deepcopy(model.block)
        for owner, (_, lora, norm, scale, _) in ((block.attention, attention), (block, ffn)):
            for name, up in lora.up.items():
                getattr(owner, name).weight += up.weight @ lora.down[name].weight
            for kind in (norm, scale):
                for name, vectors in kind.vectors.items():
                    layer = getattr(owner, name)
                    if vectors.scale is not None:
                        layer.weight.mul_((1 + vectors.scale).view(-1, *[1] * (layer.weight.ndim - 1)))
                        layer.bias.mul_(1 + vectors.scale)
                    if vectors.shift is not None:
                        layer.bias.add_(vectors.shift)
        attended, _ = block.attention(attention[0](state) + attention[4].vectors["input"].shift, None, False)
        attended = ffn[0](attended)
        inner = nn.functional.gelu(block.ffn(attended))
        state = block.LayerNorm(block.ffn_output(inner) + attended)
    torch.testing.assert_close(model(IDS).last_hidden_state, state)


def expected_parameters(kind):
    matrices = 4 * (2 * WIDTH) + 2 * (WIDTH + INNER)  # inputs and outputs of the six linear layers
    return {
        "bottleneck": 2 * (2 * WIDTH * 4 + 4 + WIDTH),
        "lora": 4 * matrices,
        "layer-norm": 4 * WIDTH + 5 * WIDTH + INNER,
        "scale": 2 * WIDTH,
        "iteration-embedding": WIDTH,
    }[kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_start_as_the_identity_and_add_what_they_say(kind):
    plain = build(adapter_reduction_factor=None)
    adapted = build(adapter_reduction_factor=None)
    add_adapters(adapted, reduction_factor=8, kind=kind, lora_rank=4)
    assert torch.equal(adapted(IDS).last_hidden_state, plain(IDS).last_hidden_state)
    assert adapted.num_parameters() - plain.num_parameters() == DEPTH * expected_parameters(kind)
    # Matrices cost two operations a value and token, vectors none that count.
    config = adapted.config
    flops = forward_flops_per_token(config, 16) - forward_flops_per_token(plain.config, 16)
    matrices = {"bottleneck": 4 * WIDTH * 4, "lora": expected_parameters("lora")}
    assert flops == DEPTH * 2 * matrices.get(kind, 0)
    fresh = MiniAlbertModel(small(adapter_kind=kind, **EXACT)).eval()
    assert fresh.num_parameters() > plain.num_parameters()
    values = [
        parameter for name, parameter in fresh.named_parameters() if ".up." in name or ".vectors." in name
    ]
    assert values and all(not parameter.any() for parameter in values)


@pytest.mark.parametrize("kind", ["lora", "layer-norm+scale", "bottleneck+lora+iteration-embedding"])
def test_kinds_are_tuned_alone_saved_and_loaded(kind, tmp_path):
    model = build(
        MiniAlbertForSequenceClassification, adapter_kind=kind, lora_rank=2, lora_layers=["query"], **EXACT
    )
    count = freeze_all_but_adapters(model)
    model.train()
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {
        name for name in dict(model.named_parameters()) if "_adapters." in name or "classifier" in name
    }
    assert count.trainable == sum(dict(model.named_parameters())[name].numel() for name in trained)
    model.eval().save_pretrained(tmp_path / "model")
    loaded = MiniAlbertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    save_adapters(model, tmp_path / "adapters")
    record = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert record["adapter_kind"] == kind and record["lora_rank"] == 2 and record["lora_layers"] == ["query"]
    assert torch.equal(load_adapters(loaded, tmp_path / "adapters")(IDS).logits, model(IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora+layer-norm", "layer-norm+lora+scale"])
def test_adapters_that_start_from_the_teacher_make_its_layers(kind, tiny_tokenizer):
    teacher = make_teacher(num_hidden_layers=4)
    rank = min(teacher.model.config.hidden_size, teacher.model.config.intermediate_size)
    recipe = StudentRecipe(
        num_hidden_layers=2, embedding_size=None, adapter_kind=kind, lora_rank=rank, init_layer=1,
        adapter_init="teacher", adapter_layer_norm=False, adapter_reduction_factor=8,
    )  # fmt: skip
    student, report = build_student(recipe, teacher, tiny_tokenizer, [], seed=0)
    encoder = student.eval().minialbert
    # Six matrices and biases, and two LayerNorms, of two iterations: layers 2 and 4.
    assert f"adapters: {2 * (6 + 6 + 2)} parts from what the teacher's layers differ by" in report
    state = torch.randn(2, 5, teacher.hidden_size)
    for iteration, layer in enumerate((2, 4)):
        ours, _ = encoder.iterate(iteration, state, None)
        theirs = teacher.model.bert.encoder.layer[layer - 1](state)
        torch.testing.assert_close(
            ours, theirs if isinstance(theirs, torch.Tensor) else theirs[0], rtol=1e-3, atol=1e-4
        )
    assert student.config.adapter_init == "identity"
    with pytest.raises(ValueError, match="adapter_init 'teacher' needs init 'teacher'"):
        StudentRecipe(init="random", adapter_init="teacher", adapter_layer_norm=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        ({"lora_layers": ["queries"]}, r"lora_layers must name some of query, .*, got \['queries'\]"),
        ({"lora_layers": []}, "or be None for all"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        small(**values)


def test_unknown_kinds_are_refused_and_others_are_not_written(tmp_path):
    with pytest.raises(UserError, match="'norm' is not known"):
        add_adapters(build(adapter_reduction_factor=None), kind="lora+norm")
    MiniAlbertConfig().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "lora" not in text and "adapter_kind" not in text and "group" not in text

"""Where a student's block and head, donors' embeddings and a baseline's layers come from, family by family."""

import pytest
import torch
from small_teachers import CONFIGS, SHAPE, make_batches, make_student, make_teacher
from torch import nn
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.errors import UserError
from minialbert.method.objective import Request
from minialbert.method.start import (
    build_student,
    embedding_tables,
    initialize_from_alternate_layers,
    initialize_from_donor,
    initialize_from_teacher,
    student_config,
)
from minialbert.recipes.schema import StudentRecipe

FAMILIES = pytest.mark.parametrize("family", CONFIGS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def batches():
    return make_batches()


# The shared block

BLOCKS = {
    "bert": ("encoder.layer", "attention.self.query", "intermediate.dense", "output.LayerNorm"),
    "roberta": ("encoder.layer", "attention.self.query", "intermediate.dense", "output.LayerNorm"),
    "electra": ("encoder.layer", "attention.self.query", "intermediate.dense", "output.LayerNorm"),
    "mpnet": ("encoder.layer", "attention.attn.q", "intermediate.dense", "output.LayerNorm"),
    "distilbert": ("transformer.layer", "attention.q_lin", "ffn.lin1", "output_layer_norm"),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers",
        "attention.query",
        "ffn",
        "full_layer_layer_norm",
    ),
}


@pytest.mark.parametrize("family", BLOCKS)
def test_block_is_the_mean_of_the_layers(family, tiny_tokenizer, batches):
    teacher = make_teacher(family)
    student = make_student(teacher, tiny_tokenizer)
    report = initialize_from_teacher(student, teacher, batches)
    path, *names = BLOCKS[family]
    layers = teacher.model.base_model.get_submodule(path)
    assert f"shared block: mean of the teacher's {len(layers)} layers" in report
    for ours, name in zip(("attention.query", "ffn", "LayerNorm"), names, strict=True):
        target = student.minialbert.block.get_submodule(ours)
        for kind in ("weight", "bias"):
            values = [getattr(layer.get_submodule(name), kind) for layer in layers]
            torch.testing.assert_close(getattr(target, kind), torch.stack(values).mean(0))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("layer", [1, 3, 4])
def test_block_can_be_one_of_the_layers(family, layer, tiny_tokenizer, batches):
    teacher = make_teacher(family)
    student = make_student(teacher, tiny_tokenizer, adapter_reduction_factor=None)
    report = initialize_from_teacher(student, teacher, batches, layer=layer)
    assert f"shared block: the teacher's layer {layer}" in report
    # One iteration over the teacher's own states is that layer.
    view, mask = teacher.view(batches[0]), batches[0]["attention_mask"]
    with torch.no_grad():
        bias = torch.zeros(4, 1, 1, 16).masked_fill(mask[:, None, None] == 0, torch.finfo(torch.float32).min)
        adapter = nn.Identity()
        states, _ = student.minialbert.block(view.hidden_states[layer - 1], adapter, adapter, bias)
    valid = mask.bool()
    torch.testing.assert_close(states[valid], view.hidden_states[layer][valid], rtol=1e-4, atol=1e-4)


def test_layers_are_those_that_the_teacher_has(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer)
    before = student.state_dict()["minialbert.block.ffn.weight"].clone()
    for layer in (0, 5):
        with pytest.raises(UserError, match=f"init_layer is {layer}, but the teacher has layers 1-4"):
            initialize_from_teacher(student, teacher, batches, layer=layer)
    assert torch.equal(student.state_dict()["minialbert.block.ffn.weight"], before)
    albert = make_teacher("albert")  # all of its layers are one
    student = make_student(albert, tiny_tokenizer)
    initialize_from_teacher(student, albert, batches, layer=3)
    shared = albert.model.albert.encoder.albert_layer_groups[0].albert_layers[0].ffn.weight
    assert torch.equal(student.minialbert.block.ffn.weight, shared)


def test_a_recipe_names_the_layer(tiny_tokenizer, batches):
    teacher = make_teacher()
    recipe = StudentRecipe(
        num_hidden_layers=2, embedding_size=None, adapter_reduction_factor=None, init_layer=2
    )
    student, report = build_student(recipe, teacher, tiny_tokenizer, batches, seed=0)
    assert "shared block: the teacher's layer 2" in report
    second = teacher.model.bert.encoder.layer[1].intermediate.dense.weight
    assert torch.equal(student.minialbert.block.ffn.weight, second)
    for init in ("random", "alternate-layers"):
        with pytest.raises(ValueError, match=f"init '{init}' takes no init_layer"):
            StudentRecipe(init=init, arch="bert", init_layer=2)


@pytest.mark.parametrize(("layers", "third"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (12, 4)])
def test_a_third_of_the_way_up_is_a_layer_of_any_teacher(layers, third, tiny_tokenizer, batches):
    teacher = make_teacher(num_hidden_layers=layers)
    recipe = StudentRecipe(
        num_hidden_layers=2, embedding_size=None, adapter_reduction_factor=None, init_layer="third"
    )
    student, report = build_student(recipe, teacher, tiny_tokenizer, batches, seed=0)
    assert f"shared block: the teacher's layer {third}" in report
    expected = teacher.model.bert.encoder.layer[third - 1].intermediate.dense.weight
    assert torch.equal(student.minialbert.block.ffn.weight, expected)


@pytest.mark.parametrize("family", BLOCKS)
def test_one_layer_becomes_the_block_itself(family, tiny_tokenizer, batches):
    # With one layer the mean is that layer, so that every part must have found its place.
    teacher = make_teacher(family, num_hidden_layers=1)
    if family == "mpnet":  # whose scores have a bias by distance, that the student lacks
        nn.init.zeros_(teacher.model.mpnet.encoder.relative_attention_bias.weight)
    student = make_student(teacher, tiny_tokenizer, num_hidden_layers=1, adapter_reduction_factor=None)
    initialize_from_teacher(student, teacher, batches)
    view = teacher.view(batches[0])
    mask = batches[0]["attention_mask"]
    with torch.no_grad():
        bias = torch.zeros(4, 1, 1, 16).masked_fill(mask[:, None, None] == 0, torch.finfo(torch.float32).min)
        adapter = nn.Identity()
        states, _ = student.minialbert.block(view.hidden_states[0], adapter, adapter, bias)
    valid = mask.bool()
    torch.testing.assert_close(states[valid], view.hidden_states[1][valid], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", BLOCKS)
def test_a_narrower_block_keeps_the_units_that_count(family, tiny_tokenizer, batches):
    teacher = make_teacher(family, num_hidden_layers=1)
    if family == "mpnet":
        nn.init.zeros_(teacher.model.mpnet.encoder.relative_attention_bias.weight)
    inner, outer = (
        ("ffn.lin1", "ffn.lin2") if family == "distilbert" else ("intermediate.dense", "output.dense")
    )
    inner, outer = ("ffn", "ffn_output") if family == "albert" else (inner, outer)
    layer = teacher.model.base_model.get_submodule(BLOCKS[family][0])[0]
    inner, outer = layer.get_submodule(inner), layer.get_submodule(outer)
    few = torch.randperm(len(inner.weight))
    kept, still, silent = few[:20].sort().values, few[20:30], few[30:]
    with torch.no_grad():
        outer.weight.mul_(10)  # so that the network counts
        inner.weight[still], inner.bias[still] = 0, 0.5  # says the same of every token: part of the bias
        outer.weight[:, still] = 0.01 * torch.randn(len(outer.weight), 10)
        outer.weight[:, silent] = 0
    student = make_student(
        teacher, tiny_tokenizer, num_hidden_layers=1, adapter_reduction_factor=None, intermediate_size=20
    )
    report = initialize_from_teacher(student, teacher, batches, layer=1)
    units = f"20 of the {len(few)} units of its feed-forward network"
    assert f"shared block: the teacher's layer 1, {units}" in report
    assert torch.equal(student.minialbert.block.ffn.weight, inner.weight[kept])
    view, mask = teacher.view(batches[0]), batches[0]["attention_mask"]
    bias = torch.zeros(4, 1, 1, 16).masked_fill(mask[:, None, None] == 0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        states, _ = student.minialbert.block(view.hidden_states[0], nn.Identity(), nn.Identity(), bias)
    valid = mask.bool()
    torch.testing.assert_close(states[valid], view.hidden_states[1][valid], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("family", "part"), [("bert", "output.dense"), ("albert", "ffn_output")])
def test_a_narrower_block_reads_the_layer_that_is_asked_for(family, part, tiny_tokenizer, batches):
    teacher = make_teacher(family)  # one module a layer, and one that all layers apply
    layers, kept = teacher.model.base_model.get_submodule(BLOCKS[family][0]), []
    for number in (1, 3):
        outer, calls = layers[min(number, len(layers)) - 1].get_submodule(part), []
        hook = outer.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0]))
        for batch in batches:
            teacher.view(batch)
        hook.remove()
        own = calls[number - 1 :: 4] if family == "albert" else calls
        valid = [states[batch["attention_mask"].bool()] for states, batch in zip(own, batches, strict=True)]
        weight = torch.cat(valid).square().mean(0) * outer.weight.square().sum(0)
        kept.append(weight.argsort(descending=True)[:9].sort().values)
        student = make_student(teacher, tiny_tokenizer, intermediate_size=9)
        initialize_from_teacher(student, teacher, batches, layer=number)
        inner = layers[min(number, len(layers)) - 1].get_submodule(BLOCKS[family][2])
        assert torch.equal(student.minialbert.block.ffn.weight, inner.weight[kept[-1]])
    assert not torch.equal(*kept)


def test_other_structures_stay_random_and_say_so(tiny_tokenizer, batches):
    teacher = make_teacher("modernbert")
    student = make_student(teacher, tiny_tokenizer)
    before = {name: value.clone() for name, value in student.minialbert.block.state_dict().items()}
    report = initialize_from_teacher(student, teacher, batches)
    assert report == [
        "embedding tables (word_embeddings): the teacher's",
        "embedding LayerNorm: one and zero",
        "shared block: random (the layers of modernbert have another structure)",
        "masked-LM head: random (the head of modernbert has another structure)",
    ]
    assert all(
        torch.equal(value, before[name]) for name, value in student.minialbert.block.state_dict().items()
    )


def test_block_of_another_shape_stays_random(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer, intermediate_size=64)
    assert "shared block: random (width or inner width differ from the teacher's)" in initialize_from_teacher(
        student, teacher, batches
    )
    student = make_student(teacher, tiny_tokenizer, num_attention_heads=2)
    assert "shared block: random (head counts differ)" in initialize_from_teacher(student, teacher, batches)


# The head


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert"])
def test_head_gives_the_teachers_logits(family, head, tiny_tokenizer, batches):
    teacher = make_teacher(family)
    pad = tiny_tokenizer.pad_token_id
    teacher.model.get_input_embeddings().weight.data[pad] = 0  # a tied decoder shares the padding row
    student = make_student(teacher, tiny_tokenizer, mlm_head=head)
    report = initialize_from_teacher(student, teacher, batches)
    assert report[3] == "masked-LM head: the teacher's"
    positions = batches[0]["attention_mask"].bool()
    view = teacher.view(batches[0], Request(positions=positions))
    with torch.no_grad():
        logits = student.mlm_head(view.hidden_states[4][positions])
    torch.testing.assert_close(logits, view.logits, rtol=1e-3, atol=1e-3)


def test_factorised_head_is_near_the_teachers_logits(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer, embedding_size=24)
    initialize_from_teacher(student, teacher, batches)
    positions = batches[0]["attention_mask"].bool()
    view = teacher.view(batches[0], Request(positions=positions))
    with torch.no_grad():
        logits = student.mlm_head(view.hidden_states[4][positions])
    assert nn.functional.cosine_similarity(logits, view.logits, dim=-1).mean() > 0.8


def test_teacher_without_head_leaves_the_students_random(tiny_tokenizer, batches):
    teacher = make_teacher()
    teacher.has_mlm_head = False
    student = make_student(teacher, tiny_tokenizer)
    before = student.mlm_head.dense.weight.clone()
    assert (
        initialize_from_teacher(student, teacher, batches)[3]
        == "masked-LM head: random (the teacher has none)"
    )
    assert torch.equal(student.mlm_head.dense.weight, before)
    electra = make_teacher("electra")
    report = initialize_from_teacher(make_student(electra, tiny_tokenizer), electra, batches)
    assert report[3] == "masked-LM head: random (the head of electra has another structure)"


# What is refused, and what stays


def test_vocabularies_must_agree(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = MiniAlbertForMaskedLM(MiniAlbertConfig(
        vocab_size=100, embedding_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, adapter_reduction_factor=8,
    ))  # fmt: skip
    with pytest.raises(
        UserError, match="has 100 word embeddings and the teacher 135: .* the same vocabulary"
    ):
        initialize_from_teacher(student, teacher, batches)
    with pytest.raises(
        UserError, match=r"the donor's word table has shape \(135, 32\), the student's \(100, 32\)"
    ):
        initialize_from_donor(student, teacher.model)


@pytest.mark.parametrize("rank", [8, None])
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_values_survive_saving_and_loading(tmp_path, rank, head, tiny_tokenizer, batches):
    recipe = StudentRecipe(
        num_hidden_layers=2, embedding_size=rank, mlm_head=head, adapter_reduction_factor=8
    )
    teacher = make_teacher()
    student, report = build_student(recipe, teacher, tiny_tokenizer, batches, seed=3)
    assert student.training and len(report) == 4
    if rank is None:
        words, expected = (m.get_input_embeddings().weight for m in (student, teacher.model))
        assert torch.equal(words[1:], expected[1:]) and words[0].abs().sum() == 0
    student.save_pretrained(tmp_path)
    loaded = MiniAlbertForMaskedLM.from_pretrained(tmp_path)
    state = student.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


# Donors


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_donor_gives_its_embedding_module(family, tmp_path, tiny_tokenizer):
    donor = make_teacher(family, hidden_size=16, intermediate_size=24).model
    donor.save_pretrained(tmp_path)
    recipe = StudentRecipe(
        num_hidden_layers=2,
        embedding_size=16,
        adapter_reduction_factor=8,
        init="donor",
        init_from=str(tmp_path),
    )
    student, report = build_student(recipe, make_teacher(), tiny_tokenizer, [], seed=0)
    ours, theirs = student.minialbert.embeddings, donor.base_model.embeddings
    torch.testing.assert_close(ours.word_embeddings.weight, theirs.word_embeddings.weight)
    offset = 2 if family == "roberta" else 0
    rows = 20 - offset
    torch.testing.assert_close(
        ours.position_embeddings.weight[:rows], theirs.position_embeddings.weight[offset:]
    )
    types = theirs.token_type_embeddings.weight
    torch.testing.assert_close(ours.token_type_embeddings.weight[: len(types)], types)
    torch.testing.assert_close(ours.LayerNorm.weight, theirs.LayerNorm.weight)
    torch.testing.assert_close(ours.LayerNorm.bias, theirs.LayerNorm.bias)
    names = "word_embeddings, position_embeddings, token_type_embeddings, LayerNorm"
    assert report == [f"embeddings ({names}): the donor's"]


def test_donor_of_another_rank_is_refused(tiny_tokenizer):
    student = make_student(make_teacher(), tiny_tokenizer, embedding_size=8)
    donor = AutoModel.from_config(CONFIGS["bert"]())
    with pytest.raises(
        UserError, match=r"shape \(135, 32\), the student's \(135, 8\): .* embedding_size equal"
    ):
        initialize_from_donor(student, donor)


# Fully parameterised students


@pytest.mark.parametrize(
    ("layers", "depth", "kept"),
    [(12, 6, [1, 3, 5, 8, 10, 12]), (4, 2, [1, 4]), (3, 3, [1, 2, 3]), (4, 1, [1])],
)
def test_alternate_layers(layers, depth, kept, tiny_tokenizer):
    teacher = make_teacher(num_hidden_layers=layers)
    recipe = StudentRecipe(
        arch="bert",
        num_hidden_layers=depth,
        embedding_size=None,
        adapter_reduction_factor=None,
        init="alternate-layers",
    )
    student, report = build_student(recipe, teacher, tiny_tokenizer, [], seed=0)
    numbers = ", ".join(map(str, kept))
    assert report == [f"layers: the teacher's {numbers} (from 1)", "embeddings: the teacher's"]
    assert isinstance(student, BertForMaskedLM) and student.training
    for ours, layer in zip(student.bert.encoder.layer, kept, strict=True):
        theirs = teacher.model.bert.encoder.layer[layer - 1].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    for part in ("bert.embeddings", "cls"):
        theirs = teacher.model.get_submodule(part).state_dict()
        ours = student.get_submodule(part).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight
    if layers == depth:
        ids = torch.randint(5, 60, (1, 8))
        with torch.no_grad():
            torch.testing.assert_close(student.eval()(ids).logits, teacher.model.eval()(ids).logits)


def test_alternate_layers_need_a_bert_of_the_same_width(tiny_tokenizer):
    student = BertForMaskedLM(BertConfig(**{**SHAPE, "num_hidden_layers": 2, "intermediate_size": 64}))
    with pytest.raises(
        UserError, match=r"the teacher's width and vocabulary; bert\.encoder\.layer\.0\.intermediate"
    ):
        initialize_from_alternate_layers(student, make_teacher())
    with pytest.raises(UserError, match="copies layers of a BERT, but the teacher is a roberta model"):
        initialize_from_alternate_layers(student, make_teacher("roberta"))


# Configurations


@FAMILIES
def test_student_takes_the_teachers_shape(family, tiny_tokenizer):
    teacher = make_teacher(family)
    config = student_config(StudentRecipe(num_hidden_layers=3, embedding_size=16), teacher, tiny_tokenizer)
    assert isinstance(config, MiniAlbertConfig)
    assert (config.vocab_size, config.hidden_size, config.num_attention_heads) == (135, 32, 4)
    assert (config.num_hidden_layers, config.embedding_size, config.intermediate_size) == (3, 16, 48)
    assert config.max_position_embeddings == (18 if family in ("roberta", "mpnet") else 20)
    assert config.hidden_act == "gelu" and config.pad_token_id == tiny_tokenizer.pad_token_id
    assert config.type_vocab_size == (2 if family in ("bert", "electra", "albert") else 1)
    expected = {"roberta": 1e-5, "modernbert": 1e-5}.get(family, 1e-12)
    assert config.layer_norm_eps == pytest.approx(expected)
    MiniAlbertForMaskedLM(config)


def test_recipe_overrides_the_teachers_shape(tiny_tokenizer):
    recipe = StudentRecipe(
        num_hidden_layers=2, embedding_size=None, hidden_size=16, num_attention_heads=2, intermediate_size=20,
        hidden_act="relu", max_position_embeddings=12, adapter_reduction_factor=4, adapter_layer_norm=False,
        adapter_init="identity", mlm_head="untied", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3,
    )  # fmt: skip
    config = student_config(recipe, make_teacher(), tiny_tokenizer)
    assert (config.hidden_size, config.embedding_size, config.num_attention_heads) == (16, 16, 2)
    assert (config.intermediate_size, config.hidden_act, config.max_position_embeddings) == (20, "relu", 12)
    assert (config.adapter_reduction_factor, config.adapter_init, config.adapter_layer_norm) == (
        4,
        "identity",
        False,
    )
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)
    assert not config.tie_word_embeddings


def test_without_a_teacher_the_shape_is_that_of_bert_base(tiny_tokenizer):
    config = student_config(StudentRecipe(init="random"), None, tiny_tokenizer)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (768, 12, 3072)
    assert (config.vocab_size, config.max_position_embeddings, config.embedding_size) == (135, 512, 128)
    bert = student_config(
        StudentRecipe(arch="bert", embedding_size=None, adapter_reduction_factor=None, init="random"),
        None,
        tiny_tokenizer,
    )
    assert isinstance(bert, BertConfig) and bert.num_hidden_layers == 6


def test_impossible_shapes_are_refused(tiny_tokenizer):
    with pytest.raises(
        UserError, match=r"student: hidden_size \(32\) must be a multiple of num_attention_heads \(5\)"
    ):
        student_config(
            StudentRecipe(num_hidden_layers=2, embedding_size=8, num_attention_heads=5),
            make_teacher(),
            tiny_tokenizer,
        )
    with pytest.raises(
        UserError, match=r"student: embedding_size \(128\) .* cannot exceed hidden_size \(32\)"
    ):
        student_config(StudentRecipe(num_hidden_layers=2), make_teacher(), tiny_tokenizer)


# Building


def test_random_students_depend_on_the_seed_alone(tiny_tokenizer):
    recipe = StudentRecipe(num_hidden_layers=2, embedding_size=8, adapter_reduction_factor=8, init="random")
    first, same, other = (
        build_student(recipe, make_teacher(), tiny_tokenizer, [], seed=seed)[0].state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_checkpoints_go_on_where_they_were(tmp_path, tiny_tokenizer):
    recipe = {"num_hidden_layers": 2, "embedding_size": 8, "adapter_reduction_factor": 8}
    student = make_student(make_teacher(), tiny_tokenizer, embedding_size=8)
    student.save_pretrained(tmp_path)
    recipe |= {"init": "checkpoint", "init_from": str(tmp_path)}
    loaded, report = build_student(StudentRecipe(**recipe), make_teacher(), tiny_tokenizer, [], seed=0)
    assert report == [f"all weights: checkpoint {tmp_path.name}"] and loaded.training
    state = student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    dry, _ = build_student(
        StudentRecipe(**recipe, hidden_dropout_prob=0.25), None, tiny_tokenizer, [], seed=0
    )
    assert dry.minialbert.embeddings.dropout.p == dry.config.hidden_dropout_prob == 0.25
    other = {**recipe, "num_hidden_layers": 3, "embedding_size": None, "mlm_head": "untied"}
    with pytest.raises(
        UserError,
        match="has num_hidden_layers=2, embedding_size=8, mlm_head=tied, the recipe asks for 3, 32, untied: set "
        'student.num_hidden_layers=2 student.embedding_size=8 student.mlm_head="tied"$',
    ):
        build_student(StudentRecipe(**other), None, tiny_tokenizer, [], seed=0)
    with pytest.raises(UserError, match="nowhere does not exist"):
        nowhere = {**recipe, "init_from": str(tmp_path / "nowhere")}
        build_student(StudentRecipe(**nowhere), None, tiny_tokenizer, [], seed=0)
    tokenizer = type("Larger", (), {"__len__": lambda self: 1000})()
    with pytest.raises(UserError, match="has 135 word embeddings, the tokenizer 1000 entries"):
        build_student(StudentRecipe(**recipe), None, tokenizer, [], seed=0)


def test_init_from_a_teacher_needs_one(tiny_tokenizer):
    recipe = StudentRecipe(num_hidden_layers=2, embedding_size=8)
    with pytest.raises(
        UserError, match="init 'teacher' needs a teacher: give --teacher, or student.init=random"
    ):
        build_student(recipe, None, tiny_tokenizer, [], seed=0)


def test_donors_and_teachers_are_for_recursive_students(tiny_tokenizer, tmp_path):
    recipe = StudentRecipe(
        arch="bert", num_hidden_layers=2, embedding_size=None, adapter_reduction_factor=None, init="teacher"
    )
    with pytest.raises(UserError, match="student.init 'teacher' is for recursive students; arch bert starts"):
        build_student(recipe, make_teacher(), tiny_tokenizer, [], seed=0)
    recipe = StudentRecipe(
        num_hidden_layers=2, embedding_size=16, init="donor", init_from=str(tmp_path / "nowhere")
    )
    with pytest.raises(UserError, match="nowhere does not exist"):
        build_student(recipe, make_teacher(), tiny_tokenizer, [], seed=0)


def test_bert_models_without_head_have_the_same_tables(tiny_tokenizer):
    model = BertModel(BertConfig(**SHAPE))
    assert {name: tuple(table.shape) for name, table in embedding_tables(model).items()} == {
        "word_embeddings": (135, 32),
        "position_embeddings": (20, 32),
        "token_type_embeddings": (2, 32),
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"adapter_kind": "banana"}, "student: the adapter kind 'banana' is not known"),
        ({"adapter_kind": "lora+"}, "student: the adapter kind '' is not known"),
        ({"adapter_kind": "lora+lora"}, r"student: adapter_kind names each kind once, got 'lora\+lora'"),
        ({"adapter_kind": "lora", "lora_rank": 33}, r"lora_rank must be at most hidden_size \(32\), got 33"),
    ],
)
def test_kinds_of_adapters_that_there_are_not(asked, said, tiny_tokenizer):
    with pytest.raises(UserError, match=said):
        student_config(
            StudentRecipe(num_hidden_layers=2, embedding_size=16, **asked), make_teacher(), tiny_tokenizer
        )

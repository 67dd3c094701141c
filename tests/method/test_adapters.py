"""Adapters apart from the model: counts, starting values, files, and several tasks on one backbone."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

from minialbert import (
    MiniAlbertConfig,
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
)
from minialbert.errors import UserError
from minialbert.method.adapters import (
    AdaptedTasks,
    TrainableCount,
    add_adapters,
    backbone_fingerprint,
    count_parameters,
    freeze_all_but_adapters,
    has_adapters,
    load_adapters,
    save_adapters,
)

HEADS = (
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertForQuestionAnswering,
)
ALL_HEADS = pytest.mark.parametrize("model_class", HEADS, ids=lambda cls: cls.__name__)
COLOURS = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}


def small(**overrides):
    values = {
        "vocab_size": 61,
        "embedding_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "adapter_reduction_factor": None,
    }
    return MiniAlbertConfig(**{**values, **overrides})


def move(parameters, seed):
    """Move parameters off their special starting values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.1 * noise).to(parameter.dtype))


@pytest.fixture
def student(tmp_path):
    """Directory of a distilled student without adapters, as it leaves distillation."""
    torch.manual_seed(0)
    model = MiniAlbertForMaskedLM(small())
    move(model.parameters(), 1)
    model.save_pretrained(tmp_path / "students" / "tiny-student")
    return tmp_path / "students" / "tiny-student"


@pytest.fixture
def inputs():
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    return {
        "input_ids": torch.randint(1, 61, (3, 10), generator=torch.Generator().manual_seed(1)),
        "attention_mask": mask,
    }


def tune(student, model_class=MiniAlbertForSequenceClassification, seed=2, dtype=torch.float32, **config):
    """Model with adapters and head as if trained on one task, the backbone left alone."""
    model = model_class.from_pretrained(student, dtype=dtype, **config)
    add_adapters(model, reduction_factor=8, seed=seed)
    freeze_all_but_adapters(model)
    move((parameter for parameter in model.parameters() if parameter.requires_grad), seed)
    return model.eval()


@pytest.fixture
def saved(student, tmp_path):
    return save_adapters(tune(student, **COLOURS), tmp_path / "colours", metadata={"name": "colours"})


@torch.no_grad()
def first(model, inputs):
    """Logits, or for question answering the start logits."""
    return next(iter(model(**inputs).values()))


def edit(directory, **values):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# Counts and freezing


def test_adapters_have_the_papers_parameter_count():
    with torch.device("meta"):
        model = MiniAlbertForSequenceClassification(MiniAlbertConfig())
    count = freeze_all_but_adapters(model)
    head = 768 * 2 + 2
    assert count == TrainableCount(trainable=912_960 + head, total=12_072_768 + head)
    assert count.share == pytest.approx(0.07574, abs=1e-5)


def test_added_adapters_have_the_papers_parameter_count():
    with torch.device("meta"):
        model = MiniAlbertModel(MiniAlbertConfig(adapter_reduction_factor=None))
    before = count_parameters(model).total
    add_adapters(model, initialization="as-published")
    assert count_parameters(model).total - before == 912_960
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_count_reads_as_a_sentence():
    assert str(TrainableCount(28_608, 4_567_890)) == "28,608 of 4,567,890 parameters are trained (0.63 %)"


def test_shared_tensors_count_once():
    layer = torch.nn.Linear(3, 5)
    assert count_parameters(torch.nn.Sequential(layer, layer)) == TrainableCount(20, 20)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == TrainableCount(15, 20)


@ALL_HEADS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_reaches_adapters_and_head_alone(inputs, model_class, checkpointing):
    model = model_class(small(adapter_reduction_factor=8))  # as published: no zero that would stop a gradient
    freeze_all_but_adapters(model)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    loss = sum(output.square().sum() for output in model(**inputs).values())
    loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    trained = ("minialbert.attention_adapters.", "minialbert.ffn_adapters.", "classifier.", "qa_outputs.")
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith(trained)}
    assert all(p.grad is None for name, p in model.named_parameters() if name not in with_gradient)


def test_freezing_unfreezes_what_a_task_trains_and_spares_the_tied_word_table():
    model = MiniAlbertForMaskedLM(small(adapter_reduction_factor=8))
    model.requires_grad_(False)
    freeze_all_but_adapters(model)
    assert model.mlm_head.dense.weight.requires_grad
    assert model.minialbert.ffn_adapters[0].LayerNorm.weight.requires_grad
    assert not model.mlm_head.decoder.weight.requires_grad  # the word table


def test_freezing_refuses_another_architecture():
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    bert = BertForSequenceClassification(config)
    with pytest.raises(UserError, match=r"needs a MiniALBERT student; got bert .*leave out --adapters"):
        freeze_all_but_adapters(bert)
    with pytest.raises(UserError, match="got bert"):
        add_adapters(bert)
    assert all(parameter.requires_grad for parameter in bert.parameters())


def test_freezing_refuses_a_student_without_adapters():
    with pytest.raises(UserError, match=r"no adapters to train.*add_adapters"):
        freeze_all_but_adapters(MiniAlbertForSequenceClassification(small()))


# Adding


@pytest.mark.parametrize("model_class", [MiniAlbertModel, MiniAlbertForMaskedLM, *HEADS])
def test_adding_identity_adapters_changes_no_bit(inputs, model_class):
    torch.manual_seed(0)
    model = model_class(small()).eval()
    before = first(model, inputs)
    add_adapters(model, reduction_factor=8)
    assert has_adapters(model)
    assert torch.equal(first(model, inputs), before)
    move((p for name, p in model.named_parameters() if "_adapters." in name), 3)
    assert not torch.equal(first(model, inputs), before)


@pytest.mark.parametrize("initialization", ["identity", "as-published"])
@pytest.mark.parametrize("layer_norm", [None, False])
def test_the_config_says_which_adapters_were_added(tmp_path, inputs, initialization, layer_norm):
    model = MiniAlbertForSequenceClassification(small()).eval()
    add_adapters(model, reduction_factor=4, initialization=initialization, layer_norm=layer_norm)
    assert model.config.adapter_reduction_factor == 4
    assert model.config.adapter_init == initialization
    assert model.config.adapter_layer_norm == (initialization == "as-published" and layer_norm is None)
    model.save_pretrained(tmp_path)
    again = MiniAlbertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(first(again, inputs), first(model, inputs))


def test_published_adapters_start_as_torch_starts_a_linear_layer():
    torch.manual_seed(0)
    model = MiniAlbertModel(small(hidden_size=256, num_hidden_layers=2)).eval()
    add_adapters(model, reduction_factor=2, initialization="as-published", seed=5)
    assert len(model.attention_adapters) == len(model.ffn_adapters) == 2
    for adapter in (*model.attention_adapters, *model.ffn_adapters):
        for layer, fan_in in ((adapter.down, 256), (adapter.up, 128)):
            bound = fan_in**-0.5
            for parameter in (layer.weight, layer.bias):
                assert 0.9 * bound < parameter.abs().max() <= bound
            # a uniform distribution on [-b, b] has mean 0 and standard deviation b / sqrt(3)
            assert layer.weight.mean().item() == pytest.approx(0, abs=0.02 * bound)
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert torch.equal(adapter.LayerNorm.weight, torch.ones(256))
        assert torch.equal(adapter.LayerNorm.bias, torch.zeros(256))
        assert not adapter.training
    assert not torch.equal(model.attention_adapters[0].down.weight, model.attention_adapters[1].down.weight)


def test_a_seed_fixes_the_adapters_and_leaves_the_global_generator_alone():
    def added(seed):
        model = MiniAlbertModel(small())
        state = torch.get_rng_state()
        add_adapters(model, seed=seed)
        return model.ffn_adapters[1].down.weight, torch.equal(torch.get_rng_state(), state)

    (one, untouched), (same, _), (other, _) = added(1), added(1), added(2)
    assert untouched
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not added(None)[1]  # without a seed the global generator is drawn from


def test_further_kinds_join_the_adapters_that_are_there(inputs, tmp_path):
    model = MiniAlbertForSequenceClassification(
        small(adapter_reduction_factor=8, adapter_init="as-published")
    ).eval()
    before, known = first(model, inputs), {id(parameter) for parameter in model.parameters()}
    add_adapters(model, kind="lora", lora_rank=2)
    add_adapters(model, kind="layer-norm+scale")
    assert model.config.adapter_kind == "bottleneck+lora+layer-norm+scale"
    assert (model.config.adapter_reduction_factor, model.config.lora_rank) == (8, 2)
    assert torch.equal(first(model, inputs), before)
    freeze_all_but_adapters(model)
    assert all(p.requires_grad for p in model.parameters() if id(p) not in known)
    with torch.no_grad():
        model.minialbert.ffn_adapters[0][1].up["ffn"].weight.fill_(0.1)
    save_adapters(model, tmp_path / "adapters")
    again = load_adapters(model.minialbert, tmp_path / "adapters")
    assert not torch.equal(first(model, inputs), before)
    assert torch.equal(first(again, inputs), first(model, inputs))


def test_adapters_take_the_models_dtype(inputs):
    model = MiniAlbertModel(small()).to(torch.bfloat16)
    add_adapters(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert first(model, inputs).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"adapter_reduction_factor": 8}, {}, r"of the kind bottleneck already \(reduction factor 8\)"),
        ({"adapter_reduction_factor": 8}, {"kind": "lora+bottleneck"}, "of the kind bottleneck already"),
        ({}, {"reduction_factor": 33}, r"between 1 and hidden_size \(32\), got 33"),
        ({}, {"layer_norm": True}, "not the identity"),
        ({}, {"initialization": "zero"}, "'identity' or 'as-published', got 'zero'"),
    ],
)
def test_adapters_that_cannot_be_added_are_refused(config, arguments, message):
    model = MiniAlbertModel(small(**config))
    before = model.config.to_dict(), count_parameters(model)
    with pytest.raises(UserError, match=message):
        add_adapters(model, **arguments)
    assert (model.config.to_dict(), count_parameters(model)) == before


# Fingerprint


def test_the_fingerprint_is_that_of_the_backbone_alone(student):
    expected = backbone_fingerprint(MiniAlbertModel.from_pretrained(student))
    for model_class in (MiniAlbertForMaskedLM, *HEADS):
        assert backbone_fingerprint(model_class.from_pretrained(student).minialbert) == expected
    assert backbone_fingerprint(tune(student).minialbert) == expected
    half = MiniAlbertModel.from_pretrained(student, dtype=torch.bfloat16)
    assert backbone_fingerprint(half) == expected


def test_the_fingerprint_is_the_hash_that_the_format_describes(student):
    encoder = MiniAlbertModel.from_pretrained(student)
    text = '{"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 4, "num_hidden_layers": 3}'
    digest = hashlib.sha256(text.encode())
    for name in sorted(encoder.state_dict()):
        tensor = encoder.state_dict()[name]
        digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
        # bfloat16 is the upper half of float32, rounded to nearest, ties to even
        bits = tensor.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        digest.update(rounded.numpy().astype("<u2").tobytes())
    assert backbone_fingerprint(encoder) == digest.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2},
        {"num_attention_heads": 8},
        {"hidden_act": "relu"},
        {"layer_norm_eps": 1e-6},
    ],
)
def test_the_fingerprint_changes_with_what_a_backbone_computes(student, change):
    expected = backbone_fingerprint(MiniAlbertModel.from_pretrained(student))
    assert backbone_fingerprint(MiniAlbertModel.from_pretrained(student, **change)) != expected


def test_the_fingerprint_changes_with_a_single_value(student):
    encoder = MiniAlbertModel.from_pretrained(student)
    expected = backbone_fingerprint(encoder)
    with torch.no_grad():
        encoder.block.ffn.bias[3] += 0.5
    assert backbone_fingerprint(encoder) != expected


# Saving and loading


@ALL_HEADS
@pytest.mark.parametrize("backbone_class", [MiniAlbertModel, MiniAlbertForMaskedLM])
def test_reloaded_adapters_give_the_same_bits(student, tmp_path, inputs, model_class, backbone_class):
    model = tune(student, model_class, classifier_dropout=0.3)
    save_adapters(model, tmp_path / "task")
    backbone = backbone_class.from_pretrained(student)
    loaded = load_adapters(backbone, tmp_path / "task")
    assert type(loaded) is model_class
    assert not loaded.training
    assert loaded.config.classifier_dropout == 0.3
    for expected, actual in zip(model(**inputs).values(), loaded(**inputs).values(), strict=True):
        assert torch.equal(actual, expected)


def test_published_adapters_survive_with_their_layer_norms(student, tmp_path, inputs):
    model = MiniAlbertForSequenceClassification.from_pretrained(student)
    add_adapters(model, reduction_factor=8, initialization="as-published", seed=4)
    move(model.minialbert.ffn_adapters.parameters(), 5)
    loaded = load_adapters(MiniAlbertModel.from_pretrained(student), save_adapters(model, tmp_path / "task"))
    assert torch.equal(first(loaded, inputs), first(model, inputs))


def test_the_backbones_modules_are_shared_and_it_stays_as_it_was(student, saved, inputs):
    backbone = tune(student, seed=7)  # another task's adapters and two labels
    before, config = first(backbone, inputs), backbone.config.to_dict()
    loaded = load_adapters(backbone, saved)
    assert loaded.minialbert.embeddings is backbone.minialbert.embeddings
    assert loaded.minialbert.block is backbone.minialbert.block
    assert loaded.config.id2label == COLOURS["id2label"]
    assert loaded.config.label2id == COLOURS["label2id"]
    assert first(loaded, inputs).shape == (3, 3)
    assert torch.equal(first(backbone, inputs), before)
    assert backbone.config.to_dict() == config
    plain = load_adapters(MiniAlbertModel.from_pretrained(student), saved)  # adapters or none: no difference
    assert torch.equal(first(plain, inputs), first(loaded, inputs))


def test_loading_draws_no_random_number(student, saved):
    backbone = MiniAlbertModel.from_pretrained(student)
    state = torch.get_rng_state()
    load_adapters(backbone, saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_loaded_adapters_can_be_trained_on_and_saved(student, saved, tmp_path, inputs):
    model = load_adapters(MiniAlbertModel.from_pretrained(student), saved)
    before = first(model, inputs)
    freeze_all_but_adapters(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    again = load_adapters(MiniAlbertModel.from_pretrained(student), save_adapters(model, tmp_path / "again"))
    assert not torch.equal(first(again, inputs), before)
    assert torch.equal(first(again, inputs), first(model, inputs))
    model.save_pretrained(tmp_path / "whole")
    whole = MiniAlbertForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert torch.equal(first(whole, inputs), first(model, inputs))
    assert whole.config.id2label == COLOURS["id2label"]


def test_the_file_holds_adapters_and_head_alone(student, saved):
    model = MiniAlbertForSequenceClassification.from_pretrained(student, **COLOURS)
    add_adapters(model, reduction_factor=8)
    tensors = load_file(saved / "adapters.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == freeze_all_but_adapters(model).trainable
    assert {key.partition(".")[0] for key in tensors} == {"attention_adapters", "ffn_adapters", "classifier"}
    assert "attention_adapters.2.up.bias" in tensors
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", "adapters.safetensors"]


def test_the_file_is_small_beside_the_model(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 8000, "embedding_size": 128}
    model = MiniAlbertForSequenceClassification(small(**shape))
    add_adapters(model)
    model.save_pretrained(tmp_path / "whole")
    save_adapters(model, tmp_path / "adapters")
    whole = (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert (tmp_path / "adapters" / "adapters.safetensors").stat().st_size < 0.1 * whole


def test_the_record_describes_the_task_and_its_backbone(student, saved):
    encoder = MiniAlbertModel.from_pretrained(student)
    assert json.loads((saved / "adapter_config.json").read_text()) == {
        "format_version": 1,
        "architecture": "MiniAlbertForSequenceClassification",
        "backbone": "tiny-student",
        "backbone_fingerprint": backbone_fingerprint(encoder),
        "num_iterations": 3,
        "adapter_reduction_factor": 8,
        "adapter_layer_norm": False,
        "adapter_init": "identity",
        "num_labels": 3,
        "id2label": {"0": "red", "1": "green", "2": "blue"},
        "label2id": {"red": 0, "green": 1, "blue": 2},
        "problem_type": None,
        "classifier_dropout": 0.1,
        "elastic_depths": None,
        "task": {"name": "colours"},
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/student", "owner/student"),
        ("student", "student"),
        ("/gone/since/student", "student"),
        ("./runs/student", "student"),
        ("runs/a/student", "student"),
        ("", None),
    ],
)
def test_the_record_names_a_hub_id_in_full_and_no_local_folder(student, tmp_path, name, expected):
    model = tune(student)
    model.config._name_or_path = name
    record = json.loads((save_adapters(model, tmp_path / "task") / "adapter_config.json").read_text())
    assert record["backbone"] == expected


def test_bfloat16_adapters_load_in_either_dtype(student, tmp_path, inputs):
    model = tune(student, dtype=torch.bfloat16)
    directory = save_adapters(model, tmp_path / "task")
    stored = load_file(directory / "adapters.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    half = load_adapters(MiniAlbertModel.from_pretrained(student, dtype=torch.bfloat16), directory)
    assert torch.equal(first(half, inputs), first(model, inputs))
    full = load_adapters(MiniAlbertModel.from_pretrained(student, dtype=torch.float32), directory)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    torch.testing.assert_close(first(full, inputs), first(model, inputs).float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_backbones_attention_implementation_is_kept(student, saved, implementation):
    backbone = MiniAlbertModel.from_pretrained(student, attn_implementation=implementation)
    assert load_adapters(backbone, saved).config._attn_implementation == implementation


def test_a_pipeline_runs_on_a_loaded_model(tmp_path, tiny_student_config, tiny_tokenizer):
    torch.manual_seed(0)
    model = MiniAlbertForSequenceClassification(tiny_student_config).eval()
    model.config.id2label, model.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    save_adapters(model, tmp_path / "task", tokenizer=tiny_tokenizer)
    loaded = load_adapters(model.minialbert, tmp_path / "task")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "task")
    classify = pipeline("text-classification", model=loaded, tokenizer=tokenizer, device="cpu")
    answers = classify("the cat sat on the mat", top_k=None)
    logits = first(model, tiny_tokenizer("the cat sat on the mat", return_tensors="pt"))
    expected = dict(zip(("bad", "good"), logits.softmax(-1)[0].tolist(), strict=True))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected)


# Refusals


def test_another_backbone_is_refused_by_name_and_fingerprint(student, saved, tmp_path):
    torch.manual_seed(9)
    MiniAlbertModel(small()).save_pretrained(tmp_path / "other-student")
    expected = backbone_fingerprint(MiniAlbertModel.from_pretrained(student))[:12]
    other = MiniAlbertModel.from_pretrained(tmp_path / "other-student")
    message = (
        rf"trained on the backbone tiny-student \({expected}\), but this one is other-student "
        rf"\({backbone_fingerprint(other)[:12]}\): load the student they were trained on"
    )
    with pytest.raises(UserError, match=message):
        load_adapters(other, saved)


def test_adapters_of_a_backbone_that_was_trained_too_are_refused_on_the_original(student, tmp_path):
    model = tune(student)
    move(model.minialbert.block.parameters(), 6)
    save_adapters(model, tmp_path / "task")
    with pytest.raises(UserError, match="trained on the backbone tiny-student"):
        load_adapters(MiniAlbertModel.from_pretrained(student), tmp_path / "task")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, r"adapter_config\.json: expected format_version 1.*got 2"),
        ({"architecture": "BertModel"}, r"architecture must be one of .*got 'BertModel'"),
        ({"weights": "../elsewhere.safetensors"}, "weights: Extra inputs are not permitted"),
        ({"num_labels": 10**15}, r"id2label must number 1000000000000000 labels"),
        ({"id2label": {"0": "red", "1": "green", "5": "blue"}}, r"id2label must number 3 labels"),
        ({"id2label": {"0": "red", "1": "green", "blue": "2"}}, r"id2label must number 3 labels"),
        ({"num_iterations": 99}, "num_iterations is 99, and the backbone that they were trained on has 3"),
        ({"num_iterations": -1}, "num_iterations is -1, and the backbone"),
        ({"adapter_reduction_factor": "8"}, "adapter_reduction_factor: Input should be a valid integer"),
        ({"adapter_reduction_factor": 64}, r"must lie between 1 and hidden_size \(32\), got 64"),
        ({"adapter_init": "zero"}, "adapter_init must be"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"classifier_dropout": 7}, "classifier_dropout must be a fraction"),
        (
            {"adapter_reduction_factor": 4},
            r"of another shape: attention_adapters\.0\.down\.bias \(file \(4,\)",
        ),
    ],
)
def test_a_record_that_was_changed_is_refused_by_field(student, saved, change, message):
    edit(saved, **change)
    with pytest.raises(UserError, match=message):
        load_adapters(MiniAlbertModel.from_pretrained(student), saved)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000, '{"peft_type": "LORA"}'])
def test_a_record_that_is_not_one_is_refused(student, saved, text):
    (saved / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json.*(not readable JSON|format_version)"):
        load_adapters(MiniAlbertModel.from_pretrained(student), saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("ffn_adapters.1.up.bias"), r"missing: ffn_adapters\.1\.up\.bias"),
        (lambda tensors: tensors.pop("classifier.weight"), r"missing: classifier\.weight"),
        (lambda tensors: tensors.update({"block.ffn.bias": torch.ones(48)}), r"unknown: block\.ffn\.bias"),
        (
            lambda tensors: tensors.update({"classifier.weight": torch.ones(2, 32)}),
            r"of another shape: classifier\.weight \(file \(2, 32\), model \(3, 32\)\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(student, saved, change, message):
    tensors = load_file(saved / "adapters.safetensors")
    change(tensors)
    save_file(tensors, saved / "adapters.safetensors")
    with pytest.raises(UserError, match=message):
        load_adapters(MiniAlbertModel.from_pretrained(student), saved)


def test_damaged_weights_are_refused(student, saved):
    content = (saved / "adapters.safetensors").read_bytes()
    for damaged in (b"", content[:100], content[:-4], b"\xff" * 64):
        (saved / "adapters.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=r"adapters\.safetensors is damaged"):
            load_adapters(MiniAlbertModel.from_pretrained(student), saved)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapters.safetensors"])
def test_a_missing_file_is_named(student, saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=rf"has no {name}: expected a directory written by save_adapters"):
        load_adapters(MiniAlbertModel.from_pretrained(student), saved)


def test_what_is_no_directory_and_not_on_the_hub_is_refused(student, saved, tmp_path):
    backbone = MiniAlbertModel.from_pretrained(student)
    for path in (tmp_path / "nowhere", saved / "adapters.safetensors", "./nowhere"):
        with pytest.raises(UserError, match="is not a directory: expected one written by save_adapters"):
            load_adapters(backbone, path)
    with pytest.raises(UserError, match=r"owner/no-such-adapters is not a directory, and the hub"):
        load_adapters(backbone, "owner/no-such-adapters")


def test_only_adapted_task_models_can_be_saved(student, tmp_path):
    with pytest.raises(UserError, match="has no adapters to save"):
        save_adapters(MiniAlbertForSequenceClassification.from_pretrained(student), tmp_path / "task")
    for model_class in (MiniAlbertModel, MiniAlbertForMaskedLM):
        with pytest.raises(UserError, match=f"{model_class.__name__} has no task head to save"):
            save_adapters(tune(student, model_class), tmp_path / "task")
    assert not (tmp_path / "task").exists()


# What a directory looks like afterwards


def test_a_directory_in_use_is_replaced_only_when_asked(student, saved, inputs):
    (saved / "README.md").write_text("mine")
    model = tune(student, MiniAlbertForTokenClassification, seed=8)
    content = (saved / "adapters.safetensors").read_bytes()
    with pytest.raises(UserError, match="is not empty: give overwrite=True"):
        save_adapters(model, saved)
    assert (saved / "adapters.safetensors").read_bytes() == content
    save_adapters(model, saved, overwrite=True)
    loaded = load_adapters(MiniAlbertModel.from_pretrained(student), saved)
    assert torch.equal(first(loaded, inputs), first(model, inputs))
    assert (saved / "README.md").read_text() == "mine"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["colours", "students"]


def test_an_empty_directory_and_missing_parents_are_fine(student, tmp_path):
    model = tune(student)
    (tmp_path / "empty").mkdir()
    save_adapters(model, tmp_path / "empty")
    assert save_adapters(model, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert len(list((tmp_path / "empty").iterdir())) == len(list((tmp_path / "a" / "b").iterdir())) == 2


def test_a_file_in_the_way_is_refused(student, tmp_path):
    (tmp_path / "task").write_text("mine")
    with pytest.raises(UserError, match="is a file: expected a folder"):
        save_adapters(tune(student), tmp_path / "task", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        save_adapters(tune(student), tmp_path / "task" / "inside")
    assert (tmp_path / "task").read_text() == "mine"


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": float("nan")}])
def test_metadata_that_json_cannot_hold_leaves_nothing(student, tmp_path, metadata):
    with pytest.raises(UserError, match="metadata of adapters must be what JSON can hold"):
        save_adapters(tune(student), tmp_path / "task", metadata=metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["students"]


class BrokenTokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("half")
        raise OSError("no space left")


def test_a_failure_half_way_keeps_the_former_adapters(student, saved):
    content = (saved / "adapter_config.json").read_text()
    with pytest.raises(UserError, match="no space left"):
        save_adapters(tune(student, seed=8), saved, tokenizer=BrokenTokenizer(), overwrite=True)
    assert (saved / "adapter_config.json").read_text() == content
    assert sorted(path.name for path in saved.parent.iterdir()) == ["colours", "students"]


# Several tasks


@pytest.fixture
def tasks(student, tmp_path):
    expected = {}
    for seed, (name, model_class) in enumerate(
        {"cola": MiniAlbertForSequenceClassification, "ner": MiniAlbertForTokenClassification}.items()
    ):
        expected[name] = tune(student, model_class, seed=20 + seed)
        save_adapters(expected[name], tmp_path / name)
    tasks = AdaptedTasks(MiniAlbertForMaskedLM.from_pretrained(student))
    for name in expected:
        tasks.load(name, tmp_path / name)
    return tasks, expected


@torch.no_grad()
def test_interleaved_tasks_answer_as_each_alone(tasks, inputs):
    tasks, expected = tasks
    assert tasks.names == ("cola", "ner")
    for name in ("cola", "ner", "ner", "cola", "ner", "cola"):
        assert torch.equal(tasks(name, **inputs).logits, expected[name](**inputs).logits)
        assert torch.equal(tasks[name](**inputs).logits, expected[name](**inputs).logits)


def test_the_backbone_is_in_memory_once(tasks):
    tasks, expected = tasks
    own = {parameter.data_ptr() for parameter in tasks.backbone.parameters()}
    everything = {p.data_ptr(): p.numel() for name in tasks.names for p in tasks[name].parameters()}
    assert own <= everything.keys()
    added = sum(size for pointer, size in everything.items() if pointer not in own)
    assert added == sum(count_parameters(model).trainable for model in expected.values())


def test_gradients_are_the_callers_choice(tasks, inputs):
    tasks, _ = tasks
    assert tasks("cola", **inputs).logits.requires_grad
    with torch.no_grad():
        assert not tasks("cola", **inputs).logits.requires_grad


def test_tasks_are_unloaded_and_unknown_ones_refused(tasks, inputs, tmp_path):
    tasks, expected = tasks
    with pytest.raises(UserError, match="a task 'cola' is loaded already"):
        tasks.load("cola", tmp_path / "ner")
    tasks.unload("cola")
    assert tasks.names == ("ner",)
    for use in (lambda: tasks["cola"], lambda: tasks("cola", **inputs), lambda: tasks.unload("cola")):
        with pytest.raises(UserError, match=r"no task 'cola' is loaded: .*\(ner\)"):
            use()
    assert torch.equal(first(tasks["ner"], inputs), first(expected["ner"], inputs))
    tasks.load("cola", tmp_path / "cola")
    assert torch.equal(first(tasks["cola"], inputs), first(expected["cola"], inputs))


def test_a_task_that_fails_to_load_is_not_kept(tasks, tmp_path):
    tasks, _ = tasks
    with pytest.raises(UserError, match="is not a directory"):
        tasks.load("sst2", tmp_path / "sst2")
    assert tasks.names == ("cola", "ner")

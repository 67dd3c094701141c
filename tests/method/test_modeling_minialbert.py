"""The recursive student: the release's numbers, Eq. 4 by hand, and the contract with Transformers."""

import json
import os
import pickle
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_teachers import perturbed
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    modeling_utils,
    pipeline,
)
from transformers.utils import PushToHubMixin

from minialbert import (
    MiniAlbertConfig,
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
)
from minialbert.method.configuration_minialbert import AUTO_MAP

AUTO_CLASSES = {
    MiniAlbertModel: AutoModel,
    MiniAlbertForMaskedLM: AutoModelForMaskedLM,
    MiniAlbertForSequenceClassification: AutoModelForSequenceClassification,
    MiniAlbertForTokenClassification: AutoModelForTokenClassification,
    MiniAlbertForQuestionAnswering: AutoModelForQuestionAnswering,
}
ALL = pytest.mark.parametrize("model_class", AUTO_CLASSES, ids=lambda cls: cls.__name__)
RELEASES = pytest.mark.parametrize("release", ["adapter-factorised", "plain-fullrank"])
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def small(**overrides):
    values = {
        "vocab_size": 61,
        "embedding_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "adapter_reduction_factor": 8,
    }
    return MiniAlbertConfig(**{**values, **overrides})


def build(model_class=MiniAlbertModel, seed=0, **overrides):
    return perturbed(model_class, small(**overrides), seed)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    mask[2, 3:] = 0
    return {
        "input_ids": torch.randint(1, 61, (3, 10), generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, (3, 10), generator=generator),
    }


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def first(outputs):
    return next(iter(outputs.values()))


# The release's numbers


@RELEASES
@IMPLEMENTATIONS
@torch.no_grad()
def test_masked_lm_reproduces_the_release(release_dir, release, implementation):
    expected = load_file(release_dir / release / "expected.safetensors")
    model = MiniAlbertForMaskedLM.from_pretrained(
        release_dir / release / "student-mlm", attn_implementation=implementation
    )
    given = {key.removeprefix("in."): value for key, value in expected.items() if key.startswith("in.")}
    outputs = model(**given, output_hidden_states=True, output_attentions=True)
    assert relative_error(outputs.logits, expected["student.logits"]) < 1e-5
    assert relative_error(outputs.loss, expected["student.loss"]) < 1e-5
    assert len(outputs.hidden_states) == 4
    assert len(outputs.attentions) == 3
    for index, state in enumerate(outputs.hidden_states):
        assert relative_error(state, expected[f"student.hidden_states.{index}"]) < 1e-5
    for index, rows in enumerate(outputs.attentions):
        assert relative_error(rows, expected[f"student.attentions.{index}"]) < 1e-5
    # Without attention rows the configured kernel runs.
    assert relative_error(model(**given).logits, expected["student.logits"]) < 1e-5


@RELEASES
@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("head", "model_class"),
    [("sequence", MiniAlbertForSequenceClassification), ("token", MiniAlbertForTokenClassification)],
)
@torch.no_grad()
def test_classifiers_reproduce_the_release(release_dir, release, implementation, head, model_class):
    directory = release_dir / release
    given = load_file(directory / "expected.safetensors")
    expected = load_file(directory / f"expected-{head}-classification.safetensors")
    model = model_class.from_pretrained(
        directory / f"student-{head}-classification", attn_implementation=implementation
    )
    outputs = model(
        **{key: given[f"in.{key}"] for key in ("input_ids", "attention_mask", "token_type_ids")},
        labels=expected["labels"],
    )
    assert relative_error(outputs.logits, expected["logits"]) < 1e-5
    assert relative_error(outputs.loss, expected["loss"]) < 1e-5


@pytest.mark.parametrize(
    ("rank", "reduction_factor", "parameters"),
    [
        (768, None, 30_925_056),
        (312, None, 17_012_112),
        (768, 16, 31_838_016),
        (312, 16, 17_925_072),
        (128, 16, 12_072_768),
    ],
)
def test_published_variants_have_their_parameter_counts(rank, reduction_factor, parameters):
    with torch.device("meta"):
        model = MiniAlbertModel(
            MiniAlbertConfig(embedding_size=rank, adapter_reduction_factor=reduction_factor)
        )
    assert model.num_parameters() == parameters
    adapters = [*model.attention_adapters.parameters(), *model.ffn_adapters.parameters()]
    assert sum(parameter.numel() for parameter in adapters) == (912_960 if reduction_factor else 0)


# The equations


@pytest.mark.parametrize("num_iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("reduction_factor", [8, None])
@torch.no_grad()
def test_forward_is_the_unrolled_loop(inputs, num_iterations, reduction_factor):
    model = build(adapter_reduction_factor=reduction_factor)
    del inputs["attention_mask"]
    state = model.embeddings(inputs["input_ids"], inputs["token_type_ids"], None, None)
    by_hand = [state]
    for iteration in range(num_iterations):
        pair = min(iteration, 2)  # past the trained iterations the last pair repeats
        phi_attention = model.attention_adapters[pair] if reduction_factor else nn.Identity()
        phi_ffn = model.ffn_adapters[pair] if reduction_factor else nn.Identity()
        attended, _ = model.block.attention(phi_attention(state), None, False)
        adapted = phi_ffn(attended)
        inner = nn.functional.gelu(model.block.ffn(adapted))
        state = model.block.LayerNorm(model.block.ffn_output(inner) + adapted)
        by_hand.append(state)
    outputs = model(**inputs, num_iterations=num_iterations, output_hidden_states=True)
    assert len(outputs.hidden_states) == num_iterations + 1
    for actual, expected in zip(outputs.hidden_states, by_hand, strict=True):
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(outputs.last_hidden_state, by_hand[-1])


@pytest.mark.parametrize("layer_norm", [True, False])
@torch.no_grad()
def test_adapter_is_equation_3(layer_norm):
    adapter = build(adapter_layer_norm=layer_norm).attention_adapters[1]
    x = torch.randn(2, 5, 32)
    expected = nn.functional.gelu(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T
    expected = expected + adapter.up.bias + x
    if layer_norm:
        expected = (expected - expected.mean(-1, keepdim=True)) / expected.std(-1, correction=0, keepdim=True)
        expected = expected * adapter.LayerNorm.weight + adapter.LayerNorm.bias
    torch.testing.assert_close(adapter(x), expected)


@torch.no_grad()
def test_fewer_iterations_are_a_prefix_of_more(inputs):
    model = build()
    full = model(**inputs, output_hidden_states=True, num_iterations=5).hidden_states
    for k in range(1, 5):
        part = model(**inputs, output_hidden_states=True, num_iterations=k).hidden_states
        assert len(part) == k + 1
        for a, b in zip(part, full, strict=False):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@torch.no_grad()
def test_identity_adapters_change_nothing(inputs):
    torch.manual_seed(0)
    adapted = MiniAlbertModel(small(adapter_layer_norm=False, adapter_init="identity")).eval()
    plain = MiniAlbertModel(small(adapter_reduction_factor=None)).eval()
    missing, unexpected = plain.load_state_dict(adapted.state_dict(), strict=False)
    assert not missing
    assert all("adapters" in key for key in unexpected)
    torch.testing.assert_close(adapted(**inputs)[0], plain(**inputs)[0], rtol=0, atol=0)


def test_adapters_start_as_their_config_says():
    for init, layer_norm in (("as-published", True), ("as-published", False), ("identity", False)):
        model = MiniAlbertForMaskedLM(small(adapter_init=init, adapter_layer_norm=layer_norm))
        for adapter in (*model.minialbert.attention_adapters, *model.minialbert.ffn_adapters):
            # torch's own range for Linear, far wider than initializer_range
            assert 0.02 < adapter.down.weight.std() < 32**-0.5
            assert adapter.down.bias.abs().max() > 0
            assert bool(adapter.up.weight.abs().max() > 0) == (init == "as-published")
            assert bool(adapter.up.bias.abs().max() > 0) == (init == "as-published")


@torch.no_grad()
def test_adapters_added_to_a_saved_student_start_as_the_identity(tmp_path, inputs):
    plain = build(MiniAlbertForMaskedLM, adapter_reduction_factor=None)
    plain.save_pretrained(tmp_path)
    added = {"adapter_reduction_factor": 8, "adapter_layer_norm": False, "adapter_init": "identity"}
    adapted = MiniAlbertForMaskedLM.from_pretrained(tmp_path, **added)
    assert adapted.num_parameters() > plain.num_parameters()
    assert all(adapter.down.weight.any() for adapter in adapted.minialbert.attention_adapters)
    torch.testing.assert_close(adapted(**inputs).logits, plain(**inputs).logits, rtol=0, atol=0)


def test_other_weights_start_with_the_configured_spread():
    model = MiniAlbertModel(small(hidden_size=128, embedding_size=64, initializer_range=0.02))
    assert model.block.attention.query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.embeddings.projection.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.embeddings.word_embeddings.weight[0].any()  # the padding token
    assert not model.block.ffn.bias.any()


def test_gelu_new_reaches_the_block_but_not_the_adapters(inputs):
    with torch.no_grad():
        exact, tanh = build(), build(hidden_act="gelu_new")
        assert not torch.equal(exact(**inputs)[0], tanh(**inputs)[0])
        x = torch.randn(2, 5, 32)
        assert torch.equal(exact.ffn_adapters[0](x), tanh.ffn_adapters[0](x))


# Attention, masks, dropout


@torch.no_grad()
def test_eager_equals_sdpa_with_padding(inputs):
    model = build()
    outputs = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        outputs[implementation] = model(**inputs).last_hidden_state
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(outputs["eager"][valid], outputs["sdpa"][valid])


@IMPLEMENTATIONS
@torch.no_grad()
def test_asking_for_attention_rows_changes_no_output(inputs, implementation):
    model = build()
    model.set_attn_implementation(implementation)
    valid = inputs["attention_mask"].bool()
    with_rows = model(**inputs, output_attentions=True)
    torch.testing.assert_close(with_rows[0][valid], model(**inputs)[0][valid])
    assert all(rows.shape == (3, 4, 10, 10) for rows in with_rows.attentions)


@IMPLEMENTATIONS
@torch.no_grad()
def test_attention_rows_sum_to_one_and_skip_padding(inputs, implementation):
    model = build()
    model.set_attn_implementation(implementation)
    for rows in model(**inputs, output_attentions=True).attentions:
        torch.testing.assert_close(rows.sum(-1), torch.ones(3, 4, 10))
        padded = ~inputs["attention_mask"].bool()
        assert rows.masked_select(padded[:, None, None, :].expand_as(rows)).abs().max() < 1e-12


@torch.no_grad()
def test_attention_rows_are_taken_before_dropout(inputs):
    model = build(attention_probs_dropout_prob=0.9, hidden_dropout_prob=0.0)
    still = model(**inputs, output_attentions=True)
    model.train()
    torch.manual_seed(3)
    training = model(**inputs, output_attentions=True)
    torch.testing.assert_close(training.attentions[0], still.attentions[0])
    assert not torch.allclose(training.last_hidden_state, still.last_hidden_state)
    for rows in training.attentions:
        torch.testing.assert_close(rows.sum(-1), torch.ones(3, 4, 10))


@IMPLEMENTATIONS
@torch.no_grad()
def test_padding_does_not_reach_valid_positions(inputs, implementation):
    model = build(MiniAlbertForTokenClassification, num_labels=4)
    model.set_attn_implementation(implementation)
    valid = inputs["attention_mask"].bool()
    before = model(**inputs).logits
    changed = {**inputs, "input_ids": torch.where(valid, inputs["input_ids"], 60 - inputs["input_ids"])}
    torch.testing.assert_close(model(**changed).logits[valid], before[valid])
    alone = {key: value[2:, :3] for key, value in inputs.items()}  # as if never padded
    torch.testing.assert_close(model(**alone).logits[0], before[2, :3])


@ALL
@torch.no_grad()
def test_dropout_is_off_in_eval_and_on_in_training(inputs, model_class):
    model = build(model_class)
    assert torch.equal(first(model(**inputs)), first(model(**inputs)))
    model.train()
    assert not torch.equal(first(model(**inputs)), first(model(**inputs)))


def test_gradient_checkpointing_gives_equal_gradients(inputs):
    gradients = []
    for checkpointing in (False, True):
        model = build(MiniAlbertForMaskedLM)
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.train()
        torch.manual_seed(5)  # the same dropout twice, also when recomputed
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_gradient_reaches_every_parameter(inputs):
    model = build(MiniAlbertForMaskedLM)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


# Losses of the heads


@torch.no_grad()
def test_token_losses_ignore_minus_100(inputs):
    for model in (build(MiniAlbertForMaskedLM), build(MiniAlbertForTokenClassification, num_labels=61)):
        labels = torch.full((3, 10), -100)
        labels[0, 2], labels[1, 4] = 7, 9
        outputs = model(**inputs, labels=labels)
        log_probabilities = outputs.logits.log_softmax(-1)
        expected = -(log_probabilities[0, 2, 7] + log_probabilities[1, 4, 9]) / 2
        torch.testing.assert_close(outputs.loss, expected)


@torch.no_grad()
def test_sequence_losses_follow_the_problem(inputs):
    scores = torch.tensor([0.5, 2.0, -1.0])
    regression = build(MiniAlbertForSequenceClassification, num_labels=1)
    outputs = regression(**inputs, labels=scores)
    torch.testing.assert_close(outputs.loss, (outputs.logits[:, 0] - scores).square().mean())

    classes = torch.tensor([0, 2, 1])
    single = build(MiniAlbertForSequenceClassification, num_labels=3)
    outputs = single(**inputs, labels=classes)
    torch.testing.assert_close(outputs.loss, -outputs.logits.log_softmax(-1)[range(3), classes].mean())

    several = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    outputs = single(**inputs, labels=several)
    probabilities = outputs.logits.sigmoid()
    expected = -(several * probabilities.log() + (1 - several) * (1 - probabilities).log()).mean()
    torch.testing.assert_close(outputs.loss, expected)

    named = build(
        MiniAlbertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"
    )
    torch.testing.assert_close(named(**inputs, labels=several.long()).loss, expected)


@torch.no_grad()
def test_question_answering_loss_ignores_answers_outside_the_input(inputs):
    model = build(MiniAlbertForQuestionAnswering)
    outputs = model(
        **inputs, start_positions=torch.tensor([1, 0, 99]), end_positions=torch.tensor([2, 4, 99])
    )
    start, end = outputs.start_logits.log_softmax(-1), outputs.end_logits.log_softmax(-1)
    expected = -(start[0, 1] + start[1, 0]) / 2 - (end[0, 2] + end[1, 4]) / 2
    torch.testing.assert_close(outputs.loss, expected / 2)


# Inputs and outputs


@ALL
@torch.no_grad()
def test_outputs_honour_their_switches(inputs, model_class):
    model = build(model_class)
    plain = model(**inputs)
    assert plain.hidden_states is None
    assert plain.attentions is None
    full = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in full.hidden_states] == [(3, 10, 32)] * 4
    assert [rows.shape for rows in full.attentions] == [(3, 4, 10, 10)] * 3
    as_tuple = model(**inputs, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert type(as_tuple) is tuple
    for actual, expected in zip(as_tuple, full.to_tuple(), strict=True):
        torch.testing.assert_close(actual, expected)


@ALL
@torch.no_grad()
def test_outputs_follow_the_configuration(inputs, model_class):
    model = build(model_class, output_hidden_states=True, return_dict=False)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    outputs = model(**inputs)
    assert type(outputs) is tuple
    hidden_states, attentions = outputs[-2:]
    assert (len(hidden_states), len(attentions)) == (4, 3)
    asked = model(**inputs, output_hidden_states=False, output_attentions=False, return_dict=True)
    assert asked.hidden_states is None
    assert asked.attentions is None


def test_tuple_begins_with_the_loss(inputs):
    model = build(MiniAlbertForMaskedLM)
    with_labels = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    assert with_labels[0].shape == ()
    assert with_labels[1].shape == (3, 10, 61)


@ALL
@torch.no_grad()
def test_embeddings_can_be_given_instead_of_ids(inputs, model_class):
    model = build(model_class)
    expected = first(model(**inputs))
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert embeds.shape == (3, 10, 8)
    torch.testing.assert_close(first(model(inputs_embeds=embeds, **inputs)), expected)


@ALL
def test_mistaken_inputs_are_refused(inputs, model_class):
    model = build(model_class)
    embeds = torch.zeros(3, 10, 8)
    for given in ({}, {"input_ids": inputs["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**given)
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"num_iterations must be at least 1, got {count}"):
            model(**inputs, num_iterations=count)
    with pytest.raises(ValueError, match=r"17 tokens but this model has positions for 16.*truncat"):
        model(torch.ones(1, 17, dtype=torch.int64))


@torch.no_grad()
def test_positions_can_be_given(inputs):
    model = build()
    expected = model(**inputs)[0]
    assert torch.equal(model(**inputs, position_ids=torch.arange(10)[None])[0], expected)
    assert not torch.allclose(model(**inputs, position_ids=torch.arange(10).flip(0)[None])[0], expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [70, 40])
@torch.no_grad()
def test_vocabulary_can_be_resized(tmp_path, tied, size):
    model = build(MiniAlbertForMaskedLM, tie_word_embeddings=tied)
    ids = torch.tensor([[5, 17, 39, 2]])
    before = model(ids).logits
    model.resize_token_embeddings(size)
    after = model(ids).logits
    kept = min(size, 61)
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    assert after.shape[-1] == model.config.vocab_size == model.mlm_head.decoder.bias.numel() == size
    same = model.mlm_head.decoder.weight is model.minialbert.embeddings.word_embeddings.weight
    assert same == tied
    model.save_pretrained(tmp_path)
    assert torch.equal(MiniAlbertForMaskedLM.from_pretrained(tmp_path)(ids).logits, after)


def test_tied_decoder_has_the_rank_of_the_word_table():
    tied, untied = build(MiniAlbertForMaskedLM), build(MiniAlbertForMaskedLM, tie_word_embeddings=False)
    assert tied.mlm_head.decoder.weight is tied.get_input_embeddings().weight
    assert tied.mlm_head.decoder.weight.shape == (61, 8)
    assert untied.mlm_head.decoder.weight.shape == (61, 32)
    assert untied.get_output_embeddings() is untied.mlm_head.decoder


# Saving and loading


def test_the_code_is_there_before_an_upload(tmp_path, monkeypatch):
    uploaded = []
    for name in ("hf_api", "create_and_tag_model_card"):
        monkeypatch.setattr(modeling_utils, name, mock.MagicMock(), raising=False)

    def upload(self, folder, repo_id, timestamps, **_):
        uploaded.extend(name for name in os.listdir(folder) if name not in timestamps)

    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    model = build(MiniAlbertForSequenceClassification)
    model.save_pretrained(str(tmp_path), push_to_hub=True, repo_id="me/mine")
    assert {"config.json", "configuration_minialbert.py", "modeling_minialbert.py"} <= set(uploaded)


@torch.no_grad()
def test_weights_on_disk_give_the_same_logits(tmp_path, inputs):
    model = build(MiniAlbertForSequenceClassification, adapter_reduction_factor=8)
    model.save_pretrained(tmp_path / "model")
    offloaded = MiniAlbertForSequenceClassification.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    assert offloaded.minialbert.attention_adapters[0].up.weight.is_meta
    assert torch.equal(offloaded(**inputs).logits, model(**inputs).logits)


@ALL
@pytest.mark.parametrize("reduction_factor", [8, None])
@torch.no_grad()
def test_saved_and_loaded_models_are_equal(tmp_path, inputs, model_class, reduction_factor):
    model = build(model_class, adapter_reduction_factor=reduction_factor, num_labels=3)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "configuration_minialbert.py",
        "model.safetensors",
        "modeling_minialbert.py",
    ]
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    for loader in (model_class, AUTO_CLASSES[model_class]):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is model_class
        assert not loaded.training
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(first(loaded(**inputs)), first(model(**inputs)))


@torch.no_grad()
def test_loading_into_another_task_keeps_the_encoder(tmp_path, release_dir):
    model = build(MiniAlbertForMaskedLM)
    model.save_pretrained(tmp_path)
    loaded = MiniAlbertForTokenClassification.from_pretrained(tmp_path, num_labels=5)
    for name, tensor in model.minialbert.state_dict().items():
        assert torch.equal(loaded.minialbert.state_dict()[name], tensor), name
    assert loaded.classifier.weight.shape == (5, 32)

    source = release_dir / "adapter-factorised" / "student-mlm"
    released = MiniAlbertForMaskedLM.from_pretrained(source)
    for loaded in (
        MiniAlbertForTokenClassification.from_pretrained(source, num_labels=5).minialbert,
        MiniAlbertModel.from_pretrained(source),
    ):
        for name, tensor in released.minialbert.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_saving_twice_into_one_directory_works(tmp_path):
    build().save_pretrained(tmp_path)
    MiniAlbertModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    MiniAlbertModel.from_pretrained(tmp_path)


@torch.no_grad()
def test_fill_mask_pipeline_runs_on_a_saved_student(tmp_path, tiny_tokenizer, tiny_student_config):
    MiniAlbertForMaskedLM(tiny_student_config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu")
    answers = fill(f"the {tiny_tokenizer.mask_token} is", top_k=3)
    assert len(answers) == 3
    assert all(0 <= answer["score"] <= 1 for answer in answers)


# Checkpoints of the release


def test_release_saved_again_has_our_keys(tmp_path, release_dir):
    model = MiniAlbertForMaskedLM.from_pretrained(release_dir / "adapter-factorised" / "student-mlm")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "minialbert"
    assert config["architectures"] == ["MiniAlbertForMaskedLM"]
    assert not {"use_adapter", "reduction_factor", "num_hidden_groups"} & config.keys()
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


FFN = "albert.albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"


@pytest.mark.parametrize("model_class", [MiniAlbertForMaskedLM, MiniAlbertModel])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(FFN), r"missing: (minialbert\.)?block\.ffn\.weight"),
        (lambda tensors: tensors.pop("albert.projector.bias"), r"missing: .*projection\.bias"),
        (lambda tensors: tensors.update({"albert.extra": torch.ones(2)}), r"unknown: albert\.extra"),
        (
            lambda tensors: tensors.update({"albert.att_adapters.3.norm.bias": torch.ones(48)}),
            r"unknown: .*attention_adapters\.3\.LayerNorm\.bias",
        ),
        (
            lambda tensors: tensors.update({FFN: torch.ones(2, 3)}),
            r"of another shape: .*block\.ffn\.weight \(file \(2, 3\), model \(96, 48\)\)",
        ),
    ],
)
def test_incomplete_releases_are_refused_by_key(release_copy, model_class, change, message):
    with pytest.raises(ValueError, match=message):
        model_class.from_pretrained(release_copy(weights=change))


def test_bare_release_encoder_loads(release_dir, release_copy):
    def bare(tensors):
        for key in list(tensors):
            tensor = tensors.pop(key)
            if key.startswith("albert."):
                tensors[key.removeprefix("albert.")] = tensor

    expected = MiniAlbertModel.from_pretrained(release_dir / "adapter-factorised" / "student-mlm")
    directory = release_copy(weights=bare)
    for loaded in (
        MiniAlbertModel.from_pretrained(directory),
        MiniAlbertForMaskedLM.from_pretrained(directory).minialbert,
    ):
        for name, tensor in expected.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_release_head_of_another_size_needs_permission(release_dir):
    source = release_dir / "adapter-factorised" / "student-token-classification"
    with pytest.raises(ValueError, match=r"of another shape: classifier\.bias"):
        MiniAlbertForTokenClassification.from_pretrained(source, num_labels=3)
    model = MiniAlbertForTokenClassification.from_pretrained(
        source, num_labels=3, ignore_mismatched_sizes=True
    )
    assert model.classifier.weight.shape == (3, 48)


def test_release_encoder_of_another_shape_is_refused_always(release_copy):
    directory = release_copy(weights=lambda tensors: tensors.update({FFN: torch.ones(2, 3)}))
    with pytest.raises(ValueError, match=r"of another shape: minialbert\.block\.ffn\.weight"):
        MiniAlbertForMaskedLM.from_pretrained(directory, ignore_mismatched_sizes=True)


def test_ordinary_albert_is_refused(tmp_path):
    config = AlbertConfig(
        vocab_size=61,
        embedding_size=8,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=2,
    )
    AlbertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ordinary ALBERT.*transformers\.AutoModel"):
        MiniAlbertForMaskedLM.from_pretrained(tmp_path)


class RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_pickled_code_is_not_run(tmp_path, release_copy):
    flag = tmp_path / "flag"
    directory = release_copy()
    torch.save({"weight": RunsACommand(f"touch {flag}")}, directory / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError):
        MiniAlbertForMaskedLM.from_pretrained(directory)
    assert not flag.exists()


def test_a_classifier_leaves_out_what_its_first_token_does_not_depend_on():
    """The last iteration computes one row; logits and gradients are those of the full computation."""
    config = MiniAlbertConfig(
        vocab_size=50, hidden_size=24, embedding_size=8, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=40, adapter_reduction_factor=4, max_position_embeddings=20,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MiniAlbertForSequenceClassification(config).double().eval()
    ids = torch.randint(1, 50, (4, 11))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    lengths = []
    hook = model.minialbert.block.register_forward_hook(lambda *call: lengths.append(call[-1][0].shape[1]))
    short = model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 1, 0]))
    hook.remove()
    assert lengths == [11, 11, 1]
    full = model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 1, 0]), output_hidden_states=True)
    assert full.hidden_states[-1].shape == (4, 11, 24)
    torch.testing.assert_close(short.logits, full.logits, rtol=1e-12, atol=1e-12)
    few = torch.autograd.grad(short.loss, list(model.parameters()), allow_unused=True)
    all_of_them = torch.autograd.grad(full.loss, list(model.parameters()), allow_unused=True)
    for one, other in zip(few, all_of_them, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        again = model(ids, attention_mask=mask).logits  # eager attention has its softmax in fp32
        torch.testing.assert_close(again, full.logits, rtol=1e-6, atol=1e-6)

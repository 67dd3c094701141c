"""A configuration says one student, or refuses to be built."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from minialbert import MiniAlbertConfig
from minialbert.method.configuration_minialbert import AUTO_MAP, config_from_release

RELEASE = {"model_type": "albert", "use_adapter": True, "reduction_factor": 8, "hidden_size": 48}


def test_defaults_are_the_papers_minialbert_128():
    config = MiniAlbertConfig()
    assert (config.embedding_size, config.hidden_size, config.num_hidden_layers) == (128, 768, 6)
    assert config.adapter_size == 48
    assert MiniAlbertConfig(adapter_reduction_factor=None).adapter_size is None


@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "embedding_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
    ],
)
@pytest.mark.parametrize("value", [0, -3, 768.0, "768", True, None])
def test_sizes_are_positive_integers(name, value):
    with pytest.raises(ValueError, match=name):
        MiniAlbertConfig(**{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 7}, r"hidden_size \(768\) must be a multiple of num_attention_heads \(7\)"),
        ({"hidden_act": "nonsense"}, "hidden_act 'nonsense' is not one of"),
        ({"embedding_size": 1024}, r"embedding_size \(1024\).* give 768 for full rank"),
        ({"adapter_reduction_factor": 0}, "adapter_reduction_factor must lie between 1 and hidden_size"),
        ({"adapter_reduction_factor": 769}, "None builds a student without adapters"),
        ({"adapter_reduction_factor": 16.0}, "adapter_reduction_factor must be an integer or None"),
        ({"adapter_init": "zero"}, "adapter_init must be 'identity' or 'as-published', got 'zero'"),
        ({"adapter_init": "identity"}, "needs adapter_layer_norm=False"),
        ({"adapter_layer_norm": "no"}, "adapter_layer_norm must be true or false"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob must be a fraction"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob must be a fraction"),
        ({"classifier_dropout": "0.1"}, "classifier_dropout must be a fraction"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob must be a fraction"),
        ({"initializer_range": -1.0}, "initializer_range must be a number above 0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a number above 0"),
        ({"pad_token_id": 30522}, r"pad_token_id must lie in the vocabulary \(0 to 30521\), got 30522"),
        ({"pad_token_id": -1}, "pad_token_id must lie in the vocabulary"),
        ({"pad_token_id": True}, "pad_token_id must lie in the vocabulary"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MiniAlbertConfig(**values)


def test_identity_needs_no_layer_norm_where_there_are_no_adapters():
    MiniAlbertConfig(adapter_init="identity", adapter_layer_norm=False)
    MiniAlbertConfig(adapter_init="identity", adapter_reduction_factor=None)
    MiniAlbertConfig(pad_token_id=None)


def test_saved_and_loaded_configurations_are_equal(tmp_path):
    config = MiniAlbertConfig(
        hidden_size=48, embedding_size=8, num_attention_heads=4, adapter_layer_norm=False, num_labels=5
    )
    config.save_pretrained(tmp_path)
    assert MiniAlbertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    by_auto_class = AutoConfig.from_pretrained(tmp_path)
    assert type(by_auto_class) is MiniAlbertConfig
    assert by_auto_class.to_json_string() == config.to_json_string()


def test_auto_map_lists_all_six_classes(tmp_path):
    MiniAlbertConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == AUTO_MAP
    assert set(AUTO_MAP) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoModelForQuestionAnswering",
    }
    assert saved["model_type"] == "minialbert"


@pytest.mark.parametrize(("name", "factor"), [("adapter-factorised", 8), ("plain-fullrank", None)])
def test_release_configuration_is_translated(release_dir, name, factor):
    config = MiniAlbertConfig.from_pretrained(release_dir / name / "student-token-classification")
    assert config.model_type == "minialbert"
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (211, 48, 3)
    assert config.embedding_size == (16 if factor else 48)
    assert config.adapter_reduction_factor == factor
    assert (config.adapter_layer_norm, config.adapter_init) == (True, "as-published")
    assert config.tie_word_embeddings is False
    assert config.num_labels == 5
    assert config.classifier_dropout == 0.1


def test_release_dropout_of_its_own_is_kept():
    assert config_from_release({**RELEASE, "classifier_dropout": 0.3})["classifier_dropout"] == 0.3
    assert config_from_release({**RELEASE, "classifier_dropout": None})["classifier_dropout"] == 0.1


def test_release_without_activation_means_that_of_albert():
    assert config_from_release(RELEASE)["hidden_act"] == "gelu_new"


def test_adapters_that_the_release_switched_off_are_off():
    assert config_from_release({**RELEASE, "use_adapter": False})["adapter_reduction_factor"] is None


@pytest.mark.parametrize("key", ["num_hidden_groups", "inner_group_num"])
def test_several_blocks_are_refused(key):
    with pytest.raises(ValueError, match=f"one shared block, but {key} is 2"):
        config_from_release({**RELEASE, key: 2})


def test_ordinary_albert_and_other_models_are_refused():
    with pytest.raises(ValueError, match=r"ordinary ALBERT.*transformers\.AutoModel"):
        MiniAlbertConfig.from_dict({"model_type": "albert", "hidden_size": 48})
    with pytest.raises(ValueError, match="got model_type 'bert'"):
        MiniAlbertConfig.from_dict({"model_type": "bert"})


def test_a_key_that_a_release_config_leaves_out_has_the_default_of_albert() -> None:
    from transformers import AlbertConfig

    from minialbert.method.configuration_minialbert import _ALBERT_DEFAULTS, config_from_release

    albert = AlbertConfig()
    assert {key: getattr(albert, key) for key in _ALBERT_DEFAULTS} == _ALBERT_DEFAULTS
    assert config_from_release({"model_type": "albert", "use_adapter": False})["hidden_size"] == 4096


@pytest.mark.parametrize("text", ["[1, 2]", '"x"', "[" * 5_000])
def test_a_config_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(OSError, match=r"config\.json"):
        MiniAlbertConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "values", [{"num_labels": 10**12}, {"layer_norm_eps": [{}]}, {"id2label": [1]}, {"id2label": {}}]
)
def test_values_that_would_hang_or_break_are_value_errors(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values)) + "|does not fit"):
        MiniAlbertConfig.from_dict({"model_type": "minialbert", **values})

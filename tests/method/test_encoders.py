"""Teachers of several families: what a view holds, how they are loaded, and what is refused."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError
from minialbert.method.encoders import (
    ARCHITECTURES,
    HEADS,
    Teacher,
    enable_recording,
    forward_inputs,
    head_of,
    load_encoder,
    load_encoder_config,
    load_teacher,
    max_input_length,
    one_line,
    position_offset,
    quiet_loading,
    tell_misfit,
    view_encoder,
)
from minialbert.method.fast.recording import RECORDING
from minialbert.method.objective import Request
from minialbert.method.trainer import DistillationStudent

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
CONFIGS = {
    "bert": lambda: BertConfig(**SHAPE),
    "roberta": lambda: RobertaConfig(**SHAPE, pad_token_id=1),
    "electra": lambda: ElectraConfig(**SHAPE, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=61, dim=32, n_layers=4, n_heads=4, hidden_dim=48, max_position_embeddings=20
    ),
    "mpnet": lambda: MPNetConfig(**SHAPE, pad_token_id=1),
    "modernbert": lambda: ModernBertConfig(
        **SHAPE,
        local_attention=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "albert": lambda: AlbertConfig(**SHAPE, embedding_size=16),
}
FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def encoder(family="bert", **changes):
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[1, 7:] = 0
    ids = torch.randint(5, 60, (2, 10)).masked_fill(mask == 0, 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids), "labels": ids}


POSITIONS = torch.zeros(2, 10, dtype=torch.bool)
POSITIONS[0, 3] = POSITIONS[1, 2] = POSITIONS[1, 4] = True


# Views


@FAMILIES
@torch.no_grad()
def test_view_equals_plain_outputs(family, batch):
    model, valid = encoder(family), batch["attention_mask"].bool()
    model.set_attn_implementation("eager")
    expected = model(**forward_inputs(model, batch), output_attentions=True, output_hidden_states=True)
    teacher = Teacher(model, has_mlm_head=True)
    view = teacher.view(batch, Request(attention_layers=[2, 4], positions=POSITIONS))
    assert view.log_rows == (family != "mpnet")  # which does not take part in the registry
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(view.logits, expected.logits[POSITIONS], **close)
    assert sorted(view.hidden_states) == [0, 1, 2, 3, 4] and sorted(view.attention_rows) == [2, 4]
    for layer, states in view.hidden_states.items():
        torch.testing.assert_close(states[valid], expected.hidden_states[layer][valid], **close)
    for layer, rows in view.attention_rows.items():
        rows = rows.exp() if view.log_rows else rows
        assert rows.shape == (2, 4, 10, 10)
        queries = [r.transpose(1, 2)[valid] for r in (rows, expected.attentions[layer - 1])]
        torch.testing.assert_close(*queries, **close)
    assert teacher.num_layers == 4 and teacher.hidden_size == 32 and teacher.num_heads == 4


@FAMILIES
@torch.no_grad()
def test_view_without_positions_leaves_the_head_out(family, batch):
    model = encoder(family)
    enable_recording(model)
    head = next(module for name, module in model.named_children() if name != model.base_model_prefix)
    head.register_forward_hook(lambda *_: pytest.fail("the head ran"))
    view = view_encoder(model, batch)
    assert view.logits is None and view.attention_rows == {} and len(view.hidden_states) == 5


@pytest.mark.parametrize("chosen", [[], [(0, 3)]])
def test_any_number_of_positions(batch, chosen):
    positions = torch.zeros(2, 10, dtype=torch.bool)
    for place in chosen:
        positions[place] = True
    view = Teacher(encoder(), True).view(batch, Request(positions=positions))
    assert view.logits.shape == (len(chosen), 61)


def test_the_head_sees_only_the_chosen_positions(batch):
    model, seen = encoder(), []
    model.cls.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    teacher = Teacher(model, True)
    teacher.view(batch, Request(positions=POSITIONS))
    assert seen == [(1, 3, 32)]
    assert teacher.model(**forward_inputs(model, batch)).logits.shape == (2, 10, 61)  # the hook is gone


def test_view_of_a_bare_encoder(batch):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SHAPE), add_pooling_layer=False).eval()
    view = Teacher(model, has_mlm_head=False).view(batch, Request(attention_layers=[1], positions=POSITIONS))
    assert view.logits is None and sorted(view.attention_rows) == [1]


@pytest.mark.parametrize(("family", "takes"), [("bert", True), ("distilbert", False), ("mpnet", False)])
def test_inputs_that_a_model_does_not_take_are_left_out(family, takes, batch):
    names = {"input_ids", "attention_mask"} | ({"token_type_ids"} if takes else set())
    assert set(forward_inputs(encoder(family), {**batch, "window_ids": torch.arange(2)})) == names


@pytest.mark.parametrize(("family", "offset"), [("bert", 0), ("roberta", 2), ("mpnet", 2), ("modernbert", 0)])
def test_positions_reserved_for_padding(family, offset):
    model = encoder(family)
    assert position_offset(model) == offset
    assert max_input_length(model) == Teacher(model, True).max_length == 20 - offset


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert"])
def test_the_longest_input_is_one_that_fits(family):
    teacher = Teacher(encoder(family), True)
    ids = torch.randint(5, 60, (1, teacher.max_length))
    teacher.view({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    ids = torch.randint(5, 60, (1, teacher.max_length + 1))
    with pytest.raises((IndexError, RuntimeError)):
        teacher.view({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


# Frozen, and in eval mode


def test_teacher_is_frozen_and_stays_in_eval_mode(batch):
    teacher = Teacher(encoder().train(), True)
    student = DistillationStudent(encoder(num_hidden_layers=2), 32)
    student.train()
    first, second = (teacher.view(batch, Request(positions=POSITIONS)) for _ in range(2))
    assert not teacher.model.training and not first.logits.requires_grad
    assert torch.equal(first.logits, second.logits)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(
        parameter is other for parameter in student.parameters() for other in teacher.model.parameters()
    )
    assert teacher.model.config._attn_implementation == RECORDING


def test_dropout_of_the_teacher_is_on_when_asked_for_and_then_off_again(batch):
    teacher = Teacher(encoder(attention_probs_dropout_prob=0.5), True)
    torch.manual_seed(0)
    calm = teacher.view(batch, Request(attention_layers=[1]))
    noisy = teacher.view(batch, Request(attention_layers=[1], after_dropout=True))
    assert not noisy.log_rows and (noisy.attention_rows[1][0] == 0).any()
    assert not torch.allclose(noisy.hidden_states[4], calm.hidden_states[4])
    again = teacher.view(batch, Request(attention_layers=[1]))
    assert torch.equal(again.hidden_states[4], calm.hidden_states[4]) and again.log_rows


# Loading


@FAMILIES
def test_teachers_with_a_head_load(family, tmp_path, batch):
    model = encoder(family)
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, with_tokenizer=False)
    assert teacher.has_mlm_head and teacher.tokenizer is None and teacher.name == str(tmp_path)
    expected = Teacher(model, True).view(batch, Request(positions=POSITIONS))
    torch.testing.assert_close(teacher.view(batch, Request(positions=POSITIONS)).logits, expected.logits)


def test_teacher_brings_its_tokenizer(tmp_path, tiny_teacher, tiny_tokenizer):
    tiny_teacher.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert load_teacher(tmp_path).tokenizer.get_vocab() == tiny_tokenizer.get_vocab()


def test_half_precision_checkpoints_are_loaded_in_fp32(tmp_path):
    encoder().half().save_pretrained(tmp_path)
    assert load_teacher(tmp_path, with_tokenizer=False).model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["encoder", "discriminator"])
def test_teachers_without_a_head_give_no_logits(kind, tmp_path, batch):
    torch.manual_seed(0)
    model = BertModel(CONFIGS["bert"]()) if kind == "encoder" else ElectraForPreTraining(CONFIGS["electra"]())
    model.eval().save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, with_tokenizer=False)
    assert not teacher.has_mlm_head
    view = teacher.view(batch, Request(positions=POSITIONS))
    assert view.logits is None
    with torch.no_grad():
        expected = model.base_model(**forward_inputs(model.base_model, batch)).last_hidden_state
    torch.testing.assert_close(view.hidden_states[4], expected, rtol=1e-4, atol=1e-5)


def refused(name, match):
    with pytest.raises(UserError, match=match) as error:
        load_teacher(name, with_tokenizer=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_are_told(tmp_path):
    refused(tmp_path, "has no config.json: expected the directory of a Transformers model")
    refused(tmp_path / "nowhere", "nowhere does not exist")
    refused("./nowhere", "nowhere does not exist")
    CONFIGS["bert"]().save_pretrained(tmp_path)
    refused(tmp_path, "its weights could not be loaded")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "could not be loaded as a Transformers model")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    refused(tmp_path, "could not be loaded as a Transformers model")


def test_hub_names_are_refused_offline():
    refused("nobody-at-all/no-such-teacher", "not in the local cache, and the hub could not be reached")


@pytest.mark.parametrize("size", [0, 7, 1000, -100])
def test_truncated_weights_are_refused(tmp_path, size):
    encoder().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(tmp_path, f"teacher {tmp_path}: its weights could not be loaded")


def test_a_pointer_in_place_of_weights_is_named(tmp_path):
    encoder().save_pretrained(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    told = "model.safetensors is a pointer of Git LFS to a file that is not here: fetch it"
    refused(tmp_path, told)
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)  # far more numbers than a pointer has bytes
    refused(tmp_path, told)


def test_decoders_are_refused(tmp_path):
    config = GPT2Config(
        vocab_size=61, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    refused(tmp_path / "gpt2", "is a gpt2 model, not an encoder: expected one that")
    BertForMaskedLM(CONFIGS["bert"]()).save_pretrained(tmp_path / "bert")
    path = tmp_path / "bert" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_decoder": True}))
    refused(tmp_path / "bert", "is a bert decoder, not an encoder")
    assert load_encoder_config_type(tmp_path / "bert", is_decoder=False) == "bert"


def load_encoder_config_type(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return load_encoder_config(directory).model_type


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": 5}, r"bert\.encoder\.layer\.4\."),
        ({"intermediate_size": 64}, r"bert\.encoder\.layer\.0\.intermediate\.dense"),
        ({"vocab_size": 70}, "bert.embeddings.word_embeddings.weight|cls.predictions"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(tmp_path, changes, key):
    encoder().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    message = refused(
        tmp_path, f"its weights do not fit its config.json; missing or of another shape: .*{key}"
    )
    assert len(message) < 700


def test_one_line():
    assert one_line(ValueError("\nfirst\nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 300)) == "x" * 199 + "…"


def test_a_folder_without_tokenizer_files_is_refused(tiny_teacher, tmp_path):
    tiny_teacher.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="tokenizer"):
        load_teacher(tmp_path / "bare")


@pytest.mark.parametrize(
    "counts", [{"num_hidden_layers": 10**9}, {"num_labels": 10**12}, {"num_hidden_layers": -1}]
)
def test_counts_that_would_take_hours_to_build_or_none_are_refused(counts, tiny_teacher_dir):
    file = tiny_teacher_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | counts))
    with pytest.raises(UserError, match=f"{next(iter(counts))} must be at most"):
        load_encoder_config(tiny_teacher_dir)


def test_a_teacher_without_a_layer_is_refused(tmp_path):
    BertForMaskedLM(BertConfig(**SHAPE | {"num_hidden_layers": 0})).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no hidden state of one width .* \(but none\)"):
        load_teacher(tmp_path, with_tokenizer=False)


def test_a_config_of_far_more_than_the_weights_is_refused_before_memory_is_taken(tiny_teacher_dir):
    file = tiny_teacher_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 10**12}))
    with pytest.raises(UserError, match=r"do not fit its config\.json, which describes [0-9,]{15,} numbers"):
        load_encoder(tiny_teacher_dir)


def test_weights_with_the_names_of_hundreds_of_thousands_are_refused(tiny_teacher_dir):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": entry for number in range(80_000)}).encode()
    (tiny_teacher_dir / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="names more tensors than any encoder has"):
        load_encoder(tiny_teacher_dir)


# The door


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet"])
@pytest.mark.parametrize("head", HEADS)
def test_any_encoder_opens_with_any_head(family, head, tmp_path):
    encoder(family).save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path, head)
    assert type(loaded.model).__name__.endswith(HEADS[head].suffix) and not loaded.model.training
    assert loaded.has_head == (head in ("features", "masked-lm")) and not loaded.misshapen
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize("head", HEADS)
def test_releases_and_students_open_as_ours(head, release_dir, tiny_student_dir):
    for folder in (release_dir / "adapter-factorised" / "student-mlm", tiny_student_dir):
        assert type(load_encoder(folder, head).model) is HEADS[head].ours
        assert load_encoder_config(folder).model_type == "minialbert"
        assert head_of(load_encoder_config(folder)) == "masked-lm"


def test_every_head_is_found_by_its_architecture():
    for name, head in HEADS.items():
        config = BertConfig(architectures=[f"Bert{head.suffix}"])
        assert head_of(config) == name and ARCHITECTURES[head.ours.__name__] is head
    assert head_of(BertConfig(architectures=["BertForNextSentencePrediction"])) is None
    assert head_of(BertConfig()) is None


def test_a_head_of_another_shape_is_refused_or_new(tmp_path):
    BertForSequenceClassification(BertConfig(**SHAPE, num_labels=3)).save_pretrained(tmp_path)
    config = load_encoder_config(tmp_path)
    config.num_labels = 5
    loaded = load_encoder(tmp_path, "sequence-classification", config=config, new_head=True)
    assert loaded.misshapen == ("classifier.bias", "classifier.weight") and loaded.has_head
    assert loaded.model.classifier.weight.shape == (5, 32)
    with pytest.raises(
        UserError, match="do not fit its config.json; .*: classifier.bias, classifier.weight$"
    ):
        load_encoder(tmp_path, "sequence-classification", config=config)


FRIGHTENING = ("newly initialized", "MISSING", "LOAD REPORT", "corrupted", "Some weights")


@pytest.fixture
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # which the command line lowers
    return lambda: any(mark in caplog.text for mark in FRIGHTENING)


def test_missing_heads_are_not_reported_but_to_others(heard, caplog, tmp_path):
    encoder().save_pretrained(tmp_path)
    load_encoder(tmp_path, "token-classification")
    assert not heard()
    with quiet_loading():
        logging.getLogger("transformers.modeling_utils").warning("of something else")
        with ThreadPoolExecutor(1) as pool:  # another thread's own loading
            pool.submit(AutoModelForTokenClassification.from_pretrained, tmp_path).result()
    assert heard() and "of something else" in caplog.text
    caplog.clear()
    AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert heard()  # as it was before
    caplog.clear()
    with pytest.raises(RuntimeError), quiet_loading():
        raise RuntimeError
    AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert heard()


def test_a_misfit_is_told_by_name():
    assert tell_misfit({"a": (1,)}, {"a": (1,)}) == ""
    told = tell_misfit({"a": (1,), "b": (2, 3), "d": ()}, {"b": (3, 2), "c": (), "d": ()})
    assert told == "missing: a; unknown: c; of another shape: b (file (3, 2), model (2, 3))"
    many = {f"weight.{number:04}": (1,) for number in range(500)}
    assert len(tell_misfit(many, {"other": ()})) < 440


# What is found when a model is loaded


def changed_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"])
@pytest.mark.parametrize("load", [load_encoder, load_teacher])
def test_weights_that_are_no_numbers_are_refused_at_once(load, key, value, tiny_teacher_dir):
    changed_weights(tiny_teacher_dir, lambda weights: weights[key][-1:].fill_(value))
    with pytest.raises(UserError, match=rf"its weights hold NaN or infinity \({key}\)"):
        load(tiny_teacher_dir)


def test_an_encoder_that_answers_with_infinity_is_refused(tiny_teacher_dir):
    key = "bert.encoder.layer.2.output.LayerNorm.weight"
    changed_weights(tiny_teacher_dir, lambda weights: weights[key].fill_(3e38))
    with pytest.raises(UserError, match=r"gives NaN or infinity from layer \d on"):
        load_encoder(tiny_teacher_dir, "features", role="model")


def test_token_ids_beyond_the_word_table_are_refused(tiny_teacher_dir, tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_teacher_dir)
    tokenizer.add_tokens(["[**name**]"])
    tokenizer.save_pretrained(tiny_teacher_dir)
    with pytest.raises(UserError, match=f"has ids beyond the {len(tiny_tokenizer)} rows of the model's word"):
        load_teacher(tiny_teacher_dir)


def test_a_bert_from_before_kinds_were_named_is_one(tiny_teacher_dir, tmp_path):
    folder = tmp_path / "roberta-like" / "scibert_scivocab"  # whose path has another kind's name
    folder.parent.mkdir()
    tiny_teacher_dir.rename(folder)
    values = json.loads((folder / "config.json").read_text())
    for key in ("model_type", "architectures"):
        del values[key]
    (folder / "config.json").write_text(json.dumps(values))
    assert load_encoder_config(folder).model_type == "bert"
    assert load_teacher(folder, with_tokenizer=False).has_mlm_head


def test_the_hub_is_not_asked_for_what_a_run_does_not_have(tmp_path, monkeypatch):
    (tmp_path / "nobody-at-all").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(
        "nobody-at-all/no-such-teacher", "the hub could not be reached"
    )  # its owner's name is a folder here
    (tmp_path / "nobody-at-all" / "recipe.yaml").touch()
    refused("nobody-at-all/no-such-teacher", "does not exist: expected the directory")


def test_the_inner_folder_of_sentence_transformers_is_named(tiny_teacher_dir, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    tiny_teacher_dir.rename(outer / "0_Transformer")
    refused(outer, f"has no config.json: give {outer / '0_Transformer'}, where its model is")
    (outer / "0_Transformer").rename(outer / "model")
    refused(outer, f"has no config.json: give {outer / 'model'}, where its model is")  # of a run
    (outer / "model").rename(outer / "0_Transformer")
    assert load_teacher(outer / "0_Transformer").has_mlm_head


@torch.no_grad()
def test_heads_that_share_keys_are_recorded_as_the_model_repeats_them(batch):
    torch.manual_seed(0)
    shape = {**SHAPE, "num_key_value_heads": 2, "mask_token_id": 4, "pad_token_id": 1}
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("eurobert", **shape)).eval()
    model.set_attn_implementation("eager")
    expected = model(**forward_inputs(model, batch), output_attentions=True, output_hidden_states=True)
    teacher = Teacher(model, has_mlm_head=True)
    view = teacher.view(batch, Request(attention_layers=[1, 3], attention_inputs=[2]))
    valid = batch["attention_mask"].bool()
    close = {"rtol": 1e-4, "atol": 1e-5}
    for layer in (1, 3):
        rows = view.attention_rows[layer].exp().transpose(1, 2)[valid]
        torch.testing.assert_close(rows, expected.attentions[layer - 1].transpose(1, 2)[valid], **close)
    torch.testing.assert_close(view.hidden_states[4][valid], expected.hidden_states[4][valid], **close)
    assert teacher.num_heads == 4 and view.attention_inputs[2].key.shape[1] == 4

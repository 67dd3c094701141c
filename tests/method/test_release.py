"""Release checkpoints become ours and go back, key by key, or are refused by name."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import AlbertConfig, AlbertForMaskedLM, AutoModelForMaskedLM, AutoTokenizer

from minialbert import (
    MiniAlbertConfig,
    MiniAlbertForMaskedLM,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
)
from minialbert.errors import UserError
from minialbert.method import release as conversion
from minialbert.method.release import ConversionReport, convert, release_key, rename_release_key

HEADS = {
    "student-mlm": MiniAlbertForMaskedLM,
    "student-sequence-classification": MiniAlbertForSequenceClassification,
    "student-token-classification": MiniAlbertForTokenClassification,
}
EVERY_CHECKPOINT = pytest.mark.parametrize(
    "name", [f"{release}/{head}" for release in ("adapter-factorised", "plain-fullrank") for head in HEADS]
)
FFN = "albert.albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"
MODEL_FILES = {"config.json", "configuration_minialbert.py", "model.safetensors", "modeling_minialbert.py"}


def bare(tensors):
    """Turn the tensors of a masked LM into those of the encoder saved alone."""
    for key in list(tensors):
        tensor = tensors.pop(key)
        if key.startswith("albert."):
            tensors[key.removeprefix("albert.")] = tensor


def assert_equal_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert torch.equal(actual[key], tensor), key


# From the release to ours


@EVERY_CHECKPOINT
@torch.no_grad()
def test_convert_agrees_with_loading_the_release(tmp_path, release_dir, name):
    model_class = HEADS[Path(name).name]
    report = convert(release_dir / name, tmp_path / "ours")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == MODEL_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]  # nothing temporary is left

    expected = model_class.from_pretrained(release_dir / name)
    loaded, info = model_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal_tensors(loaded.state_dict(), expected.state_dict())
    assert loaded.config.to_json_string() == expected.config.to_json_string()
    ids = torch.tensor([[3, 5, 7]])
    # The weights are equal bit by bit; their products are not on every processor, which may see them aligned otherwise.
    torch.testing.assert_close(loaded(ids).logits, expected(ids).logits)

    source = torch.load(release_dir / name / "pytorch_model.bin", weights_only=True)
    assert report.source == str(release_dir / name)
    assert report.architecture == model_class.__name__
    assert report.parameters == expected.num_parameters()
    assert report.renamed.keys() | set(report.dropped) == source.keys()
    assert not report.renamed.keys() & set(report.dropped)
    assert set(report.renamed.values()) == expected.state_dict().keys()
    assert set(report.dropped) == {
        "albert.albert.embeddings.position_ids",
        "albert.albert.pooler.weight",
        "albert.albert.pooler.bias",
    }


def test_converted_students_load_by_auto_class(tmp_path, release_dir):
    convert(release_dir / "adapter-factorised/student-mlm", tmp_path / "ours")
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")) is MiniAlbertForMaskedLM


@torch.no_grad()
def test_bare_encoder_is_converted(tmp_path, release_dir, release_copy):
    source = release_copy(weights=bare, config=lambda c: c.update(architectures=["MiniAlbertModel"]))
    report = convert(source, tmp_path / "ours")
    assert report.architecture == "MiniAlbertModel"
    assert report.renamed["albert.embeddings.LayerNorm.bias"] == "embeddings.LayerNorm.bias"
    expected = MiniAlbertForMaskedLM.from_pretrained(release_dir / "adapter-factorised/student-mlm")
    loaded = MiniAlbertModel.from_pretrained(tmp_path / "ours")
    assert_equal_tensors(loaded.state_dict(), expected.minialbert.state_dict())


def test_half_precision_is_kept(tmp_path, release_copy):
    def halve(tensors):
        tensors.update({key: value.half() for key, value in tensors.items() if value.is_floating_point()})

    source = release_copy(weights=halve)
    convert(source, tmp_path / "ours")
    expected = MiniAlbertForMaskedLM.from_pretrained(source)
    assert expected.dtype == torch.float16
    loaded = MiniAlbertForMaskedLM.from_pretrained(tmp_path / "ours")
    assert_equal_tensors(loaded.state_dict(), expected.state_dict())


def test_safetensors_are_read_too(tmp_path, release_dir, release_copy):
    source = release_copy()
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    save_file(tensors, source / "model.safetensors")
    (source / "pytorch_model.bin").unlink()
    convert(source, tmp_path / "ours")
    expected = MiniAlbertForMaskedLM.from_pretrained(release_dir / "adapter-factorised/student-mlm")
    loaded = MiniAlbertForMaskedLM.from_pretrained(tmp_path / "ours")
    assert_equal_tensors(loaded.state_dict(), expected.state_dict())


def test_tokenizer_travels_along(tmp_path, release_copy, tiny_tokenizer):
    source = release_copy()
    tiny_tokenizer.save_pretrained(source)
    (source / "training_args.bin").write_bytes(b"")
    (source / "README.md").write_text("")
    convert(source, tmp_path / "ours")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names >= MODEL_FILES | {"tokenizer.json", "tokenizer_config.json"}
    assert not names & {"training_args.bin", "README.md", "pytorch_model.bin"}
    loaded = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert loaded.get_vocab() == tiny_tokenizer.get_vocab()


def test_report_tells_every_key(tmp_path, release_dir):
    report = convert(release_dir / "adapter-factorised/student-mlm", tmp_path / "ours")
    lines = report.lines()
    assert "MiniAlbertForMaskedLM" in lines[0]
    assert "41,383 parameters" in lines[0]
    assert lines[1] == "65 tensors kept, 3 dropped"
    assert f"{FFN} -> minialbert.block.ffn.weight" in lines
    assert "albert.albert.pooler.bias dropped (unused by the student)" in lines
    assert len(lines) == 2 + 65 + 3
    assert all("\n" not in line for line in lines)
    with pytest.raises(AttributeError):
        report.source = "elsewhere"
    assert isinstance(report, ConversionReport)


@pytest.mark.parametrize(
    ("release", "ours"),
    [
        ("albert.albert.embeddings.word_embeddings.weight", "minialbert.embeddings.word_embeddings.weight"),
        ("albert.embeddings.word_embeddings.weight", "minialbert.embeddings.word_embeddings.weight"),
        ("albert.projector.weight", "minialbert.embeddings.projection.weight"),
        ("projector.weight", "minialbert.embeddings.projection.weight"),
        (FFN.replace("ffn.weight", "full_layer_layer_norm.bias"), "minialbert.block.LayerNorm.bias"),
        (FFN.replace("ffn", "attention.LayerNorm"), "minialbert.block.attention.LayerNorm.weight"),
        ("albert.att_adapters.11.block.0.weight", "minialbert.attention_adapters.11.down.weight"),
        ("albert.mlp_adapters.2.block.2.bias", "minialbert.ffn_adapters.2.up.bias"),
        ("mlp_adapters.0.norm.bias", "minialbert.ffn_adapters.0.LayerNorm.bias"),
        ("vocab_projector.bias", "mlm_head.decoder.bias"),
        ("classifier.weight", "classifier.weight"),
        ("albert.albert.pooler.weight", None),
        ("albert.pooler.bias", None),
        ("albert.albert.embeddings.position_ids", None),
    ],
)
def test_keys_are_renamed(release, ours):
    assert rename_release_key(release) == ours


# From ours to the release


@EVERY_CHECKPOINT
def test_the_names_of_the_release_are_found_again(release_dir, name):
    model = HEADS[Path(name).name].from_pretrained(release_dir / name)
    source = torch.load(release_dir / name / "pytorch_model.bin", weights_only=True)
    expected = {key: tensor for key, tensor in source.items() if rename_release_key(key) is not None}
    assert_equal_tensors({release_key(key): value for key, value in model.state_dict().items()}, expected)


def test_the_names_of_a_bare_encoder_are_found_again(release_dir):
    source = release_dir / "adapter-factorised/student-mlm"
    expected = torch.load(source / "pytorch_model.bin", weights_only=True)
    bare(expected)
    expected = {key: tensor for key, tensor in expected.items() if rename_release_key(key) is not None}
    model = MiniAlbertModel.from_pretrained(source)
    assert_equal_tensors(
        {release_key(key, bare=True): value for key, value in model.state_dict().items()}, expected
    )


def test_there_and_back_again(tmp_path, release_copy):
    """A student of ours, written in the release's names, converts to itself."""
    torch.manual_seed(0)
    source = release_copy("adapter-factorised/student-token-classification")
    student = MiniAlbertForTokenClassification(MiniAlbertConfig.from_pretrained(source))
    torch.save(
        {release_key(key): value for key, value in student.state_dict().items()}, source / "pytorch_model.bin"
    )
    convert(source, tmp_path / "ours")
    loaded = MiniAlbertForTokenClassification.from_pretrained(tmp_path / "ours")
    assert_equal_tensors(loaded.state_dict(), student.state_dict())


# Refusals: one line, nothing written


def assert_refused(source, tmp_path, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(source, tmp_path / "made" / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(FFN), rf"missing: {FFN}$"),
        (lambda tensors: tensors.pop("albert.att_adapters.1.norm.bias"), r"missing: albert\.att_adapters\.1"),
        (lambda tensors: tensors.pop("vocab_projector.bias"), r"missing: vocab_projector\.bias$"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), r"unknown: extra$"),
        (
            lambda tensors: tensors.update({"albert.mlp_adapters.3.norm.bias": torch.ones(48)}),
            r"unknown: albert\.mlp_adapters\.3\.norm\.bias$",
        ),
        (
            lambda tensors: tensors.update({FFN: torch.ones(2, 3)}),
            r"of another shape: .*ffn\.weight \(file \(2, 3\), model \(96, 48\)\)$",
        ),
        (
            lambda tensors: tensors.update({"projector.bias": tensors["albert.projector.bias"]}),
            r"given twice: albert\.projector\.bias$",
        ),
        (lambda tensors: tensors.update(step=3), "must hold a dictionary of tensors"),
    ],
)
def test_wrong_tensors_are_refused_by_key(tmp_path, release_copy, change, message):
    assert_refused(release_copy(weights=change), tmp_path, message)


def test_several_problems_are_told_together(tmp_path, release_copy):
    def change(tensors):
        tensors.pop(FFN)
        tensors["extra"] = torch.ones(2)

    assert_refused(release_copy(weights=change), tmp_path, f"missing: {FFN}; unknown: extra$")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="bert"), "model_type is 'bert', not 'albert'"),
        (lambda c: c.pop("model_type"), "model_type is None, not 'albert'"),
        (lambda c: c.update(model_type="minialbert"), "already a MiniALBERT checkpoint"),
        (lambda c: (c.pop("use_adapter"), c.pop("reduction_factor")), "describes an ordinary ALBERT"),
        (lambda c: c.update(num_hidden_groups=2), "one shared block, but num_hidden_groups is 2"),
        (lambda c: c.update(hidden_size="48"), "hidden_size must be an integer, got '48'"),
        (lambda c: c.update(reduction_factor="many"), "many"),
        (
            lambda c: c.pop("architectures"),
            r"architectures must name one class of MiniAlbertModel, .* got \[\]",
        ),
        (lambda c: c.update(architectures=["AlbertModel"]), r"must name one class .* got \['AlbertModel'\]"),
        (lambda c: c.update(num_hidden_layers=4), r"missing: albert\.att_adapters\.3\.block"),
        (lambda c: c.update(use_adapter=False), r"unknown: albert\.att_adapters\.0\.block"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path, release_copy, change, message):
    assert_refused(release_copy(config=change), tmp_path, message)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "config.json is not valid JSON"), ("[]", "must hold a JSON object, got list")]
)
def test_broken_configurations_are_refused(tmp_path, release_copy, text, message):
    source = release_copy()
    (source / "config.json").write_text(text)
    assert_refused(source, tmp_path, message)


def test_absent_sources_and_files_are_refused(tmp_path, release_copy):
    source = release_copy()
    (source / "pytorch_model.bin").rename(source / "other.bin")
    assert_refused(source, tmp_path, "has no weights: expected model.safetensors or pytorch_model.bin")
    (source / "config.json").unlink()
    assert_refused(source, tmp_path, "has no config.json")
    assert_refused(tmp_path / "nowhere", tmp_path, "nowhere is neither a directory nor a hub id")
    assert_refused("nobody/no-such-model", tmp_path, "is not a directory or a hub id in reach")


def test_ordinary_albert_is_refused(tmp_path):
    config = AlbertConfig(
        vocab_size=61,
        embedding_size=8,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=2,
    )
    AlbertForMaskedLM(config).save_pretrained(tmp_path / "albert")
    assert_refused(tmp_path / "albert", tmp_path, "describes an ordinary ALBERT")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zeros"])
def test_damaged_weights_are_refused(tmp_path, release_copy, name, damage):
    source = release_copy()
    file = source / name
    if name == "model.safetensors":
        save_file(torch.load(source / "pytorch_model.bin", weights_only=True), file)
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"version https://git-lfs.github.com/spec/v1\n",
            "zeros": bytes(500),
        }[damage]
    )
    assert_refused(source, tmp_path, rf"{name} cannot be read as plain tensors: it is damaged")


class RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_pickled_code_is_not_run(tmp_path, release_copy, write):
    source = release_copy()
    write({"weight": RunsACommand(f"touch {tmp_path / 'flag'}")}, source / "pytorch_model.bin")
    assert_refused(source, tmp_path, "holds code")
    assert not (tmp_path / "flag").exists()


# The output directory


def test_an_empty_directory_is_filled(tmp_path, release_dir):
    (tmp_path / "ours").mkdir()
    convert(release_dir / "plain-fullrank/student-mlm", tmp_path / "ours")
    MiniAlbertForMaskedLM.from_pretrained(tmp_path / "ours")


def test_new_directory_has_the_usual_permissions(tmp_path, release_dir):
    convert(release_dir / "plain-fullrank/student-mlm", tmp_path / "a" / "ours")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "a" / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_overwriting_needs_permission_and_spares_other_files(tmp_path, release_dir):
    target = tmp_path / "ours"
    convert(release_dir / "plain-fullrank/student-mlm", target)
    (target / "notes.txt").write_text("keep me")
    (target / "vocab.txt").write_text("of the earlier model")
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    with pytest.raises(UserError, match="ours is not empty.*--overwrite"):
        convert(release_dir / "adapter-factorised/student-mlm", target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before

    convert(release_dir / "adapter-factorised/student-mlm", target, overwrite=True)
    assert {path.name for path in target.iterdir()} == MODEL_FILES | {"notes.txt"}
    assert (target / "notes.txt").read_text() == "keep me"
    loaded = MiniAlbertForMaskedLM.from_pretrained(target)
    expected = MiniAlbertForMaskedLM.from_pretrained(release_dir / "adapter-factorised/student-mlm")
    assert_equal_tensors(loaded.state_dict(), expected.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_file_or_the_source_is_no_output(tmp_path, release_copy):
    source = release_copy()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: expected a folder"):
        convert(source, tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match="would replace what is read"):
        convert(source, source, overwrite=True)
    assert json.loads((source / "config.json").read_text())["model_type"] == "albert"


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, release_dir, monkeypatch, existing):
    target = tmp_path / "ours"
    if existing:
        convert(release_dir / "plain-fullrank/student-mlm", target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    save = MiniAlbertForMaskedLM.save_pretrained

    def save_then_fail(model, directory):
        save(model, directory)
        raise OSError("no space left on device")

    monkeypatch.setattr(MiniAlbertForMaskedLM, "save_pretrained", save_then_fail)
    with pytest.raises(OSError, match="no space left"):
        convert(release_dir / "adapter-factorised/student-mlm", target, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert target.exists() == existing


# The hub


def test_a_hub_id_is_fetched_file_by_file(tmp_path, release_dir, monkeypatch):
    cache = tmp_path / "cache"
    shutil.copytree(release_dir / "adapter-factorised/student-mlm", cache)

    def download(repo, name):
        assert repo == "someone/student"
        if not (cache / name).exists():
            raise EntryNotFoundError(name)
        return str(cache / name)

    monkeypatch.setattr(conversion, "hf_hub_download", download)
    report = convert("someone/student", tmp_path / "ours")
    assert report.source == "someone/student"
    assert {path.name for path in (tmp_path / "ours").iterdir()} == MODEL_FILES


def test_a_lost_connection_is_no_missing_file(tmp_path, release_dir, monkeypatch):
    def download(repo, name):
        if name in ("config.json", "pytorch_model.bin"):
            return str(release_dir / "adapter-factorised/student-mlm" / name)
        if name == "model.safetensors":
            raise EntryNotFoundError(name)
        raise LocalEntryNotFoundError(name)

    monkeypatch.setattr(conversion, "hf_hub_download", download)
    monkeypatch.setattr(conversion, "is_offline_mode", lambda: False)
    with pytest.raises(UserError, match="the hub cannot be reached for tokenizer.json"):
        convert("someone/student", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[" * 5_000, "is not valid JSON"),
        ('{"model_type": ["albert"]}', r"its model_type is \['albert'\], not 'albert'"),
    ],
)
def test_a_config_of_any_json_is_refused(config: str, message: str, release_copy, tmp_path: Path) -> None:
    source = release_copy()
    (source / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 1000"),
        ({"num_hidden_layers": 900}, "900 iterations, more than the file has tensors"),
        ({"reduction_factor": float("inf")}, "reduction_factor must be an integer"),
        ({"hidden_size": 4 * 10**12}, "config.json"),
        ({"architectures": [["x"]]}, "architectures must name one class"),
    ],
)
def test_numbers_that_no_model_has_are_refused_at_once(values, message, release_copy, tmp_path: Path) -> None:
    source = release_copy(config=lambda config: config.update(values))
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("content", [b"J\n{", b"", b"\x80\x02", b"PK\x03\x04"])
def test_weights_of_any_bytes_are_refused(content: bytes, release_copy, tmp_path: Path) -> None:
    source = release_copy()
    (source / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        convert(source, tmp_path / "output")

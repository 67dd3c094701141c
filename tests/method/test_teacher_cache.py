"""The teacher's answers on disk: the same losses, no second call, and a cache that knows what it is of."""

import json
import logging
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import BertModel, MPNetConfig, MPNetForMaskedLM

from minialbert import MiniAlbertForMaskedLM
from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.errors import UserError
from minialbert.method import teacher_cache
from minialbert.method.encoders import Teacher, load_teacher
from minialbert.method.objective import DistillationObjective, Request
from minialbert.method.teacher_cache import CachedTeacherView, FixedMasks
from minialbert.method.trainer import DistillationStudent

LAYERS = (2, 4)
MASKING = {"seed": 42, "mask_probability": 0.3, "whole_word": False}


@pytest.fixture
def teacher(tiny_teacher):
    return Teacher(tiny_teacher, has_mlm_head=True)


@pytest.fixture
def windows(tiny_tokenizer):
    generator = torch.Generator().manual_seed(0)
    lengths = [12, 7, 30, 12, 9, 21]
    return [
        {
            "input_ids": [2, *torch.randint(5, 130, (length,), generator=generator).tolist(), 3],
            "window_id": 998 + n,
        }
        for n, length in enumerate(lengths)
    ]


@pytest.fixture
def collate(tiny_tokenizer):
    return MaskedLanguageModelCollator(tiny_tokenizer, mask_probability=0.3)


def cached(teacher, directory, objective=None, **changes):
    objective = objective or DistillationObjective()
    options = {"objective": objective, "layers": LAYERS, "masking": MASKING, "num_windows": 6, **changes}
    return CachedTeacherView(teacher, directory, **options)


def ask(view, batch, objective=None):
    objective = objective or DistillationObjective()
    positions = objective.positions(batch["labels"], batch["attention_mask"])
    return view(
        batch,
        Request(
            positions=positions if objective.output_weight else None,
            attention_layers=LAYERS if objective.needs_attention else (),
            after_dropout=objective.teacher_dropout,
        ),
    )


@pytest.fixture
def calls(teacher, monkeypatch):
    """Window ids of every batch that the teacher was asked for."""
    seen, view = [], Teacher.view

    def counted(self, batch, request=None):
        seen.append(batch["window_ids"].tolist())
        return view(self, batch, request)

    monkeypatch.setattr(Teacher, "view", counted)
    return seen


def step(config, objective, view, batch):
    """Return terms and gradients of one step of a fixed student."""
    torch.manual_seed(0)
    student = DistillationStudent(MiniAlbertForMaskedLM(config), 32).eval()
    labels, mask = batch["labels"], batch["attention_mask"]
    student_view = student(
        batch, Request(attention_layers=[1, 2], positions=objective.positions(labels, mask))
    )
    terms = objective(
        student_view, ask(view, batch, objective), labels=labels, attention_mask=mask, num_teacher_layers=4
    )
    terms.total.backward()
    return terms, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def equal(first, second):
    assert first.hidden_states.keys() == second.hidden_states.keys()
    assert first.attention_rows.keys() == second.attention_rows.keys()
    assert first.log_rows == second.log_rows
    pairs = [(first.logits, second.logits)]
    for one, other in (
        (first.hidden_states, second.hidden_states),
        (first.attention_rows, second.attention_rows),
    ):
        pairs += [(one[layer], other[layer]) for layer in one]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


# The same numbers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"embedding_weight": 1.0, "kl_direction": "student-teacher"},
        {"output_positions": "all", "attention_heads": "average"},
        {"attention_reduction": "elements", "attention_epsilon": 1e-12, "token_reduction": "sum"},
        {"output_weight": 0.0, "attention_weight": 0.0},
        {"layer_map": (0, 3)},
    ],
)
def test_losses_and_gradients_are_those_without_a_cache(
    changes, teacher, windows, collate, tiny_student_config, tmp_path
):
    objective, batch = DistillationObjective(**changes), collate(windows)
    layers = objective.resolve_layers(2, 4)
    view = cached(teacher, tmp_path, objective, layers=layers)
    if layers != LAYERS:
        ask_layers = [layer for layer in layers if layer]

        def only(source):
            return lambda batch, request: source(batch, replace(request, attention_layers=ask_layers))

        expected = step(tiny_student_config, objective, only(teacher.view), batch)
        found = [step(tiny_student_config, objective, only(view), batch) for _ in range(2)]
    else:
        expected = step(tiny_student_config, objective, teacher.view, batch)
        found = [step(tiny_student_config, objective, view, batch) for _ in range(2)]
    for terms, gradients in found:
        for (name, value), (_, reference) in zip(terms.items(), expected[0].items(), strict=True):
            if getattr(objective, f"{name}_weight", 1) > 0:  # other terms are 0 without what they compare
                torch.testing.assert_close(value, reference, rtol=2e-3, atol=2e-4, msg=name)
        assert gradients.keys() == expected[1].keys()
        largest = max(gradient.norm() for gradient in expected[1].values())
        for name, gradient in gradients.items():
            assert (gradient - expected[1][name]).norm() < 2e-3 * largest, name
    # Whether a window was just computed or read makes no difference at all.
    assert torch.equal(found[0][0].total, found[1][0].total)
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_a_second_pass_asks_the_teacher_nothing(teacher, windows, collate, calls, tmp_path):
    view = cached(teacher, tmp_path)
    batches = [collate(windows[:3]), collate(windows[3:])]
    first = [ask(view, batch) for batch in batches]
    assert calls == [[998, 999, 1000], [1001, 1002, 1003]]
    again = [ask(view, batch) for batch in batches]
    later = [ask(cached(teacher, tmp_path), batch) for batch in batches]  # another run
    assert len(calls) == 2
    assert all(equal(a, b) and equal(a, c) for a, b, c in zip(first, again, later, strict=True))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == sorted(
        ["manifest.json", "0/998.safetensors", "0/999.safetensors"]
        + [f"1/{n}.safetensors" for n in (1000, 1001, 1002, 1003)]
    )


def test_a_batch_with_a_missing_window_is_asked_as_a_whole(teacher, windows, collate, calls, tmp_path):
    view = cached(teacher, tmp_path)
    ask(view, collate(windows[:2]))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    ask(view, collate(windows[:3]))
    assert calls == [[998, 999], [998, 999, 1000]]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())  # written once


def test_windows_do_not_depend_on_the_padding_of_their_batch(teacher, windows, collate, calls, tmp_path):
    short, long = windows[1], windows[2]
    view = cached(teacher, tmp_path)
    ask(view, collate([short, long]))
    alone = ask(view, collate([short]))
    assert len(calls) == 1
    tokens = len(short["input_ids"])
    fresh = teacher.view(
        collate([short]), Request(attention_layers=LAYERS, positions=collate([short])["labels"] != -100)
    )
    for layer in LAYERS:
        torch.testing.assert_close(
            alone.hidden_states[layer][0, :tokens],
            fresh.hidden_states[layer][0, :tokens],
            rtol=2e-3,
            atol=2e-3,
        )
        rows, expected = (v.attention_rows[layer][0, :, :tokens].exp() for v in (alone, fresh))
        torch.testing.assert_close(rows, expected, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(
            alone.attention_rows[layer][0, :, :tokens].exp().sum(-1), torch.ones(4, tokens)
        )
    together, swapped = ask(view, collate([short, long])), ask(view, collate([long, short]))
    for layer in LAYERS:
        assert torch.equal(together.hidden_states[layer].flip(0), swapped.hidden_states[layer])
        assert (together.attention_rows[layer][0, :, :, tokens:] == -1e4).all()
    padded = {
        name: torch.nn.functional.pad(values, (0, 16), value=-100 if name == "labels" else 0)
        for name, values in collate([short]).items()
        if name != "window_ids"
    }
    longer = ask(view, {**padded, "window_ids": torch.tensor([999])})
    assert torch.equal(longer.hidden_states[2][:, : alone.hidden_states[2].shape[1]], alone.hidden_states[2])
    assert torch.equal(longer.logits, alone.logits)


def test_padding_on_the_left_is_put_back(teacher, windows, collate, tmp_path):
    batch = collate(windows[1:2])
    length = batch["input_ids"].shape[1]
    left = {**batch, **{name: batch[name].flip(1) for name in ("input_ids", "labels", "attention_mask")}}
    tokens = int(batch["attention_mask"].sum())
    assert tokens < length
    view = ask(cached(teacher, tmp_path), left)
    expected = ask(teacher.view, left)
    torch.testing.assert_close(
        view.hidden_states[2][0, -tokens:], expected.hidden_states[2][0, -tokens:], rtol=2e-3, atol=2e-3
    )
    torch.testing.assert_close(view.logits, expected.logits, rtol=2e-3, atol=2e-3)


def test_only_what_the_objective_compares_is_kept(teacher, windows, collate, tmp_path):
    def names(folder, **changes):
        objective = DistillationObjective(**changes)
        ask(cached(teacher, tmp_path / folder, objective), collate(windows[:1]), objective)
        tensors = teacher_cache.safetensors.torch.load_file(tmp_path / folder / "0" / "998.safetensors")
        assert tensors.pop("input_ids").dtype == torch.int32
        assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
        return sorted(tensors)

    hidden, rows = ["hidden.2", "hidden.4"], ["log_rows.2", "log_rows.4"]
    assert names("all", embedding_weight=1.0) == ["hidden.0", *hidden, *rows, "logits"]
    assert names("default") == [*hidden, *rows, "logits"]
    assert names("no-attention", attention_weight=0.0) == [*hidden, "logits"]
    assert names("no-output", output_weight=0.0) == [*hidden, *rows]


def test_what_is_not_kept_comes_from_the_teacher(teacher, windows, collate, calls, tmp_path):
    objective = DistillationObjective(output_weight=0.0)
    view, batch = cached(teacher, tmp_path, objective), collate(windows[:2])
    ask(view, batch, objective)
    other = view(batch, Request(attention_layers=[1], positions=batch["labels"] != -100))
    assert sorted(other.attention_rows) == [1] and other.logits is not None and len(calls) == 2


def test_a_call_without_positions_writes_nothing_incomplete(teacher, windows, collate, calls, tmp_path):
    view, batch = cached(teacher, tmp_path), collate(windows[:2])
    assert view(batch, Request(attention_layers=LAYERS)).logits is None
    assert list(tmp_path.rglob("*.safetensors")) == []
    ask(view, batch)
    assert view(batch).logits is None and view(batch).attention_rows == {} and len(calls) == 2


def test_windows_without_a_masked_token(teacher, windows, tiny_tokenizer, tmp_path):
    batch = MaskedLanguageModelCollator(tiny_tokenizer, mask_probability=0.0)(windows[:2])
    view = cached(teacher, tmp_path)
    assert ask(view, batch).logits.shape == ask(view, batch).logits.shape == (0, 135)


def test_teachers_with_open_maps_keep_probabilities(windows, collate, tmp_path):
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=135, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    teacher = Teacher(MPNetForMaskedLM(config), has_mlm_head=True)
    view, batch = cached(teacher, tmp_path), collate(windows[:3])
    for _ in range(2):
        found, expected = ask(view, batch), ask(teacher.view, batch)
        assert not found.log_rows
        valid = batch["attention_mask"].bool()
        rows = [v.attention_rows[2].transpose(1, 2)[valid] for v in (found, expected)]
        torch.testing.assert_close(*rows, rtol=2e-3, atol=1e-5)


# Teachers without a masked-LM head


def test_a_random_head_is_no_part_of_the_identity(tmp_path, tiny_teacher, windows, collate):
    BertModel(tiny_teacher.config).save_pretrained(tmp_path / "teacher")
    objective, batch = DistillationObjective(), collate(windows[:2])
    for _ in range(2):  # each time with another random head
        teacher = load_teacher(tmp_path / "teacher", with_tokenizer=False)
        assert not teacher.has_mlm_head
        assert ask(cached(teacher, tmp_path / "cache", objective), batch).logits is None


# Identity


def test_the_manifest_tells_what_the_cache_is_of(teacher, tmp_path):
    cached(teacher, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format"] == "minialbert-teacher-cache" and manifest["format_version"] == 1
    assert manifest["layers"] == [2, 4] and manifest["masking"] == MASKING
    assert manifest["objective"]["kl_direction"] == "teacher-student" and len(manifest["teacher"]) == 64


@pytest.mark.parametrize("what", ["teacher", "objective", "layers", "masking"])
def test_another_identity_is_refused(what, teacher, tmp_path):
    cached(teacher, tmp_path)
    changes = {}
    if what == "teacher":
        with torch.no_grad():
            teacher.model.bert.encoder.layer[0].output.dense.bias[3] += 1e-3
    elif what == "objective":
        changes["objective"] = DistillationObjective(temperature=2.0)
    elif what == "layers":
        changes["layers"] = (1, 4)
    else:
        changes["masking"] = {**MASKING, "seed": 43}
    with pytest.raises(
        UserError, match=f"holds a cache with another {what}: delete it, or give another output"
    ):
        cached(teacher, tmp_path, **changes)


def test_a_layer_map_survives_json(teacher, tmp_path):
    objective = DistillationObjective(layer_map=(2, 4))
    cached(teacher, tmp_path, objective)
    cached(teacher, tmp_path, objective)


def test_a_damaged_manifest_is_told(teacher, tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(UserError, match=r"manifest.json is damaged .* start anew"):
        cached(teacher, tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="holds a cache with another format"):
        cached(teacher, tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "1.safetensors").touch()
    with pytest.raises(UserError, match="holds files but no manifest.json"):
        cached(teacher, tmp_path)
    with pytest.raises(UserError, match="cannot be written or read"):
        cached(teacher, tmp_path / "0" / "1.safetensors")


def test_other_masks_are_refused(teacher, windows, collate, tmp_path):
    view = cached(teacher, tmp_path)
    ask(view, collate([{**window, "epoch": 0} for window in windows]))
    with pytest.raises(
        UserError, match=r"998.safetensors was made with other tokens or masks for window 998"
    ):
        ask(view, collate([{**window, "epoch": 1} for window in windows]))


# Damage


@pytest.mark.parametrize("damage", ["empty", "truncated", "noise", "lacking", "shape"])
def test_a_damaged_file_is_computed_again(damage, teacher, windows, collate, calls, tmp_path, caplog):
    view, batch = cached(teacher, tmp_path), collate(windows)
    expected = ask(view, batch)
    for path in (tmp_path / "0" / "999.safetensors", tmp_path / "1" / "1002.safetensors"):
        content = path.read_bytes()
        if damage in ("lacking", "shape"):
            tensors = teacher_cache.safetensors.torch.load(content)
            del tensors["hidden.2"]
            if damage == "shape":
                tensors["hidden.2"] = torch.zeros(3, 32, dtype=torch.float16)
            content = teacher_cache.safetensors.torch.save(tensors)
        else:
            content = {"empty": b"", "truncated": content[:-10], "noise": b"x" * 100}[damage]
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert equal(ask(view, batch), expected)
    assert len(calls) == 2
    warnings = [
        record.getMessage() for record in caplog.records if record.name == "minialbert.method.teacher_cache"
    ]
    assert len(warnings) == 1 and "999.safetensors is damaged" in warnings[0]
    assert equal(ask(view, batch), expected) and len(calls) == 2  # mended
    assert equal(ask(cached(teacher, tmp_path), batch), expected) and len(calls) == 2


def test_an_interrupted_write_leaves_no_file(teacher, windows, collate, tmp_path, monkeypatch):
    view = cached(teacher, tmp_path)

    def fail(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache.os, "replace", fail)
        with pytest.raises(UserError, match="No space left on device.*training.cache_teacher=false"):
            ask(view, collate(windows[:1]))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]
    ask(view, collate(windows[:1]))


# Disk space


def test_a_cache_larger_than_the_disk_is_refused(teacher, windows, collate, tmp_path, monkeypatch, caplog):
    batch = collate(windows)
    ask(cached(teacher, tmp_path / "first"), batch)
    size = (tmp_path / "first" / "0" / "998.safetensors").stat().st_size

    def free(num_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=num_bytes))

    # A million windows of the first one's size; a tenth of the disk is left free.
    free(int(size * 1_000_000 / 0.9) - 10)
    with pytest.raises(
        UserError,
        match=r"would take [\d.]+ GB more for 1,000,000 windows \([\d.]+ kB each\), but .* has room for [\d.]+ GB: .*"
        r"training.cache_teacher=false",
    ):
        ask(cached(teacher, tmp_path / "second", num_windows=1_000_000), batch)
    assert list((tmp_path / "second").rglob("*.safetensors")) == []
    free(int(size * 1_000_000 / 0.9) + 10)
    with caplog.at_level(logging.INFO, logger="minialbert.method.teacher_cache"):
        view = cached(teacher, tmp_path / "third", num_windows=1_000_000)
        ask(view, batch)
        ask(view, collate(windows))
    assert [message.partition(":")[0] for message in caplog.messages] == ["teacher cache"]
    assert "for 1,000,000 windows (0 stored)" in caplog.messages[0]


def test_a_resumed_cache_needs_room_for_the_rest_only(teacher, windows, collate, tmp_path, monkeypatch):
    ask(cached(teacher, tmp_path), collate(windows[:5]))
    size = (tmp_path / "1" / "1000.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * size))
    ask(cached(teacher, tmp_path), collate(windows))


# Contradictions


def test_a_teacher_with_dropout_cannot_be_cached(teacher, windows, collate, tmp_path):
    with pytest.raises(UserError, match=r"training.cache_teacher .* distill.teacher_dropout"):
        cached(teacher, tmp_path / "cache", DistillationObjective.preset("as-published"))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UserError, match="with dropout"):
        cached(teacher, tmp_path)(collate(windows[:1]), Request(after_dropout=True))


# Masks


def test_fixed_masks_keep_the_order_and_drop_the_epoch(windows, collate):
    shuffled = ShuffledWindows(windows, 15, seed=0)
    fixed = FixedMasks(shuffled)
    assert len(fixed) == 15
    items = [fixed[n] for n in range(15)]
    assert [item["window_id"] for item in items] == [shuffled[n]["window_id"] for n in range(15)]
    assert {item["epoch"] for item in items} == {0} and shuffled[14]["epoch"] == 2
    epochs = [{item["window_id"]: item for item in items[n : n + 6]} for n in (0, 6)]
    assert list(epochs[0]) != list(epochs[1])
    for window_id, item in epochs[0].items():
        assert torch.equal(collate([item])["labels"], collate([epochs[1][window_id]])["labels"])
    with pytest.raises(IndexError):
        fixed[15]


def test_a_run_of_several_epochs(teacher, windows, collate, calls, tmp_path):
    fixed = FixedMasks(ShuffledWindows(windows, 24, seed=0))
    view = cached(teacher, tmp_path)
    for begin in range(0, 24, 3):
        ask(view, collate([fixed[n] for n in range(begin, begin + 3)]))
    assert len(calls) == 2  # the first epoch's batches

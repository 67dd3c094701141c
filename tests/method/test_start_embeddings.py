"""The embeddings, their projection and a factorised head, as they start from a teacher's."""

import pytest
import torch
from small_teachers import embeddings_of, make_batches, make_student, make_teacher, valid_cosine
from torch import nn

from minialbert import MiniAlbertForMaskedLM
from minialbert.method.start import embedding_tables, initialize_from_teacher


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def batches():
    return make_batches()


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "mpnet", "distilbert"])
def test_full_rank_student_starts_with_the_teachers_embeddings(family, tiny_tokenizer, batches):
    teacher = make_teacher(family)
    student = make_student(teacher, tiny_tokenizer)
    report = initialize_from_teacher(student, teacher, batches)
    valid = batches[0]["attention_mask"].bool()
    torch.testing.assert_close(
        embeddings_of(student, batches[0])[valid], teacher.view(batches[0]).hidden_states[0][valid]
    )
    assert report[0].startswith("embedding tables (word_embeddings, ") and report[0].endswith(
        ": the teacher's"
    )
    assert report[1] == "embedding LayerNorm: the teacher's (full rank, no projection)"


def token_sums(teacher, batches):
    """Return what the teacher's embedding LayerNorm reads for each token of the text."""
    tables = embedding_tables(teacher.model)
    rows = []
    for batch in batches:
        sums = tables["word_embeddings"][batch["input_ids"]]
        if "position_embeddings" in tables:
            sums = sums + tables["position_embeddings"][: sums.shape[1]]
        if "token_type_embeddings" in tables:
            sums = sums + tables["token_type_embeddings"][batch["token_type_ids"]]
        rows.append(sums[batch["attention_mask"].bool()])
    return torch.cat(rows).double()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert"])
def test_low_rank_rows_are_principal_components_of_the_teachers_output(family, tiny_tokenizer, batches):
    teacher, rank = make_teacher(family), 8
    student = make_student(teacher, tiny_tokenizer, embedding_size=rank)
    report = initialize_from_teacher(student, teacher, batches)
    assert report[0].endswith("): the teacher's, in 7 principal directions")
    embeddings = student.minialbert.embeddings
    captured = []
    hook = embeddings.LayerNorm.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    for batch in batches:
        embeddings_of(student, batch)
    hook.remove()
    ours = torch.cat(
        [rows[batch["attention_mask"].bool()] for rows, batch in zip(captured, batches, strict=True)]
    )
    ours = ours.double()
    # The LayerNorm takes nothing away: there is no mean over features, and none over the text either.
    torch.testing.assert_close(ours.mean(1), torch.zeros_like(ours[:, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.mean(0), torch.zeros_like(ours[0]), rtol=0, atol=1e-6)
    # Singular vectors of the outputs themselves, made without the package.
    sums, gain = token_sums(teacher, batches), teacher.model.base_model.embeddings.LayerNorm.weight.double()
    output = nn.functional.layer_norm(sums, sums.shape[1:]) * gain
    components = torch.linalg.svd(output - output.mean(0), full_matrices=False)[2][: rank - 1]
    wanted = ((sums - sums.mean(1, keepdim=True)) * gain) @ components.T
    wanted -= wanted.mean(0)
    # The same up to rotation and length: all distances between tokens are in the same proportion.
    distances = [torch.cdist(rows, rows) for rows in (ours, wanted)]
    torch.testing.assert_close(
        distances[0] / distances[0].mean(), distances[1] / distances[1].mean(), rtol=1e-4, atol=1e-5
    )


def test_rank_one_is_no_number_lost(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer, embedding_size=1)
    initialize_from_teacher(student, teacher, batches)  # a LayerNorm over one feature has nothing to say
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())
    assert student.minialbert.embeddings.word_embeddings.weight.abs().sum() == 0


def test_low_rank_rows_are_as_long_as_the_teachers(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer, embedding_size=8)
    initialize_from_teacher(student, teacher, batches)
    tokens = torch.cat([torch.arange(135)] + [b["input_ids"][b["attention_mask"].bool()] for b in batches])
    words = student.minialbert.embeddings.word_embeddings.weight.detach()
    ours = words[tokens[tokens != tiny_tokenizer.pad_token_id]]
    theirs = embedding_tables(teacher.model)["word_embeddings"][tokens]
    ratio = (ours.square().mean() / theirs.square().mean()).sqrt()
    assert ratio.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("has_head", [True, False])
def test_factorised_head_is_the_weighted_least_squares_fit(has_head, tiny_tokenizer, batches):
    teacher = make_teacher(tie_word_embeddings=False)
    teacher.has_mlm_head = has_head
    student = make_student(teacher, tiny_tokenizer, embedding_size=8)
    report = initialize_from_teacher(student, teacher, batches)
    fitted = "random, but for the way to its decoder, fitted to the word table (the teacher has none)"
    assert report[-1] == "masked-LM head: " + ("the teacher's" if has_head else fitted)
    frequency = torch.ones(135, dtype=torch.float64)
    for batch in batches:
        frequency += torch.bincount(batch["input_ids"][batch["attention_mask"].bool()], minlength=135)
    rows = student.mlm_head.decoder.weight.double()
    root = frequency.sqrt()[:, None]
    design = root * torch.cat([rows, torch.ones(135, 1, dtype=torch.float64)], 1)
    target = teacher.model.cls.predictions.decoder if has_head else teacher.model.get_input_embeddings()
    decoder = target.weight.double()
    fit = torch.linalg.lstsq(design, root * decoder, rcond=1e-7, driver="gelsd").solution[:-1]
    ours = student.mlm_head.projection.weight.double()
    # What it makes of the rows: they have no mean, so that one direction of the rank is open.
    torch.testing.assert_close(rows @ ours, rows @ fit, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [8, 24])
@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_low_rank_embeddings_are_nearer_than_random_ones(family, rank, tiny_tokenizer, batches):
    teacher = make_teacher(family)
    student = make_student(teacher, tiny_tokenizer, embedding_size=rank)
    before = valid_cosine(student, teacher, batches[0])
    report = initialize_from_teacher(student, teacher, batches)
    after = valid_cosine(student, teacher, batches[0])
    assert after > before + 0.3 and after > {8: 0.6, 24: 0.9}[rank]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert report[1].startswith(
        f"embedding projection: least squares on {tokens} tokens (cosine to the teacher's"
    )


def test_more_rank_is_nearer(tiny_tokenizer, batches):
    teacher = make_teacher()
    cosines = []
    for rank in (4, 8, 16, 28):
        student = make_student(teacher, tiny_tokenizer, embedding_size=rank)
        initialize_from_teacher(student, teacher, batches)
        cosines.append(valid_cosine(student, teacher, batches[0]))
    assert cosines == sorted(cosines)


def test_teacher_with_factorised_embeddings_is_met_exactly_at_its_own_rank(tiny_tokenizer, batches):
    teacher = make_teacher("albert")
    student = make_student(teacher, tiny_tokenizer, embedding_size=16)
    report = initialize_from_teacher(student, teacher, batches)
    assert report[0].endswith(": the teacher's")
    assert valid_cosine(student, teacher, batches[0]) > 0.999
    wider = make_student(teacher, tiny_tokenizer, embedding_size=24)  # more rank than the teacher has
    initialize_from_teacher(wider, teacher, batches)
    assert torch.linalg.matrix_rank(wider.minialbert.embeddings.word_embeddings.weight) <= 16
    assert valid_cosine(wider, teacher, batches[0]) > 0.99


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_rows_reserved_for_padding_are_left_out(family, tiny_tokenizer, batches):
    teacher = make_teacher(family)
    student = make_student(teacher, tiny_tokenizer)
    assert student.config.max_position_embeddings == 18
    initialize_from_teacher(student, teacher, batches)
    table = teacher.model.base_model.embeddings.position_embeddings.weight
    ours = student.minialbert.embeddings.position_embeddings.weight
    torch.testing.assert_close(ours, table[2:])  # row 0 is the row after the padding id, 1


def test_padding_id_is_the_tokenizers(tiny_tokenizer, batches):
    teacher = make_teacher("roberta")
    config = make_student(teacher, tiny_tokenizer).config
    config.pad_token_id = 1
    student = MiniAlbertForMaskedLM(config)
    initialize_from_teacher(student, teacher, batches)
    words = student.minialbert.embeddings.word_embeddings
    assert words.padding_idx == 1 and words.weight[1].abs().sum() == 0 and words.weight[0].abs().sum() > 0


def test_a_longer_student_has_zeros_where_the_teacher_ends(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer, max_position_embeddings=30)
    initialize_from_teacher(student, teacher, batches)
    positions = student.minialbert.embeddings.position_embeddings.weight
    torch.testing.assert_close(positions[:20], teacher.model.bert.embeddings.position_embeddings.weight)
    assert positions[20:].abs().sum() == 0


def test_teacher_without_token_types_leaves_zeros(tiny_tokenizer, batches):
    teacher = make_teacher("distilbert")
    student = make_student(teacher, tiny_tokenizer)
    report = initialize_from_teacher(student, teacher, batches)
    assert student.minialbert.embeddings.token_type_embeddings.weight.abs().sum() == 0
    assert report[0].startswith("embedding tables (word_embeddings, position_embeddings):")


def test_projection_without_text_or_with_another_width_stays_random(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer, embedding_size=8)
    assert (
        initialize_from_teacher(student, teacher, [])[1]
        == "embedding projection: random (no text to fit it on)"
    )
    student = make_student(teacher, tiny_tokenizer, embedding_size=8, hidden_size=64)
    report = initialize_from_teacher(student, teacher, batches)
    assert report[1:] == [
        "embedding projection: random (the teacher has another width)",
        "shared block: random (width or inner width differ from the teacher's)",
        "masked-LM head: random (width differs from the teacher's)",
    ]


def test_mode_gradients_and_hooks_are_left_as_they_were(tiny_tokenizer, batches):
    teacher = make_teacher()
    student = make_student(teacher, tiny_tokenizer, embedding_size=8).train()
    initialize_from_teacher(student, teacher, batches)
    assert student.training and student.minialbert.embeddings.dropout.training and not teacher.model.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in student.modules())

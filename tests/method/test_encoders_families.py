"""Families of encoders as teachers: what works works, the rest is refused in plain words, and the docs say which."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM

from minialbert.errors import UserError
from minialbert.method.encoders import load_teacher
from minialbert.method.held_out import measure_held_out
from minialbert.method.objective import DistillationObjective
from minialbert.method.plan import resolve_objective
from minialbert.method.start import build_student
from minialbert.method.trainer import DistillationStudent
from minialbert.recipes.schema import StudentRecipe

LENGTH = 16
SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DEBERTA = {
    "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False, "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}  # fmt: skip
XLM = {
    "vocab_size": 61,
    "emb_dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 40,
    "n_langs": 1,
}
# By the name of the family in Transformers: what its configuration has besides SHAPE.
FAMILIES = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "big_bird": {"block_size": 2, "num_random_blocks": 1},
    "camembert": SPECIAL,
    "convbert": {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 5},
    "data2vec-text": SPECIAL,
    "deberta": DEBERTA,
    "deberta-v2": {**DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "esm": {
        "pad_token_id": 1,
        "mask_token_id": 4,
        "position_embedding_type": "rotary",
        "token_dropout": True,
    },
    "eurobert": {**SPECIAL, "num_key_value_heads": 2, "mask_token_id": 4},
    "flaubert": {},
    "fnet": {},
    "funnel": {},
    "ibert": SPECIAL,
    "layoutlm": {"max_2d_position_embeddings": 40},
    "longformer": {**SPECIAL, "attention_window": [8, 8]},
    "luke": {**SPECIAL, "entity_vocab_size": 5, "entity_emb_size": 8},
    "megatron-bert": {},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16},
    "modernbert": {**SPECIAL, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8},
    "mpnet": {"pad_token_id": 1},
    "mra": {},
    "nomic_bert": {},
    "nystromformer": {"segment_means_seq_len": 32, "num_landmarks": 8},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roberta": SPECIAL,
    "roberta-prelayernorm": SPECIAL,
    "roformer": {"embedding_size": 32},
    "squeezebert": {
        "embedding_size": 32,
        **dict.fromkeys(["q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"], 2),
    },
    "xlm": {},
    "xlm-roberta": SPECIAL,
    "xlm-roberta-xl": SPECIAL,
    "xmod": {**SPECIAL, "languages": ["en_XX"], "default_language": "en_XX"},
    "yoso": {"use_expectation": True},
}
# Those that name their sizes differently.
OTHERS = {
    "distilbert": {
        "vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40,
    },
    "funnel": {"vocab_size": 61, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    "xlm": XLM,
    "flaubert": XLM,
}  # fmt: skip


def a_teacher(family, folder):
    config = AutoConfig.for_model(family, **OTHERS.get(family, {**SHAPE, **FAMILIES[family]}))
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return load_teacher(folder, with_tokenizer=False, length=LENGTH)


def a_batch():
    torch.manual_seed(1)
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 11:] = 0
    ids = torch.randint(5, 60, (2, LENGTH)).masked_fill(mask == 0, 0)
    labels = torch.full_like(ids, -100)
    labels[:, 3:5] = ids[:, 3:5]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "token_type_ids": torch.zeros_like(ids),
    }


class Tokenizer:
    pad_token_id = 0

    def __len__(self):
        return 61


def learns(teacher, **recipe):
    """Return what a student of a teacher starts from, after a step's losses and a measurement, all finite."""
    recipe = StudentRecipe(num_hidden_layers=2, **recipe)
    student, report = build_student(recipe, teacher, Tokenizer(), [a_batch()], seed=0)
    objective, batch, notes = DistillationObjective(), a_batch(), []
    objective = resolve_objective(objective, teacher, student, notes)
    module, layers = DistillationStudent(student, teacher.hidden_size), (1, 2)
    positions = batch["labels"] != -100
    asked = objective.teacher_request(layers, positions)
    said = teacher.view(batch, asked)
    view = module(batch, objective.student_request(layers, positions, teacher=said))
    terms = objective(
        view, said, labels=batch["labels"], attention_mask=batch["attention_mask"], num_teacher_layers=2
    )
    terms.total.backward()
    assert terms.total.isfinite() and terms.hidden > 0 and terms.output > 0
    assert (terms.attention > 0) == (not teacher.attention_fault)
    metrics = measure_held_out(
        module.eval(),
        teacher.view,
        [batch],
        layers=layers,
        with_attention=not teacher.attention_fault,
        num_windows=2,
    )[0]
    assert len(metrics.cosine) == 2 and len(metrics.attention_kl) == (0 if teacher.attention_fault else 2)
    assert any("attention rows: neither" in note for note in notes) == bool(teacher.attention_fault)
    return {line.split(":")[0]: line.partition(": ")[2] for line in report}


def row_of(family, folder):
    """Return the row of a family in the table of docs/teachers.md."""
    try:
        teacher = a_teacher(family, folder)
    except UserError as error:
        assert "\n" not in str(error)
        reason = next(
            words
            for words in (
                "no attention mask",
                "no hidden state of one width for each",
                "cannot read an input",
            )
            if words in str(error)
        )
        return f"| {family} | refused: {reason} | | | |"
    begins = learns(teacher, embedding_size=8)
    learns(teacher, embedding_size=None, mlm_head="untied", adapter_reduction_factor=None)
    rows = "yes" if not teacher.attention_fault else "no"
    block, head = (
        "no" if begins[part].startswith("random") else "yes" for part in ("shared block", "masked-LM head")
    )
    return f"| {family} | yes | {rows} | {block} | {head} |"


PAGE = Path(__file__).parents[2] / "docs" / "teachers.md"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_what_the_table_says(family, tmp_path):
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip("this Transformers does not know it")
    assert row_of(family, tmp_path) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_table_has_the_families_that_are_tried():
    rows = re.findall(r"^\| ([\w-]+) \| (?:yes|refused)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(FAMILIES)

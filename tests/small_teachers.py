"""Small teachers of each family, students of them, and batches: what the tests of starts need."""

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from minialbert import MiniAlbertForMaskedLM
from minialbert.method.encoders import Teacher, forward_inputs
from minialbert.method.start import student_config
from minialbert.recipes.schema import StudentRecipe

SHAPE = {
    "vocab_size": 135,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,  # far from zero, so that differences show
}
CONFIGS = {
    "bert": lambda: BertConfig(**SHAPE),
    "roberta": lambda: RobertaConfig(**SHAPE, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5),
    "electra": lambda: ElectraConfig(**SHAPE, embedding_size=32),
    "mpnet": lambda: MPNetConfig(**SHAPE, pad_token_id=1),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=135,
        dim=32,
        n_layers=4,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=20,
        initializer_range=0.3,
    ),
    "albert": lambda: AlbertConfig(**SHAPE, embedding_size=16, hidden_act="gelu"),
    "modernbert": lambda: ModernBertConfig(
        **SHAPE, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
}


def make_teacher(family="bert", **changes):
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.Linear)):  # nothing keeps a value that a copy could miss
            for parameter in module.parameters(recurse=False):
                if parameter.dim() == 1:
                    nn.init.normal_(parameter, mean=1.0 if module.weight is parameter else 0.0, std=0.1)
    return Teacher(model, has_mlm_head=True)


def make_student(teacher, tokenizer, **recipe):
    values = {"num_hidden_layers": 2, "embedding_size": None, "adapter_reduction_factor": 8, **recipe}
    torch.manual_seed(1)
    return MiniAlbertForMaskedLM(student_config(StudentRecipe(**values), teacher, tokenizer)).eval()


def make_batches():
    """Return three batches of four windows of 16 tokens, one of them padded."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(3):
        # Few words are frequent, as in text.
        ids = 5 + (130 * torch.rand(4, 16, generator=generator) ** 3).long()
        mask = torch.ones_like(ids)
        mask[1, 11:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)})
    return found


def embeddings_of(student, batch):
    with torch.no_grad():
        return student.minialbert(**forward_inputs(student, batch), output_hidden_states=True).hidden_states[
            0
        ]


def valid_cosine(student, teacher, batch):
    valid = batch["attention_mask"].bool()
    pair = embeddings_of(student, batch)[valid], teacher.view(batch).hidden_states[0][valid]
    return nn.functional.cosine_similarity(*pair, dim=-1).mean().item()


def perturbed(model_class, config, seed=0):
    """Model in eval mode with no parameter at a special starting value (biases, LayerNorms, up-projections)."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model

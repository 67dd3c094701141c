"""Writes the folder of a student as the hub wants it, loadable there without this package, and uploads it.

An encoder or a masked LM gets what sentence-transformers needs too: the mean of its last hidden states over the tokens,
in the layout of sentence-transformers 2, which every later version reads without a word.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minialbert.data.tokenizers import load_tokenizer
from minialbert.deploy.card import model_card
from minialbert.deploy.evidence import ENCODERS, ModelFacts, gather_evidence
from minialbert.errors import UserError, display_name, failing_as, one_line
from minialbert.method.adapters import CONFIG_NAME as ADAPTER_CONFIG_NAME
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.encoders import ARCHITECTURES, head_of, load_encoder, load_encoder_config
from minialbert.method.modeling_minialbert import MiniAlbertPreTrainedModel
from minialbert.method.sentence_vectors import SENTENCE_FILES, read_pooling, write_pooling
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import check_apart, check_folder, whole_folder, write_json, writing
from minialbert.tasks.models import TASK_FILE, read_task_file

_WEIGHTS = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
_CARD, _LICENSE = "README.md", "LICENSE"
# What an export may have left that the next one need not write.
_OPTIONAL_FILES = (TASK_FILE, _LICENSE, *SENTENCE_FILES, "2_Dense/config.json", "2_Dense/model.safetensors")
# Where a tokenizer was loaded from is of no use to anyone else.
_LOCAL_KEYS = ("name_or_path", "is_local", "local_files_only", "tokenizer_file", "special_tokens_map_file")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")


def export_to_hub_folder(
    model: str | Path,
    output: str | Path,
    *,
    records: Sequence[Path] = (),
    license: str = "apache-2.0",
    language: str = "en",
    repo_id: str | None = None,
    push: bool = False,
    private: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a student as a folder for the model hub, and upload it where asked to.

    The folder appears complete or not at all. It holds weights, config, the two files that define the model,
    tokenizer, `task.json` where there is one, licence and model card, and for an encoder or a masked LM what
    sentence-transformers needs. Files of an earlier export are replaced with `overwrite`; those that no export writes
    stay, and are not uploaded.

    The model is a directory, or that of the run that made it, whose record the card is made from too. Options are those
    of `minialbert.export`; `private` is None for the account's default. Returns a record of what was written: its
    folder, files, parameters, and the address where it was uploaded.
    """
    license = license.strip().lower()
    _check_options(license, language, repo_id, push=push)
    source = _model_folder(Path(model).expanduser())
    target = Path(output).expanduser().resolve()
    check_apart(target, [source])
    check_folder(Path(output).expanduser(), "export", overwrite=overwrite)

    loaded = _load(source)
    tokenizer = load_tokenizer(source)
    facts = _facts(loaded, tokenizer, source)
    tokenizer.model_max_length = facts.max_tokens
    own = RunDirectory(source.parent).result if source.name == "model" else None
    evidence = gather_evidence(facts, own if own is not None and own.is_file() else None, records)
    card = model_card(facts, evidence, license=license, language=language, repo_id=repo_id)
    license_text = _license_text() if license == "apache-2.0" else None

    with writing(output, advice=None), whole_folder(target, replaces=_OPTIONAL_FILES) as staging:
        loaded.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        settings = staging / "tokenizer_config.json"
        said = json.loads(settings.read_text(encoding="utf-8")).items()
        write_json(settings, {key: value for key, value in said if key not in _LOCAL_KEYS})
        if facts.task is not None:
            shutil.copyfile(source / TASK_FILE, staging / TASK_FILE)
        if facts.sentence_embeddings:
            pooling = read_pooling(
                str(source), lambda file: path if (path := source / file).is_file() else None
            )
            write_pooling(staging, pooling, width=loaded.config.hidden_size, max_tokens=facts.max_tokens)
        if license_text is not None:
            (staging / _LICENSE).write_text(license_text, encoding="utf-8")
        (staging / _CARD).write_text(card, encoding="utf-8")
        written = [path for path in staging.rglob("*") if path.is_file()]
        files = {path.relative_to(staging).as_posix(): path.stat().st_size for path in written}
    return {
        "output": str(output), "model": facts.name, "architecture": facts.architecture,
        "parameters": facts.parameters, "encoder_parameters": facts.encoder_parameters,
        "files": sorted(files), "bytes": sum(files.values()), "sentence_embeddings": facts.sentence_embeddings,
        "results": len(evidence.results), "records": ["/".join(file.parent.parts[-2:]) for file in evidence.used],
        "records_passed_over": evidence.passed_over, "license": license, "repo_id": repo_id,
        "url": _push(target, sorted(files), str(repo_id), private) if push else None,
    }  # fmt: skip


def max_tokens(config: MiniAlbertConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens an input may have: what the positions hold, or the tokenizer's limit if lower."""
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def _check_options(license: str, language: str, repo_id: str | None, *, push: bool) -> None:
    if not re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*", license):
        raise UserError(
            "license must be one of the hub's identifiers, such as apache-2.0, mit, cc-by-4.0 or other, got "
            f"{license!r}"
        )
    if not _LANGUAGE.fullmatch(language):
        raise UserError(f"language must be a code such as en, de or multilingual, got {language!r}")
    if repo_id is None and push:
        raise UserError("push needs repo_id: name the repository as OWNER/NAME")
    if repo_id is not None:
        with failing_as(f"repo_id {repo_id!r} is none of the hub's: expected OWNER/NAME", HFValidationError):
            validate_repo_id(repo_id)


def _model_folder(path: Path) -> Path:
    """Return the model's folder: the one that was named, or `model` in the run that was named."""
    expected = "expected the directory of a model, or of a run with model/ in it"
    if not path.is_dir():
        raise UserError(f"{path} {'is a file' if path.exists() else 'does not exist'}: {expected}")
    folder = path if (path / "config.json").is_file() else RunDirectory(path).model
    if (folder / "config.json").is_file():
        if not any((folder / name).is_file() for name in _WEIGHTS):
            raise UserError(f"{folder} has no weights: expected {_WEIGHTS[0]} beside its config.json")
        return folder.resolve()  # "." has no name
    if (path / ADAPTER_CONFIG_NAME).is_file():
        advice = "export the model beside them, the run's model/, which has them in it"
        raise UserError(f"{path} holds adapters without their model: {advice}")
    raise UserError(f"{path} has no config.json: {expected}")


def _load(folder: Path) -> MiniAlbertPreTrainedModel:
    with failing_as(f"{folder / 'config.json'} cannot be read", (OSError, ValueError, AttributeError)):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind == "albert":
        advice = "if it is of the paper's release, write it anew with minialbert convert, and export that"
        raise UserError(f"{folder} holds an ALBERT, not a MiniALBERT of this package: {advice}")
    if kind != MiniAlbertConfig.model_type:
        advice = "expected a MiniALBERT, as minialbert writes it"
        raise UserError(f"{folder} holds a model of type {kind!r}: {advice}")
    config = load_encoder_config(folder)
    if (head := head_of(config)) is None:
        advice = f"expected one of {', '.join(ARCHITECTURES)}"
        raise UserError(f"{folder}: config.json names no architecture; {advice}")
    loaded = load_encoder(folder, head, config=config, dtype="auto")
    faults = {"missing": loaded.missing, "unknown": loaded.unknown}
    if told := [f"{what}: {', '.join(keys[:4])}" for what, keys in faults.items() if keys]:
        raise UserError(f"{folder}: its weights do not fit its config.json; {'; '.join(told)}")
    return cast("MiniAlbertPreTrainedModel", loaded.model)


def _facts(model: MiniAlbertPreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> ModelFacts:
    architecture, config = type(model).__name__, model.config
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer)} entries, its model {config.vocab_size} word embeddings; "
            "expected the tokenizer that it was trained with"
        )
    classifies = "Classification" in architecture and config.problem_type != "regression"
    return ModelFacts(
        name=str(display_name(folder)),
        architecture=architecture,
        config=config,
        parameters=model.num_parameters(),
        encoder_parameters=model.base_model.num_parameters(),
        adapter_parameters=sum(
            parameter.numel() for name, parameter in model.named_parameters() if "_adapters." in name
        ),
        max_tokens=max_tokens(config, tokenizer),
        mask_token=tokenizer.mask_token,
        labels=tuple(str(config.id2label[index]) for index in sorted(config.id2label)) if classifies else (),
        task=read_task_file(folder),
        sentence_embeddings=architecture in ENCODERS,
    )


def _license_text() -> str:
    """Return the text of the package's own licence, which the two files of the model are under."""
    try:
        installed = metadata.files("minialbert") or []
    except metadata.PackageNotFoundError:
        installed = []
    found = [Path(str(file.locate())) for file in installed if file.name == _LICENSE]
    root = Path(str(resources.files("minialbert"))).parent
    if (root / "pyproject.toml").is_file():  # a checkout
        found.append(root / _LICENSE)
    for path in found:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UserError("the text of the licence is missing from this installation: install minialbert again")


def _push(folder: Path, files: list[str], repo_id: str, private: bool | None) -> str:
    """Upload the files to a repository, which is created where it is missing, and return its address."""
    api = HfApi()
    try:
        created = api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
        what = {"repo_id": created.repo_id, "repo_type": "model", "commit_message": "Upload model"}
        api.upload_folder(folder_path=folder, allow_patterns=files, **what)
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
            advice = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
        else:
            advice = "check the network"
        raise UserError(
            f"{folder} is complete, but was not uploaded to {repo_id} ({one_line(error)}): {advice}, then push again "
            "with --overwrite"
        ) from error
    return str(created)

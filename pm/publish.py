"""What an export says of itself to others, its model card, and the upload to the Hugging Face Hub."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id

from pm.card import Facts, model_card
from pm.config import Config
from pm.data.sources import FILE_ENDINGS, split_weight
from pm.errors import UserError, first_line
from pm.run import base_of
from pm.tracking import read_history

LICENCE = ("license", "license_name", "license_link")
# What an export of another kind left in a repository, and this one does not replace, would be loaded with it.
LEFT_OVER = ["adapter_*", "base/*", "*.safetensors", "*.safetensors.index.json", "metrics.json"]


def card(run: Path, config: Config, settings: dict, metrics: dict | None, licence: str | None, place: str) -> str:
    """README.md of an export of the run, from the run's files. `licence` is that of the base unless given; `place` is
    the hub id where it will be, "" for none."""
    found = {"license": licence} if licence else {} if config.random_base else licence_of(base_of(config, run))
    audit = run / "audit.json"
    return model_card(Facts(
        title=place.split("/")[-1] or run.resolve().name, place=place, settings=settings, config=asdict(config),
        ds_config=_read(run / "ds_config.json"), environment=_read(run / "environment.json"), licence=found,
        base=hub_id(config.model), datasets=hub_datasets(config.data),
        audit=_read(audit) if audit.is_file() else None, metrics=metrics))


def saved_metrics(run: Path, checkpoint: str, step: int) -> dict | None:
    """Metrics of a checkpoint on the run's test split, from where the most is known: what eval.py wrote, what the end
    of training wrote, the evaluation at that step. None where it was not evaluated."""
    try:
        found = _read(run / "evaluation" / "report" / "metrics.json")
        if found["about"]["checkpoint"] == checkpoint and found["about"]["data"] == "the run's test split":
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        if _read(run / "export" / "preference.json")["checkpoint"] == checkpoint:
            return _read(run / "export" / "metrics.json")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for line in reversed(read_history(run)):
        if line["phase"] == "eval" and line["step"] == step:
            return {"overall": line, "by_language": line["by_language"], "by_kind": line["by_kind"]}
    return None


def hub_id(model: str) -> str:
    """The model's hub id; "" for a local folder, or a model that is made by the run."""
    return model if "/" in model and not Path(model).expanduser().exists() else ""


def hub_datasets(sources: Sequence[str]) -> list[str]:
    """The ids of those sources that are on the Hub."""
    ids = [split_weight(source)[0] for source in sources]
    ids = [name.partition("#")[0].partition("@")[0] for name in ids
           if not name.endswith(FILE_ENDINGS) and not Path(name).expanduser().exists()]
    return list(dict.fromkeys(name for name in ids if name.count("/") == 1))


def licence_of(base: str) -> dict[str, str]:
    """What the front matter of a model's card says of its licence, under the Hub's names; nothing where there is no
    card, or none can be reached. `base` is a folder or a hub id."""
    try:
        folder = Path(base)
        path = folder / "README.md" if folder.is_dir() else hf_hub_download(base, "README.md")
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, HTTPError, yaml.YAMLError):
        return {}
    return {name: data[name] for name in LICENCE if data.get(name) and isinstance(data[name], str)}


def check_login(repo: str) -> str:
    """The repository's full name, which begins with that of its owner. Raises `UserError` where `repo` is no name, or
    nobody is logged in: before anything else is done."""
    try:
        validate_repo_id(repo)
        user = HfApi().whoami()["name"]
        return repo if "/" in repo else f"{user}/{repo}"
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(f"--push_to_hub {repo}: {first_line(error)}") from None


def push(folder: Path, repo: str, private: bool, message: str) -> str:
    """Uploads all files of `folder` as one commit, to a repository that is made where there is none; returns its
    address. What an earlier export left there is deleted.

    Raises `UserError`, also where `private` was asked for and the repository is there and public.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise UserError(f"--private: {repo} is there already, and is public")
        api.upload_folder(folder_path=folder, repo_id=address.repo_id, commit_message=message,
                          delete_patterns=LEFT_OVER)
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(f"--push_to_hub {repo}: {first_line(error)}") from None
    return str(address)


def _read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))

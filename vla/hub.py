"""Checkpoints from and to the Hugging Face hub: plain files, native classes, pinned revisions, no code of anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla.checkpoint import acting, verify_folder
from vla.errors import UserError

FILES = ("*.json", "*.safetensors", "README.md")
"""What a checkpoint consists of; nothing else of a repository is fetched."""


def fetch_folder(source: str | Path, revision: str = "") -> Path:
    """A folder of a checkpoint (or of a run: its newest), or the local copy of a hub id at a revision (a commit's 40 digits)."""
    if Path(source).is_dir():
        if revision:
            raise UserError(f"{source} is a folder here, which has no revision; leave it out, or give a hub id")
        return acting(Path(source))
    from huggingface_hub import snapshot_download

    from vla.backbones.library import Origin
    from vla.backbones.pretrained import ask_hub, check_hub

    origin = Origin(str(source), revision)
    check_hub(origin)
    return Path(ask_hub(origin, lambda: snapshot_download(origin.source, revision=revision, allow_patterns=list(FILES))))


def push_folder(folder: Path, repo_id: str, *, private: bool = False, message: str = "", api: Any = None) -> str:
    """Uploads a checkpoint that is whole, and returns the commit that `from_pretrained(repo_id, revision=...)` takes.

    Who one is comes from `hf auth login` or HF_TOKEN. `api`: a `huggingface_hub.HfApi`, for another endpoint.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from vla.backbones.pretrained import HUB_ID

    folder = verify_folder(acting(folder))
    if not HUB_ID.fullmatch(repo_id):
        raise UserError(f"'{repo_id}' is no hub id; give owner/name")
    api = api or HfApi()
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=str(folder),
            allow_patterns=list(FILES),
            commit_message=message or "Checkpoint",
        )
    except LocalTokenNotFoundError as error:
        raise UserError("the hub does not know who you are: `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused {repo_id}: {str(error).splitlines()[0]}") from error
    return str(commit.oid)

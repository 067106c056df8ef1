"""Names on the Hugging Face hub: from it, through its cache, and to it.

Its usual variables hold: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN. Nothing here sends anything but ``push``.
"""

from __future__ import annotations

from pathlib import Path

from redraft.errors import UserError

_WANTED = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]
_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]  # where there is nothing better
_LOG_IN = "Log in (hf auth login), or set HF_TOKEN."


def pull(name: str) -> Path:
    """A snapshot of repository ``owner/name``; what the cache holds already isn't fetched again.

    Raises:
        UserError: there is no such repository, it can't be reached, or it is not in the cache while offline.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_WANTED, *_PICKLED], ignore_patterns=["*/*"]))
    except HFValidationError as error:
        raise UserError(f"'{name}' is no name of a repository: {_line(error)}", "Names are OWNER/NAME.") from None
    except GatedRepoError:
        raise UserError(f"'{name}' is open only to those who accepted its terms on the hub.", _LOG_IN) from None
    except RepositoryNotFoundError:
        what = f"'{name}' is neither a folder nor a model on the hub ({constants.ENDPOINT})"
        raise UserError(f"{what}, or it is private.", f"Check the name. For a private one: {_LOG_IN}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cache = f"'{name}' is neither a folder nor in the cache ({constants.HF_HUB_CACHE})"
        if constants.is_offline_mode():
            raise UserError(
                f"{cache}, and HF_HUB_OFFLINE forbids to fetch it.", "Unset it, or name a folder."
            ) from None
        what = f"{cache}, and the hub ({constants.ENDPOINT}) can't be reached: {_line(error.__cause__ or error)}"
        raise UserError(what, "Check the network, or give the path of a folder.") from None
    if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise UserError(f"'{name}' on the hub has no config.json: it holds no model.", "Check the name.")
    return folder


def check_push(name: str) -> None:
    """
    Raises:
        UserError: nothing can be pushed to ``name``, whatever it is: no token, offline, or it is no name.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"'{name}' is no name of a repository: {_line(error)}", "Names are OWNER/NAME.") from None
    if constants.is_offline_mode():
        raise UserError(f"nothing can be pushed to '{name}': HF_HUB_OFFLINE is set.", "Unset it.")
    if get_token() is None:
        raise UserError(f"nothing can be pushed to '{name}' without a token of the hub.", _LOG_IN)


def push(folder: Path, name: str) -> None:
    """Upload a folder to repository ``owner/name``, which is made where there is none.

    Raises:
        UserError: the hub does not take it; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_push(name)
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name)
    except (HfHubHTTPError, OSError, ValueError) as error:
        what = f"the hub did not take '{name}': {_line(error)} The folder '{folder}' is written."
        raise UserError(what, f"Does the token allow it? {_LOG_IN}") from None


def _line(error: BaseException) -> str:
    """The first line of a message, as a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(":.") + "."

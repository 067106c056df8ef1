"""Download models from the Hugging Face hub, through its cache, and upload them.

The hub's usual variables apply: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN. Only ``push`` uploads anything.
"""

from __future__ import annotations

from pathlib import Path

from redraft.errors import UserError

_WANTED = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]
_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]  # where there are no safetensors
_LOG_IN = "Log in (hf auth login), or set HF_TOKEN."


def pull(name: str) -> Path:
    """Download a snapshot of the repository ``owner/name``; files in the cache are not downloaded again.

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
        what = f"'{name}' is not the name of a repository: {_line(error)}"
        raise UserError(what, "Names are OWNER/NAME.") from None
    except GatedRepoError:
        raise UserError(f"'{name}' is open only to users who have accepted its terms on the hub.", _LOG_IN) from None
    except RepositoryNotFoundError:
        what = f"'{name}' is neither a folder nor a model on the hub ({constants.ENDPOINT})"
        raise UserError(f"{what}, or it is private.", f"Check the name. For a private one: {_LOG_IN}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cache = f"'{name}' is neither a folder nor in the cache ({constants.HF_HUB_CACHE})"
        if constants.is_offline_mode():
            raise UserError(
                f"{cache}, and HF_HUB_OFFLINE forbids downloading it.", "Unset it, or give a folder."
            ) from None
        what = f"{cache}, and the hub ({constants.ENDPOINT}) can't be reached: {_line(error.__cause__ or error)}"
        raise UserError(what, "Check the network, or give the path of a folder.") from None
    if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        what = f"'{name}' on the hub is not a model: it has no config.json."
        raise UserError(what, "Check the name. Of a repository of GGUF files, download one and give its path.")
    return folder


def check_push(name: str) -> None:
    """Check that an upload to ``name`` is possible.

    Raises:
        UserError: there is no token, the hub is offline, or ``name`` is not the name of a repository.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        what = f"'{name}' is not the name of a repository: {_line(error)}"
        raise UserError(what, "Names are OWNER/NAME.") from None
    if constants.is_offline_mode():
        raise UserError(f"Can't upload to '{name}': HF_HUB_OFFLINE is set.", "Unset it.")
    if get_token() is None:
        raise UserError(f"Can't upload to '{name}' without a hub token.", _LOG_IN)


def push(folder: Path, name: str) -> None:
    """Upload a folder to the repository ``owner/name``, which is created if it does not exist.

    Raises:
        UserError: the hub rejected the upload; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_push(name)
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name)
    except (HfHubHTTPError, OSError, ValueError) as error:
        what = f"The hub rejected the upload of '{name}': {_line(error)} The folder '{folder}' is written."
        raise UserError(what, f"Check that the token allows writing. {_LOG_IN}") from None


def _line(error: BaseException) -> str:
    """The first line of an error message, as a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(":.") + "."

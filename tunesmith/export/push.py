"""Uploads an export to the Hugging Face hub, only with --push."""

from pathlib import Path

from tunesmith.errors import UserError


def check_push(repository: str) -> None:
    """Raises UserError if the repository's name is invalid or there is no token. Uses no network."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push {repository}: {_message(error)}") from None
    if not get_token():
        raise UserError(f"--push {repository}: there is no hub token; run `hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, repository: str) -> str:
    """Uploads a folder to a repository, and creates a private one if it does not exist. Returns a message with its URL.
    Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    hub = HfApi()
    try:  # the connection, the hub, its client and its storage raise different errors
        created = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Upload by tunesmith export")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--push {repository}: {_message(error)}; the export itself is in {folder}, and "
            f"`hf upload {repository} {folder} .` tries again"
        ) from None
    return f"uploaded to {created}"


def _message(error: Exception) -> str:
    """Returns the hub's message, or else its client's, on one line."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    return " ".join((getattr(cause, "server_message", None) or str(cause) or type(cause).__name__).split())

"""An export on the hub, only when asked for."""

from pathlib import Path

from tunesmith.errors import UserError


def check_push(repository: str) -> None:
    """That there is a token and that a repository may be called this; asks nobody. Raises UserError."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push {repository}: {_said(error)}") from None
    if not get_token():
        raise UserError(f"--push {repository}: no token of the hub; `hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, repository: str) -> str:
    """Uploads a folder to a repository, made private if there is none; says where. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    hub = HfApi()
    try:  # the connection, the hub, its client and its storage each have errors of their own
        made = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload by tunesmith export")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--push {repository}: {_said(error)}; the export itself is in {folder}, and "
            f"`hf upload {repository} {folder} .` tries again"
        ) from None
    return f"uploaded to {made}"


def _said(error: Exception) -> str:
    """What the hub says, or else its client, in one line."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    return " ".join((getattr(cause, "server_message", None) or str(cause) or type(cause).__name__).split())

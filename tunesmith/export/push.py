"""An export on the hub, only when asked for."""

from pathlib import Path

from tunesmith.errors import UserError, first_line


def push_folder(folder: Path, repository: str) -> str:
    """Uploads a folder to a private repository, made if there is none; says where. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise UserError(f"--push {repository}: {first_line(error)}; the export itself is in {folder}") from None
    return f"uploaded to {made}"

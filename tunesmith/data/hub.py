"""Downloads the data files of datasets on the Hugging Face hub. A dataset's script is never run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path, PurePosixPath

from tunesmith.data.file_types import DATA_ENDINGS, ending
from tunesmith.data.splits import Selection, choose, front_matter, has_rows, other_splits
from tunesmith.errors import UserError, first_line
from tunesmith.recipe import Source


def download(source: Source) -> Selection:
    """Downloads the files of the source's subset and split into the hub's cache. Honours HF_ENDPOINT and
    HF_HUB_OFFLINE. Raises UserError if the dataset cannot be downloaded, or has no such subset or split."""
    from huggingface_hub import hf_hub_download

    name = source.path.removeprefix("hub:")
    with _hub_errors(source.path):
        fetch = partial(hf_hub_download, name, repo_type="dataset", revision=source.revision)
        names = _list(name, source.revision)
        readme = front_matter(Path(fetch("README.md"))) if "README.md" in names else {}
        data = [n for n in names if ending(PurePosixPath(n)) in DATA_ENDINGS and has_rows(n)]
        split, splits = choose(source, data, readme)
        return Selection([Path(fetch(file)) for file in sorted(splits[split])], other_splits(split, splits))


def pinned(source: Source) -> Source:
    """Returns the source with its revision, by default the main branch, resolved to the current commit. Raises
    UserError if the hub or its cache does not have it."""
    if not source.path.startswith("hub:"):
        return source
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    name = source.path.removeprefix("hub:")
    with _hub_errors(source.path):
        if HF_HUB_OFFLINE:
            return source.model_copy(update={"revision": _cached(name, source.revision).name})
        now = HfApi().dataset_info(name, revision=source.revision)
        if small := {".gitattributes", "README.md"} & {file.rfilename for file in now.siblings}:
            # Downloaded by branch, so that the cache also maps the branch to its commit for later offline use.
            hf_hub_download(name, min(small), repo_type="dataset", revision=source.revision)
    return source.model_copy(update={"revision": now.sha})


@contextmanager
def _hub_errors(path: str) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except (HFValidationError, HTTPError, OSError) as error:
        raise UserError(f"{path}: cannot download it from the hub: {first_line(error)}") from None


@cache
def _list(name: str, revision: str | None) -> list[str]:
    """Returns the paths of the dataset's files, from the hub or, offline, from its cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not HF_HUB_OFFLINE:
        HfApi().dataset_info(name, revision=revision)  # fails at once without a network; a listing tries for long
        return HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
    folder = _cached(name, revision)
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _cached(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))

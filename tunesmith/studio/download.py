"""The process that downloads a model: `python -m tunesmith.studio.download FILE`. FILE has the request, and the
outcome is written beside it."""

import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

from tunesmith.errors import first_line
from tunesmith.files import read_json, write_json
from tunesmith.model.load import HUB_FILES
from tunesmith.units import size

OUTCOME = ".outcome"  # the ending of the file with what is known so far


def main(file: Path) -> None:
    """Downloads a model into the hub's cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    asked = read_json(file)
    outcome, known = file.with_suffix(OUTCOME), {}
    patterns = [asked["file"], "README.md", "LICEN[CS]E*"] if asked["file"] else HUB_FILES
    try:
        facts = HfApi().model_info(asked["model"], revision=asked["revision"], files_metadata=True)
        files = [file for file in facts.siblings or [] if any(fnmatch(file.rfilename, one) for one in patterns)]
        known = {"files": [[file.lfs.sha256 if file.lfs else file.blob_id, file.size] for file in files]}
        write_json(outcome, known)
        _check_room(sum(file.size or 0 for file in files))
        folder = snapshot_download(asked["model"], revision=facts.sha, allow_patterns=patterns)
        write_json(outcome, known | {"folder": folder})
    except (HFValidationError, HTTPError, OSError) as error:
        write_json(outcome, known | {"error": first_line(error)})


def _check_room(nbytes: int) -> None:
    """Raises OSError unless the disk of the hub's cache has room for all files, also for those that it has already."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if free < nbytes:
        raise OSError(f"it needs {size(nbytes)} on the disk of {cache}, which has {size(free)} free")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Models: those on this machine, their deletion, and downloads."""

from fastapi import APIRouter

from tunesmith.jobs.deletion import Deletion
from tunesmith.studio import downloads, models
from tunesmith.studio.downloads import Download, NewDownload
from tunesmith.studio.models import ModelRow
from tunesmith.studio.state import Studio


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models")
    def list_models() -> list[ModelRow]:
        return models.rows(studio)

    @router.get("/models/downloads")
    def list_downloads() -> list[Download]:
        return downloads.downloads()

    @router.post("/models/download")
    def download_model(asked: NewDownload) -> Download:
        return downloads.start(asked)

    @router.post("/models/downloads/{id}/stop")
    def stop_download(id: str) -> Download:
        return downloads.stop(id)

    @router.delete("/models/downloads/{id}")
    def forget_download(id: str) -> None:
        downloads.forget(id)

    @router.get("/models/{id}/deletion")
    def model_deletion(id: str) -> Deletion:
        return models.deletion_of(studio, id)

    @router.delete("/models/{id}")
    def delete_model(id: str) -> Deletion:
        return models.delete(studio, id)

    return router

"""Files of the server's disk: lists of folders, and uploads."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel

from tunesmith.studio import uploads
from tunesmith.studio.guard import BINARY
from tunesmith.studio.listing import Listing, list_folder
from tunesmith.studio.state import Studio


class Uploaded(BaseModel):
    """A file that was received."""

    path: str
    """As recipes name it."""
    name: str
    """Made from the one that was sent; another if that was taken."""
    bytes: int


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["files"])

    @router.get("/files")
    def list_files(path: Annotated[str, Query()] = "") -> Listing:
        return list_folder(studio.roots, path)

    @router.post(
        "/uploads",
        openapi_extra={"requestBody": {"required": True, "content": {BINARY: {"schema": {"format": "binary"}}}}},
    )
    async def upload(request: Request, name: Annotated[str, Query()]) -> Uploaded:
        if request.headers.get("content-type") != BINARY:
            raise HTTPException(415, f"send the file's bytes with the header 'Content-Type: {BINARY}'")
        announced = request.headers.get("content-length", "")
        length = int(announced) if announced.isdigit() else None
        place = await uploads.receive(studio.roots, name, length, request.stream(), studio.upload_bytes)
        return Uploaded(path=studio.roots.shown(place), name=place.name, bytes=place.stat().st_size)

    return router

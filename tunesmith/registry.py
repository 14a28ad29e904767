"""Registries of modules: the files of a folder, and modules that installed packages add by an entry point."""

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from tunesmith.errors import UserError


class Registry(Mapping[str, ModuleType]):
    """{name: module}. A module is imported when it is looked up. Names are the files of `package`, except those that
    begin with _, and the entry points in `group`. Raises UserError if an entry point has the name of a file."""

    def __init__(self, package: str, group: str):
        self._package, self._group = package, group

    @cached_property
    def _places(self) -> dict[str, str | EntryPoint]:
        files = pkgutil.iter_modules(import_module(self._package).__path__)
        built_in = {file.name: f"{self._package}.{file.name}" for file in files if not file.name.startswith("_")}
        added = {point.name: point for point in entry_points(group=self._group)}
        if twice := sorted(built_in.keys() & added.keys()):
            raise UserError(
                f"{self._group}: the installed package {_package_of(added[twice[0]])} adds {twice[0]}, which "
                "is built in; uninstall the package"
            )
        return built_in | added

    def __getitem__(self, name: str) -> ModuleType:
        place = self._places[name]
        module = import_module(place) if isinstance(place, str) else _load(place)
        assert isinstance(module, ModuleType)
        return module

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # a stranger's code may raise any kind
        raise UserError(
            f"{point.group}: {point.name} of the installed package {_package_of(point)} does not load "
            f"({type(error).__name__}: {error}); update or remove the package"
        ) from error


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value

"""Recipes: the form, the check, the plan, and the files."""

from functools import cache
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from tunesmith.errors import UserError
from tunesmith.recipe import Recipe
from tunesmith.studio import recipe_files, recipe_form
from tunesmith.studio.commands import CommandFailed, while_connected
from tunesmith.studio.recipe_files import RecipeFile, RecipeText
from tunesmith.studio.recipe_form import Checked, Mistake, RecipeSchema, key_in
from tunesmith.studio.state import Studio


class Draft(BaseModel):
    """A recipe as text or as values. The values count if both are there: the text is changed so that it says them."""

    yaml: str | None = None
    values: dict[str, Any] | None = None


class PlanQuestion(BaseModel):
    """A recipe, and the machine it is planned for."""

    values: dict[str, Any]
    machine: str | None = None
    """Such as 2x3090+4090,host=64GB; None: this machine."""


class PlanAnswer(BaseModel):
    """The needs of a recipe, or the reason why they are unknown. Both are there if the disk is too small."""

    plan: dict[str, Any] | None
    """The JSON of `tunesmith plan --json`."""
    problem: Mistake | None


class NewRecipe(BaseModel):
    """A recipe to save."""

    name: str
    yaml: str
    version: str = ""
    """The version that the page has last read or saved: one with another text is not replaced."""
    replace: bool = False
    """Whether a recipe of this name is replaced whatever its text is."""


async def plan(studio: Studio, asked: PlanQuestion) -> PlanAnswer:
    """Plans a recipe; nothing is downloaded."""
    try:
        recipe = Recipe.build(asked.values)
        await run_in_threadpool(studio.roots.check, recipe)
        machine = asked.machine or ""
        if machine.endswith(".json") or "/" in machine or (studio.folder / machine).is_file():
            machine = str(studio.roots.resolve(machine))  # the description of a machine, in a file
        flags = [f"--machine={machine}"] if machine else []
        found = await studio.commands.plan(recipe, flags)
    except UserError as error:
        message = str(error).removeprefix("recipe: ")
        problem = Mistake(key=key_in(message), message=message)
        return PlanAnswer(plan=error.output if isinstance(error, CommandFailed) else None, problem=problem)
    return PlanAnswer(plan=found, problem=None)


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["recipes"])
    schema = cache(recipe_form.schema)

    @router.get("/recipe/schema")
    async def recipe_schema() -> RecipeSchema:
        studio.commands.prepare()  # the form asks for plans
        return await run_in_threadpool(schema)

    @router.post("/recipe/check")
    def check_recipe(draft: Draft) -> Checked:
        if draft.values is None and draft.yaml is not None:
            return recipe_form.check_text(draft.yaml)
        return recipe_form.check_values(draft.values or {}, draft.yaml or "")

    @router.post("/recipe/plan")
    async def plan_recipe(asked: PlanQuestion, request: Request) -> PlanAnswer:
        return await while_connected(request, plan(studio, asked))

    @router.get("/recipes")
    def list_recipes() -> list[RecipeFile]:
        return recipe_files.recipe_files(studio.roots)

    @router.get("/recipes/{id}")
    def read_recipe(id: str) -> RecipeText:
        return recipe_files.read(studio.roots, id)

    @router.post("/recipes")
    def save_recipe(new: NewRecipe) -> RecipeFile:
        try:
            return recipe_files.save(studio.roots, new.name, new.yaml, new.version, new.replace)
        except recipe_files.Changed as problem:
            raise HTTPException(409, str(problem)) from None

    return router

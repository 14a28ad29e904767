"""`tunesmith recipe`."""

from tunesmith.cli.parameters import print_json


def schema() -> None:
    """Print the JSON Schema of recipes."""
    from tunesmith.recipe import Recipe

    print_json(Recipe.model_json_schema())

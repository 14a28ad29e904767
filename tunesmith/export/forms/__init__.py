"""Export forms, found by their module's name here and in other packages by the entry point group tunesmith.export.

A form has

- `Settings`: a Section (recipe.py); each field is a flag of `tunesmith export`. That command imports a form of another
  package for this, so its help is as fast as that package imports;
- `write(run, folder, settings)`: writes the files; it may return notes for the user;
- `opened(run, folder, settings)`: an engine (parity/subject.py) that has opened them;
- `precision(run, settings)`: whose bound of parity holds;

and may have

- `elsewhere(run, folder, settings, say)`: what else opens it here: engines by name, each made by a call;
- `finish(folder, name)`: does what is to do once it is done, and says so;
- `instead(settings)`: flags to try where rounding changed the model too much, or None.
"""

from tunesmith.errors import UserError
from tunesmith.export.settings import OF_FORMS
from tunesmith.recipe import Section
from tunesmith.registry import Registry

FORMS = Registry(__name__, "tunesmith.export")


def name_of(to: str) -> str:
    """The form of that name, in which - and _ are one; it is not imported. Raises UserError."""
    names = {name.replace("_", "-"): name for name in FORMS}
    try:
        return names[to.replace("_", "-")]
    except KeyError:
        raise UserError(f"--to {to}: there is no such form; choose {', '.join(names)}") from None


def all_settings() -> dict[str, type[Section]]:
    """The Settings of each form. Imports only forms of other packages. Raises UserError if one does not load."""
    return {name: OF_FORMS[name] if name in OF_FORMS else FORMS[name].Settings for name in FORMS}

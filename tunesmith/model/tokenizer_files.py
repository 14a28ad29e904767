"""The tokenizer of a result: the base's own files, with new tokens and another chat template where the recipe asks.

Transformers 4, and what is built on it, must open the result as it opens the base. So nothing is saved again by
Transformers 5, and what a base has in the form of Transformers 5 alone is written in a form that both read.
"""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import tokenizers

from tunesmith.data.tokenizer import NAMED, Tokenizer
from tunesmith.errors import UserError, first_line
from tunesmith.files import read_json, write_atomic, write_json
from tunesmith.recipe import Model

FILE, SETTINGS, TEMPLATE, TEMPLATES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates",
)
PROCESSOR_TEMPLATE = "chat_template.json"
MISTRAL = "tekken.json"
"""mistral-common's own file, with tokens and a way of writing conversations of its own."""
NAMES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    TEMPLATES,
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
    "tiktoken.model",
    MISTRAL,
)
PROBES = (
    "",
    "Hello, World! It's 12345 o'clock.",
    "  two spaces\n\n\tdef f(x):\r\n",
    "naïve ÉCOLE größe 你好，世界 🙂👩‍👩‍👧",
    "a\u0301 ﬁ ½ ٣٤ हिन्दी <b>&amp;</b> ...",
    "camelCase snake_case 3.14e-9 ▁ \u00a0",
)
"""Texts for which a tokenizer.json and transformers' reading of it must give the same ids."""


def is_of_tokenizer(name: str) -> bool:
    """Whether a model folder's file of that name belongs to the tokenizer or its chat templates."""
    return any(fnmatch(name, pattern) for pattern in NAMES)


def save_tokenizer(model: Model, base: Path, target: Path) -> None:
    """Writes the tokenizer as the result will have it: with the recipe's new tokens and chat template. Raises
    UserError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, mistral_format=False)
    except Exception as error:  # the tokenizers package raises nothing narrower for a damaged file
        raise UserError(f"model.path: {base}: transformers cannot read its tokenizer: {first_line(error)}") from None
    target.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if is_of_tokenizer(path.name):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, target / path.name)
    backend = tokenizer.backend_tokenizer
    if not _is_read_as_it_is(target / FILE, backend):
        write_atomic(target / FILE, backend.to_str(pretty=True))
    _name_tokens(target, {name: getattr(tokenizer, name, None) for name in NAMED})
    if model.new_tokens:
        tokenizer.add_tokens(model.new_tokens)
        _add_tokens(target, json.loads(backend.to_str())["added_tokens"])
    spell_for_both(target)
    if tokenizer.chat_template is None and (of_processor := read_json(target / PROCESSOR_TEMPLATE)):
        write_template(target, of_processor["chat_template"])  # where older multimodal bases have it
    asked = Tokenizer.load(target, model.chat_template)
    if asked.template_name != "own":
        write_template(target, asked.chat_template)
    if model.new_tokens or asked.template_name != "own":
        (target / MISTRAL).unlink(missing_ok=True)


def _is_read_as_it_is(file: Path, backend: tokenizers.Tokenizer) -> bool:
    """Whether transformers makes the tokenizer that the file describes; it rebuilds some from their vocabulary."""
    if not file.exists():
        return False
    own = tokenizers.Tokenizer.from_file(str(file))
    if own.get_vocab() != backend.get_vocab():
        return False
    return all(
        [one.ids for one in own.encode_batch(PROBES, add_special_tokens=special)]
        == [one.ids for one in backend.encode_batch(PROBES, add_special_tokens=special)]
        for special in (True, False)
    )


def _name_tokens(folder: Path, named: dict[str, str | None]) -> None:
    """Writes down beginning, end and the like where only transformers' class of the tokenizer knows them."""
    settings, others = (read_json(folder / name) or {} for name in (SETTINGS, "special_tokens_map.json"))
    missing = {name: token for name, token in named.items() if token and name not in settings and name not in others}
    if missing or not (folder / SETTINGS).exists():
        write_json(folder / SETTINGS, settings | missing)


def _add_tokens(folder: Path, added: list[dict]) -> None:
    """Adds those that are not there yet to every file that lists added tokens. `added`: as in tokenizer.json."""
    file = read_json(folder / FILE)
    known = {token["id"] for token in file["added_tokens"]}
    new = [token for token in added if token["id"] not in known]
    file["added_tokens"] += new
    write_json(folder / FILE, file)
    settings = read_json(folder / SETTINGS)
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in new
        }
        write_json(folder / SETTINGS, settings)
    listed = read_json(folder / "added_tokens.json")
    if listed is not None:
        write_json(folder / "added_tokens.json", listed | {token["content"]: token["id"] for token in new})


def spell_for_both(folder: Path) -> None:
    """Writes what Transformers 5 alone reads in tokenizer_config.json as 4 writes it, which 5 reads too."""
    was = read_json(folder / SETTINGS) or {}
    settings = without_code(was)
    if isinstance(settings.get("extra_special_tokens"), list):
        settings.setdefault("additional_special_tokens", settings.pop("extra_special_tokens"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if settings != was:
        write_json(folder / SETTINGS, settings)


def without_code(settings: dict) -> dict:
    """A JSON file's content without the classes of Python files beside it, which are not copied."""
    classes = settings.get("auto_map")
    if classes is None:
        return dict(settings)
    classes = classes.values() if isinstance(classes, dict) else [classes]
    names = [name for value in classes for name in (value if isinstance(value, list) else [value]) if name]
    elsewhere = all("--" in name for name in names)  # in a repository of the hub
    return {key: value for key, value in settings.items() if key != "auto_map" or elsewhere}


def write_template(folder: Path, template: str) -> None:
    """Makes it the folder's one chat template, in every place where one is looked for."""
    shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
    write_atomic(folder / TEMPLATE, template)
    write_json(folder / SETTINGS, (read_json(folder / SETTINGS) or {}) | {"chat_template": template})
    if (folder / PROCESSOR_TEMPLATE).exists():
        write_json(folder / PROCESSOR_TEMPLATE, {"chat_template": template})


def change_templates(folder: Path, change: Callable[[str], str]) -> None:
    """Changes every chat template of a folder, wherever it is written."""
    for file in (folder / TEMPLATE, *(folder / TEMPLATES).glob("*.jinja")):
        if file.exists():
            write_atomic(file, change(file.read_text("utf-8")))
    for file in (folder / SETTINGS, folder / PROCESSOR_TEMPLATE):
        settings = read_json(file) or {}
        if template := settings.get("chat_template"):
            named = isinstance(template, list)
            changed = [one | {"template": change(one["template"])} for one in template] if named else change(template)
            write_json(file, settings | {"chat_template": changed})

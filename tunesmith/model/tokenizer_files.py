"""Writes a result's tokenizer: the base's own files, with the recipe's new tokens and chat template.

Transformers 4, and programs built on it, must open the result as they open the base. So Transformers 5 does not save
the tokenizer again, and settings that only Transformers 5 reads are rewritten in a form that both versions read.
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
"""The tokenizer file of mistral-common, which has its own tokens and its own way to render conversations."""
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
"""Texts for which a tokenizer.json and the tokenizer that Transformers builds from it must give the same ids."""


def is_of_tokenizer(name: str) -> bool:
    """Whether a file of this name in a model folder belongs to the tokenizer or its chat templates."""
    return any(fnmatch(name, pattern) for pattern in NAMES)


def save_tokenizer(model: Model, base: Path, target: Path) -> None:
    """Writes the base's tokenizer into the folder `target`, with the recipe's new tokens and chat template. Raises
    UserError if Transformers cannot read the base's tokenizer."""
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
    if not _matches_backend(target / FILE, backend):
        write_atomic(target / FILE, backend.to_str(pretty=True))
    _name_tokens(target, {name: getattr(tokenizer, name, None) for name in NAMED})
    if model.new_tokens:
        tokenizer.add_tokens(model.new_tokens)
        _add_tokens(target, json.loads(backend.to_str())["added_tokens"])
    spell_for_both(target)
    if tokenizer.chat_template is None and (processor := read_json(target / PROCESSOR_TEMPLATE)):
        write_template(target, processor["chat_template"])  # where older multimodal bases keep it
    result = Tokenizer.load(target, model.chat_template)
    if result.template_name != "own":
        write_template(target, result.chat_template)
    if model.new_tokens or result.template_name != "own":
        (target / MISTRAL).unlink(missing_ok=True)


def _matches_backend(file: Path, backend: tokenizers.Tokenizer) -> bool:
    """Whether Transformers builds the same tokenizer as the file describes. It rebuilds some from their vocabulary."""
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
    """Adds named tokens such as bos and eos to the settings if only Transformers' tokenizer class defines them."""
    settings, special_tokens = (read_json(folder / name) or {} for name in (SETTINGS, "special_tokens_map.json"))
    missing = {
        name: token for name, token in named.items() if token and name not in settings and name not in special_tokens
    }
    if missing or not (folder / SETTINGS).exists():
        write_json(folder / SETTINGS, settings | missing)


def _add_tokens(folder: Path, added: list[dict]) -> None:
    """Adds missing tokens to every file that lists added tokens. `added` has the form of tokenizer.json."""
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
    """Rewrites settings in tokenizer_config.json that only Transformers 5 reads in the form of Transformers 4, which
    both read."""
    was = read_json(folder / SETTINGS) or {}
    settings = without_code(was)
    if isinstance(settings.get("extra_special_tokens"), list):
        settings.setdefault("additional_special_tokens", settings.pop("extra_special_tokens"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if settings != was:
        write_json(folder / SETTINGS, settings)


def without_code(settings: dict) -> dict:
    """Removes the reference to classes in Python files beside a JSON file, since those files are not copied."""
    classes = settings.get("auto_map")
    if classes is None:
        return dict(settings)
    classes = classes.values() if isinstance(classes, dict) else [classes]
    names = [name for value in classes for name in (value if isinstance(value, list) else [value]) if name]
    elsewhere = all("--" in name for name in names)  # code in another repository on the hub
    return {key: value for key, value in settings.items() if key != "auto_map" or elsewhere}


def write_template(folder: Path, template: str) -> None:
    """Makes a template the folder's only chat template, in every file that may contain one."""
    shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
    write_atomic(folder / TEMPLATE, template)
    write_json(folder / SETTINGS, (read_json(folder / SETTINGS) or {}) | {"chat_template": template})
    if (folder / PROCESSOR_TEMPLATE).exists():
        write_json(folder / PROCESSOR_TEMPLATE, {"chat_template": template})


def change_templates(folder: Path, change: Callable[[str], str]) -> None:
    """Applies a function to every chat template of a folder, in every file that may contain one."""
    for file in (folder / TEMPLATE, *(folder / TEMPLATES).glob("*.jinja")):
        if file.exists():
            write_atomic(file, change(file.read_text("utf-8")))
    for file in (folder / SETTINGS, folder / PROCESSOR_TEMPLATE):
        settings = read_json(file) or {}
        if template := settings.get("chat_template"):
            named = isinstance(template, list)
            changed = [one | {"template": change(one["template"])} for one in template] if named else change(template)
            write_json(file, settings | {"chat_template": changed})

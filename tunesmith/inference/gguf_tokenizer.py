"""The tokenizer and the chat template that a GGUF carries, as llama.cpp reads them."""

import re
from functools import cached_property

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import BUILT_IN, rendered
from tunesmith.inference.llama_cpp import Model, llama_cpp

NAMED = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
MARK = re.compile(r"<\|.*\|>")


class GgufTokenizer:
    """The part of the interface of data.tokenizer.Tokenizer that the server uses."""

    def __init__(self, model: Model):
        self.model = model
        used = ~llama_cpp().LLAMA_TOKEN_ATTR_UNUSED
        self.vocab_size = 1 + max(self._with(used), default=model.vocab_size - 1)  # the embedding may have more rows
        # Not llama.cpp's own answer: it has a bos for vocabularies that have none.
        said = {name: model.metadata(f"tokenizer.ggml.{key}_token_id") for name, key in NAMED.items()}
        ids = {name: int(id) for name, id in said.items() if id is not None}
        self.bos_id = ids.get("bos_token")
        self.adds_bos = self.bos_id is not None and bool(llama_cpp().llama_vocab_get_add_bos(model.vocabulary))
        self._named_tokens = {name: self._text(id) for name, id in ids.items()}
        own = {"default": model.chat_template(), "tool_use": model.chat_template("tool_use")}
        self._templates = {name: text for name, text in own.items() if text}
        self._templates.setdefault("default", BUILT_IN["plain"].read_text("utf-8"))
        # Such a vocabulary writes the space that it puts before a text.
        library = llama_cpp()
        self._strips = (
            library.llama_vocab_type(model.vocabulary) == library.LLAMA_VOCAB_TYPE_SPM
            and model.metadata("tokenizer.ggml.add_space_prefix") != "false"
        )

    def encode(self, text: str) -> tuple[list[int], None]:
        try:
            return self.model.encode(text), None
        except UnicodeEncodeError:
            raise RowProblem("mask_unproved", "its text has half a surrogate pair, which is no character") from None

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        kept = [i for i in ids if not (skip_special_tokens and i in self.special_ids)]
        text = b"".join(map(self.model.piece, kept)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strips else text

    def render(
        self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False, **kwargs
    ) -> str:
        return rendered(
            self._templates,
            str(self.model.path),
            messages,
            tools,
            add_generation_prompt,
            {**self._named_tokens, **kwargs},
        )

    @property
    def chat_template(self) -> str:
        return self._templates["default"]

    @property
    def eos_token(self) -> str | None:
        return self._named_tokens.get("eos_token")

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset(map(self._text, self.special_ids))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        library = llama_cpp()
        found = self._with(library.LLAMA_TOKEN_ATTR_CONTROL | library.LLAMA_TOKEN_ATTR_UNKNOWN)
        # llama.cpp takes the marks of some models, gpt-oss' among them, for text, so that they show.
        marks = (i for i in self._with(library.LLAMA_TOKEN_ATTR_USER_DEFINED) if MARK.fullmatch(self._text(i)))
        return found.union(marks)

    @cached_property
    def added_ids(self) -> dict[str, int]:
        user_defined = self._with(llama_cpp().LLAMA_TOKEN_ATTR_USER_DEFINED)
        return {self._text(i): i for i in self.special_ids | user_defined}

    def _with(self, attributes: int) -> frozenset[int]:
        """The tokens that have one of these attributes."""
        attribute = llama_cpp().llama_vocab_get_attr
        return frozenset(i for i in range(self.model.vocab_size) if attribute(self.model.vocabulary, i) & attributes)

    def _text(self, token: int) -> str:
        return self.model.piece(token).decode("utf-8", "replace")

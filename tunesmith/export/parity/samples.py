"""Texts and conversations that tell tokenizers and chat templates apart."""

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer

# In Unicode's form NFC and, outside ASCII, without capitals: llama.cpp reads others otherwise for some tokenizers.
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "I'm, you'RE, we'Ve, it'S, he'll, she'D; don't can'T o'clock WE'LL 'quoted' \"double\"",
    "0 1 12 123 1234 12345 1234567 1234567890 3.14 1,000,000 0x1F 1e-9 ½ ² ٣٤٥ x86_64",
    "  two  three   four    five     ",
    "a\nb\n\nc\n\n\nd \n e\n \nf\r\ng\r\n\r\nh\ti\t\tj \t k",
    "\n\n lines first",
    "ends in a space ",
    "ends in lines\n\n",
    "was wäre, wenn? größe école łódź naïve façade smørrebrød",
    "привет, мир! γειά σου κόσμε. שלום مرحبا नमस्ते สวัสดี ప్రపంచం",
    "你好，世界。日本語の文章です。こんにちは！한국어 문장입니다",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 👍🏽 🇩🇪 x\u0327\u0304 é ẹ\u0301 ﬁ ſ",
    "helloWORLD HelloWorld camelCaseText XMLHttpRequest iPhone12Pro",
    "def f(x):\n    if x > 0:\n\t\treturn {'a': x**2 + [1, -x][0]}  # why?\n",
    "https://example.com/a/b?c=d&e=%20#g user@mail.org C:\\dir\\file",
    "!!! ??? ... ---- ==== ''' \"\"\" ``` $$ %% ^^ && ~~",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f\u0085g\u0000h\u00adi",
    '<b>bold</b>\n<!-- c --> {"k": [null, true]} ##\n/path/\n/',
    "not tokens: [INST] <<SYS>> {{ x }} a ▁ and ġ",
    "हिन्दी में लिखा हुआ पाठ ภาษาไทยไม่มีช่องว่าง العَرَبِيَّة שָׁלוֹם",
    "tiếng việt có dấu",
    "don’t “quote” – dash… • bullet ™ © € £ ¥",
    "supercalifragilisticexpialidocious" * 3,
    "aaaa bbbbbbbbbb     ccc...ddd,,,eee\n\n\n\n\nfff",
)
LEADING = (" one space first", "   three spaces first", " \n space and line")
CAPITALS = (
    "Größe ÉCOLE Łódź Ærø Привет, Мир Γειά Κόσμε Ġ Ċ",
    "ÜBER STRAßE Ångström ŁÓDŹ ПРИВЕТ приветМир ΓΕΙΑ ǅ ʰʲ ªº Ⅷ १२३४५६ ①②③ 𝔘𝔫𝔦 𝟙𝟚𝟛𝟜 𐐷",
)
DECOMPOSED = ("e\u0301 is not \u00e9, and \ufb01 is a ligature",)
"""Not in the form NFC."""

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Which."}},
            "required": ["city"],
        },
    },
}

CALL = "a1b2c3d4e"  # nine letters and digits, as Mistral's templates want

Conversation = tuple[str, list[dict], list[dict] | None]
"""Its particular feature, its messages and its tools."""


def conversations(special: list[str]) -> list[Conversation]:
    """`special`: texts of special tokens, which a user may type."""
    user, system = {"role": "user", "content": "What is 2 + 2?"}, {"role": "system", "content": "Be brief. 🙂"}
    answer, more = {"role": "assistant", "content": "It is 4."}, {"role": "user", "content": "And\n\n3 + 3?"}
    listed = {"role": "assistant", "content": " A list:\n\n- one\n- two\n"}
    spaced = {"role": "user", "content": "  And? "}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": CALL, "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
        ],
    }
    result = {"role": "tool", "tool_call_id": CALL, "name": "get_weather", "content": "12 °C"}
    typed = {"role": "user", "content": f"Repeat: {' '.join(special)} <think>x</think>"}
    return [
        ("one turn", [user], None),
        ("system", [system, user], None),
        ("several turns", [user, answer, more], None),
        ("system and several turns", [system, user, answer, more], None),
        ("special tokens typed", [typed], None),
        ("every script", [{"role": "user", "content": "\n".join(TEXTS)}], None),
        ("spaces around messages", [user, listed, spaced], None),
        ("tools", [user], [TOOL]),
        ("a tool's result", [user, call, result], [TOOL]),
    ]


def written(tokenizer: Tokenizer) -> list[str]:
    """The conversations as the folder's own chat template writes them; none if it has none."""
    if tokenizer.template_name != "own":
        return []
    found = []
    for _, messages, tools in conversations(sorted(tokenizer.special_tokens)):
        try:
            found.append(tokenizer.render(messages, tools, add_generation_prompt=True))
        except RowProblem:  # a template that takes no system message, say
            continue
    return found

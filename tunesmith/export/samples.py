"""Texts that tell tokenizers apart, and conversations as a chat template writes them."""

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer

# In the form NFC, which is what llama.cpp takes text to be in.
TEXTS = (
    "The quick brown fox jumps over the lazy dog.", "I'm, you'RE, we'Ve, it'S, he'll, she'D; don't can'T o'clock",
    "1 12 123 1234 12345 1234567 3.14 1,000,000 0x1F ½ ² Ⅷ ٣٤٥ x86_64", "  two  three   four    five     ",
    "a\nb\n\nc\n\n\nd \n e\n \nf\r\ng\r\n\r\nh\ti\t\tj \t k",
    "\n\n lines first", "ends in a space ", "ends in lines\n\n",
    "Was wäre, wenn? Größe ÉCOLE école Łódź naïve façade",
    "Привет, мир! Γειά σου שלום مرحبا नमस्ते สวัสดี ప్రపంచం",
    "你好，世界。日本語の文章です。한국어 문장입니다",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 x\u0327\u0304 é ẹ\u0301 ﬁ ſ",
    "helloWORLD HelloWorld camelCaseText XMLHttpRequest iPhone12Pro",
    "def f(x):\n    return x**2 + [1, 2][0]  # why?\n",
    "https://example.com/a/b?c=d&e=f#g user@mail.org C:\\dir\\file",
    "!!! ??? ... ---- ==== ''' \"\"\" ``` $$ %% ^^ && ~~",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f\u0085g\u0000h", "<b>bold</b>\n<!-- c --> {\"k\": [null, true]} ##\n/path/\n/",
    "हिन्दी में लिखा हुआ पाठ ภาษาไทยไม่มีช่องว่าง العَرَبِيَّة שָׁלוֹם Tiếng Việt có dấu",
    "ÜBER STRAßE Ångström ŁÓDŹ ПРИВЕТ приветМир ΓΕΙΑ ǅ ʰʲ ªº १२३४५६ ①②③ 𝔘𝔫𝔦 𝟙𝟚𝟛𝟜 𐐷",
    "don’t “quote” – dash… • bullet ™ © € £ ¥", "aaaa bbbbbbbbbb     ccc...ddd,,,eee\n\n\n\n\nfff",
)
LEADING = (" one space first", "   three spaces first", " \n space and line")


def conversations(tokenizer: Tokenizer) -> list[str]:
    """What the folder's own chat template writes; none if it has none."""
    if tokenizer.template_name != "own":
        return []
    user, answer = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}
    others = [{"role": "user", "content": "\n".join(TEXTS)},
              {"role": "assistant", "content": " A list:\n\n- one\n- two\n"}]
    asked = ([user], [{"role": "system", "content": "Be brief. 🙂"}, user], [user, answer, *others, user])
    written = []
    for messages in asked:
        try:
            written.append(tokenizer.render(messages, add_generation_prompt=True))
        except RowProblem:  # a template that takes no system message
            continue
    return written

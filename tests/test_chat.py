"""What the terminal shows of an answer: what it says, reasoning apart, nothing of how the model marks them."""

from io import StringIO

import pytest
import torch
from rich.console import Console

from tunesmith.chat import Tokens, show
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.serve.engines.decoding import Writer
from tunesmith.writing.formats import find

ASK = [{"role": "user", "content": "What are two and two?"}]
WRITTEN = {
    "gpt_oss": "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>final<|message|>Four."
               "<|return|>",
    "qwen3": "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>",
    "llama3": "Four.<|eot_id|>",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_an_answer_is_shown_as_what_it_says(family, name):
    tokenizer, tokens = Tokenizer.load(family(name)), Tokens()
    format, screen = find(tokenizer), StringIO()
    tokens.put(torch.tensor([[1, 2, 3]]))  # the prompt, as `generate` begins with it
    for token in tokenizer.encode(WRITTEN[name])[0]:
        tokens.put(torch.tensor([token]))
    tokens.end()
    prompt = tokenizer.render(ASK, add_generation_prompt=True)
    answer = show(Console(file=screen), tokens, Writer(tokenizer, shown=format.shown(False)),
                  format.reader(prompt, False, []))
    thought = {} if name == "llama3" else {"reasoning_content": "Two and two."}
    assert answer == {"role": "assistant", "content": "Four."} | thought
    assert screen.getvalue().split() == " ".join([*thought.values(), "Four."]).split()
    plain = format.plain(tokenizer, tokenizer.encode(WRITTEN[name])[0])
    assert plain == ("Four." if name == "llama3" else "Two and two.\n\nFour." if name == "gpt_oss" else
                     WRITTEN[name].removesuffix("<|im_end|>"))
    following = [*ASK, format.message(answer), *ASK]
    assert "Four." in tokenizer.render(following, add_generation_prompt=True)

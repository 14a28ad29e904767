"""Every part of a conversation reaches the model, whichever turns its template accepts, or the request is refused."""

import httpx
import pytest

SYSTEM, LATER = "You are a coding agent.", "NEVER write outside /work."
TALKS = {
    "two systems first": [("system", SYSTEM), ("developer", LATER), ("user", "Go")],
    "one later": [("system", SYSTEM), ("user", "Hello"), ("assistant", "Hi"), ("system", LATER), ("user", "Go")],
    "one at the end": [("user", "Hello"), ("assistant", "Hi"), ("user", "Go"), ("developer", LATER)],
    "alone": [("system", SYSTEM)],
    "two users": [("system", SYSTEM), ("user", "Hello"), ("user", "Go")],
}
MODELS = ["first_system", "mistral", "gemma3", "qwen3", "llama3", "gpt_oss"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("talk", list(TALKS))
def test_every_turn_reaches_the_model(scripted, scripted_address, model, talk):
    """In order, by Chat Completions, Responses and, if the API has the roles, Messages."""
    scripted.says, texts = "Done.", [text for _, text in TALKS[talk]]
    turns = [{"role": role, "content": text} for role, text in TALKS[talk]]
    bodies = {
        "chat/completions": {"messages": turns, "reasoning_effort": "none"},
        "responses": {"input": [{"type": "message", **turn} for turn in turns], "reasoning": {"effort": "none"}},
    }
    if talk == "two users":
        bodies["messages"] = {"system": SYSTEM, "messages": turns[1:], "max_tokens": 9}
    prompts = []
    for path, body in bodies.items():
        answer = httpx.post(f"{scripted_address}/v1/{path}", json={"model": model, **body})
        assert answer.status_code == 200, answer.text
        prompts.append(scripted.prompt())
    places = [prompts[0].find(text) for text in texts]
    assert min(places) >= 0 and len(set(prompts)) == 1
    if talk != "one at the end" and model != "mistral":  # which writes the system text before the last user turn
        assert places == sorted(places)


@pytest.mark.parametrize(
    ("model", "messages", "tools", "part"),
    [
        ("first_system", [("user", "Read it."), ("tool", "The file's text")], [], "the tool text"),
        ("gemma3", [("user", "Read it.")], ["read"], "does not write tool calls"),
    ],
)
def test_a_part_that_a_template_drops_is_refused(scripted_address, model, messages, tools, part):
    """The server never answers as if the part were absent."""
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in tools]
    answer = httpx.post(
        f"{scripted_address}/v1/chat/completions",
        json={"model": model, "messages": [{"role": role, "content": text} for role, text in messages], "tools": tools},
    )
    assert answer.status_code == 400 and part in answer.json()["error"]["message"]

"""Third-party clients: litellm, llm, and schemathesis, which generates requests from the server's OpenAPI document."""

import os
import subprocess
import sys

import pytest

ASK = [{"role": "user", "content": "What is 1 plus 2?"}]


@pytest.mark.slow
def test_litellm(address, openai):
    litellm = pytest.importorskip("litellm")
    expected = openai.chat.completions.create(model="first", messages=ASK, max_tokens=8).choices[0].message.content
    options = dict(messages=ASK, max_tokens=8, api_key="none")
    assert (
        litellm.completion(model="openai/first", api_base=f"{address}/v1", **options).choices[0].message.content
        == expected
    )
    assert (
        litellm.completion(model="anthropic/first", api_base=address, **options).choices[0].message.content == expected
    )
    chunks = litellm.completion(model="openai/first", api_base=f"{address}/v1", stream=True, **options)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected


@pytest.mark.slow
def test_llm(address, openai, tmp_path):
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tuned\n  model_name: first\n  api_base: {address}/v1\n  api_key_name: none\n"
    )
    expected = openai.chat.completions.create(model="first", messages=ASK, max_tokens=8).choices[0].message.content
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "tuned", "-o", "max_tokens", "8", "--key", "none", "What is 1 plus 2?"],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == expected.strip(), done.stderr


@pytest.mark.slow
def test_schemathesis(address):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

    def check(strategy, data):
        case = data.draw(strategy)
        if isinstance(case.body, dict):  # a model that is there, and answers that are short
            short = {"max_tokens", "max_completion_tokens", "max_output_tokens"} & set(case.body)
            case.body |= {"model": "first"} | {name: 2 for name in short if isinstance(case.body[name], int)}
        case.call_and_validate(checks=checks, timeout=60)

    for operation in schema.get_all_operations():
        bounded = settings(max_examples=40, suppress_health_check=list(HealthCheck))
        bounded(given(st.just(operation.ok().as_strategy()), st.data())(check))()

"""Sixty-four clients at once, half of whom go away: every answer is the one it is alone, and nothing stays behind."""

import asyncio
import gc
import time

import torch
from openai import AsyncOpenAI, RateLimitError
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.inference.kv_attention import KV

CLIENTS, NEW = 64, 24


def question(number: int) -> list[dict]:
    return [{"role": "user", "content": f"What is {' plus '.join(str(number + k) for k in range(1 + number % 9))}?"}]


async def ask(client: AsyncOpenAI, number: int, model: str) -> str | None:
    """An answer, streamed or whole; every other client goes away in the middle or before the first token."""
    options = dict(model=model, messages=question(number), max_tokens=NEW)
    if number % 2:
        if number % 4 == 1:
            task = asyncio.create_task(client.chat.completions.create(**{**options, "max_tokens": 300}))
            await asyncio.sleep(0.005 * number)
            task.cancel()
            return None
        async with await client.chat.completions.create(**{**options, "max_tokens": 300}, stream=True) as stream:
            async for _ in stream:
                if number % 3 == 0:
                    break
        return None
    if number % 4:
        done = await client.chat.completions.create(**options)
        return done.choices[0].message.content
    text = ""
    async for chunk in await client.chat.completions.create(**options, stream=True):
        text += chunk.choices[0].delta.content or ""
    return text


def stray_bytes(engine) -> int:
    """Keys and values in this process that are not those of the engine's kept prefixes."""
    gc.collect()
    held = sum(thing.nbytes for thing in gc.get_objects() if type(thing) is KV)
    return held - sum(pool.prefixes.nbytes for pool in engine.pools.values())


def test_a_crowd_gets_the_answers_that_each_gets_alone(address, engine, runs):
    names = ["first", "small", "second.v2"]
    before, others = dict(engine.metrics()), stray_bytes(engine)

    async def crowd():
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, n, names[n % 3]) for n in range(CLIENTS)))

    found = asyncio.run(crowd())
    models = {run.name: AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval() for run in runs}
    models["small"] = AutoModelForCausalLM.from_pretrained(runs[0].parent.parent / "small").eval()
    tokenizer = AutoTokenizer.from_pretrained(runs[0] / "adapter")
    for number in range(0, CLIENTS, 2):
        name = names[number % 3]
        kwargs = engine.models[name].tokenizer.template_kwargs
        ids = tokenizer.apply_chat_template(
            question(number), add_generation_prompt=True, return_tensors="pt", return_dict=False, **kwargs
        )
        stops = sorted(engine.models[name].stop_ids)
        out = models[name].generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=stops,
            pad_token_id=0,
        )
        expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert found[number] == expected.rstrip("\ufffd"), number
    deadline = time.monotonic() + 30
    while (now := engine.metrics())["running"] + now["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (now["running"], now["waiting"], now["kv_bytes"]) == (0, 0, 0)
    assert now["prefix_bytes"] <= sum(pool.prefixes.limit_bytes for pool in engine.pools.values())
    assert stray_bytes(engine) == others
    assert now.get("finished_cancelled", 0) > before.get("finished_cancelled", 0)
    assert now.get("finished_error", 0) == 0


def test_a_full_queue_is_said(served, family):
    from tunesmith.inference.scheduler import BatchingEngine
    from tunesmith.serve.open_models import open_models

    engine = BatchingEngine(open_models([family("qwen2")]), batch=1, queue=2)
    address = served(engine)

    async def crowd():
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            asked = (
                client.chat.completions.create(model="qwen2", messages=question(n), max_tokens=60) for n in range(12)
            )
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(crowd())
    refused = [f for f in found if isinstance(f, RateLimitError)]
    assert refused and len(refused) < len(found) and all(r.response.headers["Retry-After"] for r in refused)
    assert all(isinstance(f, RateLimitError) or f.choices[0].message.content is not None for f in found)

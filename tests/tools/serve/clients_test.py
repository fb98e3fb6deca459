#!/usr/bin/env python3
"""The server under the clients that people use, from PyPI: their own parsers have to be content.
    clients_test.py PROGRAM MODEL
"""
import sys

import openai
import requests
from prometheus_client.parser import text_string_to_metric_families

from server import Server, decode_alone

program, model = sys.argv[1:3]
server = Server(program, model, "--api-key", "secret", "--parallel", "3")
try:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0)

    # models
    names = [entry.id for entry in client.models.list()]
    assert names == ["foretoken-demo.gguf"], names

    # completions
    completion = client.completions.create(model="any", prompt="def main():", max_tokens=20, logprobs=2)
    choice = completion.choices[0]
    assert choice.finish_reason == "length" and completion.usage.completion_tokens == 20
    assert len(choice.logprobs.tokens) == 20 and "".join(choice.logprobs.tokens) == choice.text
    assert max(choice.logprobs.token_logprobs) <= 0
    ids = client.completions.create(model="any", prompt="def main():", max_tokens=20, extra_body={"return_tokens": True}).choices[0].tokens
    assert ids == decode_alone(program, model, "def main():", 20)
    streamed = "".join(part.choices[0].text for part in client.completions.create(model="any", prompt="def main():", max_tokens=20, stream=True))
    assert streamed == choice.text
    two = client.completions.create(model="any", prompt=["a", "b"], max_tokens=4, n=2, temperature=1, seed=5)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]

    # chat
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "def f():"}]}]
    chat = client.chat.completions.create(model="any", messages=messages, max_tokens=12, logprobs=True, top_logprobs=3)
    entries = chat.choices[0].logprobs.content
    assert len(entries) == 12 and all(len(entry.top_logprobs) == 3 for entry in entries)
    assert entries[0].top_logprobs[0].token == entries[0].token  # greedy
    parts = list(client.chat.completions.create(model="any", messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == chat.choices[0].message.content
    assert parts[-2].choices[0].finish_reason == "length" and parts[-1].usage.completion_tokens == 12
    stopped = client.chat.completions.create(model="any", messages=messages, max_tokens=200, stop=["e"])
    assert stopped.choices[0].finish_reason == "stop" and "e" not in stopped.choices[0].message.content

    # errors as exceptions
    for wrong, error in (({"temperature": 7000}, openai.BadRequestError), ({"max_tokens": -5}, openai.BadRequestError)):
        try:
            client.chat.completions.create(model="any", messages=messages, **wrong)
            raise AssertionError(f"{wrong} was taken")
        except error as caught:
            assert list(wrong)[0] in str(caught), caught
    try:
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key was taken")
    except openai.AuthenticationError:
        pass

    # metrics
    text = requests.get(server.url + "/metrics", headers={"x-api-key": "secret"}, timeout=10).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["llamacpp:tokens_predicted"].samples[0].value > 100, sorted(families)
    assert families["foretoken:time_to_first_token_seconds"].type == "histogram"
finally:
    code = server.stop()
assert code == 0, code
print("passed")

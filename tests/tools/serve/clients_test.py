#!/usr/bin/env python3
"""The server under the clients that people use, from PyPI: their own parsers have to be content.
    clients_test.py PROGRAM MODEL
"""
import sys

import anthropic
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

    # the prefix cache: the second turn begins where the first one ended
    long_text = "import os\nimport sys\n" * 40
    first = client.chat.completions.create(model="any", messages=[{"role": "user", "content": long_text}], max_tokens=8)
    turns = [{"role": "user", "content": long_text}, {"role": "assistant", "content": first.choices[0].message.content},
             {"role": "user", "content": "go on"}]
    second = client.chat.completions.create(model="any", messages=turns, max_tokens=8)
    cold = client.chat.completions.create(model="any", messages=turns, max_tokens=8, extra_body={"cache_prompt": False})
    assert second.usage.prompt_tokens_details.cached_tokens > 200, second.usage
    assert cold.usage.prompt_tokens_details.cached_tokens == 0 and cold.choices[0].message.content == second.choices[0].message.content
    several = client.chat.completions.create(model="any", messages=turns, max_tokens=8, n=3)
    assert [choice.message.content for choice in several.choices] == [second.choices[0].message.content] * 3

    # Responses
    response = client.responses.create(model="any", instructions="Be brief.", input="def f():", max_output_tokens=12)
    assert response.status == "incomplete" and response.usage.output_tokens == 12
    last = None
    text = ""
    for event in client.responses.create(model="any", instructions="Be brief.", input="def f():", max_output_tokens=12, stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert last.type == "response.incomplete" and last.response.output_text == text == response.output_text
    assert response.output_text == chat.choices[0].message.content

    # Anthropic's messages
    claude = anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0)
    asked = {"model": "any", "system": "Be brief.", "messages": [{"role": "user", "content": [{"type": "text", "text": "def f():"}]}]}
    message = claude.messages.create(max_tokens=12, **asked)
    assert message.stop_reason == "max_tokens" and message.content[0].text == response.output_text
    with claude.messages.stream(max_tokens=12, **asked) as stream:
        assert "".join(stream.text_stream) == message.content[0].text
        final = stream.get_final_message()
    assert final.usage.output_tokens == 12 and final.stop_reason == "max_tokens"
    counted = claude.messages.count_tokens(**asked).input_tokens
    assert counted == final.usage.input_tokens + final.usage.cache_read_input_tokens
    stopped = claude.messages.create(max_tokens=200, stop_sequences=["e"], **asked)
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "e"
    try:
        claude.messages.create(max_tokens=-3, **asked)
        raise AssertionError("max_tokens -3 was taken")
    except anthropic.BadRequestError as caught:
        assert caught.body["error"]["type"] == "invalid_request_error", caught.body

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

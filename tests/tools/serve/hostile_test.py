#!/usr/bin/env python3
"""Hostile requests beside a stream that they must not disturb, saved slots, a full queue, and the server's end under load.
    hostile_test.py PROGRAM MODEL
"""
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time

from server import Server, decode_alone

program, model = sys.argv[1:3]
failures = []


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what, flush=True)


stem = "import os\nimport sys\n\n\ndef read_lines(path):\n    with open(path) as f:\n        return f.read().splitlines()\n\n\n" * 6


def settled(server, seconds=20):
    """Waits until no answer runs and no connection is left; the number of threads and files then."""
    for _ in range(int(seconds / 0.05)):
        status, text = server.get("/metrics")
        idle = b"\nllamacpp:requests_processing 0\n" in text and b"\nllamacpp:requests_deferred 0\n" in text
        if idle and all(not slot["is_processing"] for slot in json.loads(server.get("/slots")[1])):
            break
        time.sleep(0.05)
    else:
        check(False, "answers still run after their clients have gone")
    counts = None
    for _ in range(int(seconds / 0.1)):
        before, counts = counts, (server.threads(), server.open_files())
        if counts == before:
            break
        time.sleep(0.3)
    return counts


server = Server(program, model, "--parallel", "6", "--max-queue", "64", "-c", "2048", "--timeout", "2")
server.get("/health")
time.sleep(0.5)
idle = settled(server)
# ---- hostile requests, beside a stream ----


def raw(request, wait=True):
    """What comes back for these bytes."""
    socket = server.connect()
    try:
        socket.sendall(request)
        answer = b""
        while wait:
            piece = socket.recv(65536)
            if not piece:
                break
            answer += piece
        return answer
    except OSError:
        return answer
    finally:
        socket.close()


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


bodies = [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b"{}", b'{"prompt":null}', b'{"prompt":{}}', b'{"prompt":[]}', b'{"prompt":[[]]}',
          b'{"prompt":[1.5]}', b'{"prompt":[-1]}', b'{"prompt":[99999999999999999999]}', b'{"prompt":"a","n_predict":"7"}',
          b'{"prompt":"a","n_predict":-7}', b'{"prompt":"a","n_predict":1e300}', b'{"prompt":"a","temperature":-1}', b'{"prompt":"a","top_p":2}',
          b'{"prompt":"a","seed":1.5}', b'{"prompt":"a","n":0}', b'{"prompt":"a","n":100000}', b'{"prompt":"a","stop":[1]}',
          b'{"prompt":"a","stop":{}}', b'{"prompt":"a","stream":"yes"}', b'{"prompt":"a","stream_options":[]}', b'{"prompt":"a","n_probs":100000}',
          b'{"prompt":"a","speculative.n_max":-1}', b'{"prompt":"a","speculative.type":"psychic"}', b'{"prompt":"a","t_max_predict_ms":"x"}',
          b'{"prompt":"' + b"a " * 9000 + b'"}', b"[" * 100000, b'{"a":' * 100000, b'{"prompt":' + b"[" * 70 + b"]" * 70 + b"}",
          b'{"prompt":"a","stop":' + json.dumps(["x"] * 1000).encode() + b"}", b'{"prompt":"\\ud800"}', b'{"prompt":"a\x00b"}']
chat_bodies = [b"{}", b'{"messages":{}}', b'{"messages":[]}', b'{"messages":[7]}', b'{"messages":[{}]}', b'{"messages":[{"role":"king","content":"x"}]}',
               b'{"messages":[{"role":"user","content":7}]}', b'{"messages":[{"role":"user","content":[{"type":"text"}]}]}',
               b'{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":[]}', b'{"messages":[{"role":"assistant","tool_calls":{}}]}',
               b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":7}}]}]}', b'{"messages":[{"role":"assistant","reasoning_content":[]}]}',
               b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":[1]}}]}]}']
# Fields of a chat that are wrong one at a time.
for field in (b'"tools":{}', b'"tools":[7]', b'"tools":[{"function":{}}]', b'"tools":[{"function":{"name":""}}]', b'"tools":[{"function":{"name":"a<b"}}]',
              b'"tools":[{"function":{"name":"a","parameters":"x"}}]', b'"tool_choice":"required"', b'"tool_choice":{}', b'"tool_choice":{"type":"function","function":{"name":"x"}}',
              b'"tool_choice":[]', b'"parallel_tool_calls":"yes"', b'"enable_thinking":1', b'"reasoning_format":"x"', b'"reasoning_effort":{}', b'"continue_final_message":true',
              b'"add_generation_prompt":"x"', b'"response_format":7', b'"response_format":{"type":"x"}', b'"response_format":{"type":"json_schema"}',
              b'"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"x"}}}', b'"grammar":"root ::= root"', b'"json_schema":{"$ref":"#/x"}',
              b'"chat_template_kwargs":{"a":' + b"[" * 70 + b"]" * 70 + b"}"):
    chat_bodies.append(b'{"messages":[{"role":"user","content":"x"}],' + field + b"}")
message_bodies = [b"{}", b'{"max_tokens":5}', b'{"max_tokens":5,"messages":[]}', b'{"max_tokens":5,"messages":[{"role":"system","content":"x"}]}',
                  b'{"max_tokens":5,"messages":[{"role":"user"}]}', b'{"max_tokens":5,"messages":[{"role":"user","content":7}]}',
                  b'{"max_tokens":5,"system":7,"messages":[{"role":"user","content":"x"}]}', b'{"max_tokens":"x","messages":[{"role":"user","content":"x"}]}',
                  b'{"max_tokens":5,"tools":[{}],"messages":[{"role":"user","content":"x"}]}', b'{"max_tokens":5,"tool_choice":{"type":"any"},"messages":[{"role":"user","content":"x"}]}',
                  b'{"max_tokens":5,"tool_choice":{"type":"king"},"messages":[{"role":"user","content":"x"}]}', b'{"max_tokens":5,"thinking":{},"messages":[{"role":"user","content":"x"}]}',
                  b'{"max_tokens":5,"thinking":{"type":"enabled","budget_tokens":-1},"messages":[{"role":"user","content":"x"}]}',
                  b'{"max_tokens":5,"tools":[{"name":"f","input_schema":7}],"messages":[{"role":"user","content":"x"}]}',
                  b'{"max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","text":7}]}]}', b'{"max_tokens":5,"messages":[{"role":"user","content":[7]}]}',
                  b'{"max_tokens":5,"messages":[{"role":"assistant","content":[{"type":"tool_use","name":"f","input":[]}]}]}']
response_bodies = [b"{}", b'{"input":7}', b'{"input":[]}', b'{"input":[7]}', b'{"input":[{"role":"king","content":"x"}]}', b'{"input":"x","text":[]}',
                   b'{"input":"x","instructions":7}', b'{"input":"x","max_output_tokens":-5}', b'{"input":"x","tools":[{"type":"function"}]}', b'{"input":"x","reasoning":"much"}',
                   b'{"input":"x","text":{"format":{"type":"json_schema"}}}', b'{"input":"x","tool_choice":{"type":"function"}}', b'{"input":[{"type":"reasoning","summary":7}]}',
                   b'{"input":[{"type":"function_call","name":7}]}']
unserved = [("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}), ("/completion", {"prompt": "a", "image_data": [{}]}), ("/v1/embeddings", {"input": "x"}), ("/infill", {}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]})]

stream = server.stream("/completion", {"prompt": "def main():", "n_predict": 1500, "stream": True, "ignore_eos": True})
streamed = [id for _ in range(3) for id in next(stream)["tokens"]]

slow = [server.connect() for _ in range(20)]
for socket in slow:
    socket.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Le")
# One byte at a time, of a head and of a body, until the server has enough of it.
dripping = threading.Event()


def drip(head, each):
    socket = server.connect()
    try:
        socket.sendall(head)
        while not dripping.wait(0.05):
            socket.sendall(each)
    except OSError:
        pass
    finally:
        socket.close()


drippers = [threading.Thread(target=drip, args=(b"POST /completion HTTP/1.1\r\nHost: x\r\n" + more, each)) for more, each in
            ((b"X: ", b"y"), (b"", b"X: y\r\n"), (b"Content-Length: 100000\r\n\r\n", b" "), (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"))]
for thread in drippers:
    thread.start()
half = server.connect()
half.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
half.shutdown(1)

for path, all_bodies in (("/completion", bodies), ("/v1/completions", bodies), ("/v1/chat/completions", chat_bodies), ("/tokenize", bodies[:12]),
                         ("/detokenize", bodies[:8]), ("/apply-template", chat_bodies[:9]), ("/v1/messages", message_bodies), ("/v1/responses", response_bodies)):
    for body in all_bodies:
        status, answer = server.post(path, body)
        error = json.loads(answer).get("error", {})
        check(400 <= status < 500 and error.get("message") and error.get("type"), f"{path} {body[:60]}: {status} {answer[:100]}")
for path, body in unserved:
    status, answer = server.post(path, body)
    check(status == 501, f"{path}: {status} {answer[:100]}")
status, answer = server.post("/completion", {"prompt": "a " * 3000})
error = json.loads(answer)["error"]
check(status == 400 and error["type"] == "exceed_context_size_error" and error["n_ctx"] == 2048 and error["n_prompt_tokens"] > 2048, "too long prompt")

for request in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
                b"GET /health HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n", b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 50000 + b"\r\n",
                b"POST /completion HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{}", b"POST /completion HTTP/1.1\r\nContent-Length: x\r\n\r\n{}",
                b"POST /completion HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"POST /completion HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
                b"POST /completion HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 2\r\n\r\n{}"):
    status = status_of(raw(request))
    check(status is None or 400 <= status < 500, f"{request[:50]}: {status}")

answers = raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
check(answers.count(b'{"status":"ok"}') == 3, "three requests sent at once got " + str(answers.count(b'{"status":"ok"}')) + " answers")

# A request, garbage that comes with it, and no answer to the garbage but an error.
answers = raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n\x00\x01garbage\r\n\r\n")
check(answers.count(b'{"status":"ok"}') == 1 and answers.count(b"HTTP/1.1 ") <= 2, f"garbage behind a request: {answers[:200]}")
# A whole answer each to requests that are sent at once, in their order.
posts = b"".join(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), b"Connection: close\r\n" if last else b"", body)
                 for body, last in [(b'{"content": "%s"}' % (b"a" * n), n == 40) for n in range(1, 41)])
answers = raw(posts)
num_answers = answers.count(b'{"tokens":[')
check(num_answers == 40, f"forty requests sent at once got {num_answers} answers")
# More than --max-body, told and untold.
for request in (b"Content-Length: 40000000\r\n\r\n" + b"x" * 100000, b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 20):
    status = status_of(raw(b"POST /completion HTTP/1.1\r\nHost: x\r\n" + request))
    check(status is None or 400 <= status < 500, f"a huge body: {status}")

for event in stream:
    if not event["stop"]:
        streamed += event["tokens"]
check(streamed == decode_alone(program, model, "def main():", 1500, "--ignore-eos", "-c", "2048"), "the stream beside them was disturbed")
for socket in slow:
    socket.close()
half.close()
dripping.set()
for thread in drippers:
    thread.join()
check(settled(server) == idle, f"(threads, open files) after hostile requests: {idle} before, {settled(server)} after")

code = server.stop()
check(code == 0, f"exit code {code} after SIGTERM")

# ---- saved slots ----

folder = tempfile.mkdtemp()
plain = {"prompt": stem + "class Writer:\n", "n_predict": 40, "return_tokens": True}
alone = decode_alone(program, model, plain["prompt"], 40)
server = Server(program, model, "--parallel", "1", "--slot-save-path", folder)
check(json.loads(server.post("/completion", plain)[1])["tokens"] == alone, "other ids than decode's")
status, saved = server.post("/slots/0?action=save", {"filename": "writer.slot"})
check(status == 200 and json.loads(saved)["n_saved"] > 100, f"save: {status} {saved}")
check(os.listdir(folder) == ["writer.slot"], "a saved slot is one file")
for name in ("../x", "/tmp/x", ".x", "a/b", "", "x" * 200, "a\0b", 7):
    check(server.post("/slots/0?action=save", {"filename": name})[0] == 400, f"{name!r} was taken as a file's name")
check(server.post("/slots/9?action=save", {"filename": "x"})[0] == 400 and server.post("/slots/0?action=x", {})[0] == 400, "no such slot or action")
check(server.post("/slots/0?action=restore", {"filename": "nothing"})[0] == 400, "a missing file was restored")
server.stop()
server = Server(program, model, "--parallel", "2", "-t", "1", "--slot-save-path", folder)
status, restored = server.post("/slots/1?action=restore", {"filename": "writer.slot"})
check(status == 200 and json.loads(restored)["n_restored"] == json.loads(saved)["n_saved"], f"restore: {status} {restored}")
said = json.loads(server.post("/tokenize", {"content": plain["prompt"]})[1])["tokens"] + alone
warm = json.loads(server.post("/completion", {**plain, "prompt": said})[1])
cold = json.loads(server.post("/completion", {**plain, "prompt": said, "cache_prompt": False})[1])
check(warm["tokens"] == cold["tokens"] and cold["tokens_cached"] == 0, "other ids after a restore")
check(warm["tokens_cached"] == len(said) - 1, f"after a restore: {warm['tokens_cached']} of {len(said)} cached")
with open(os.path.join(folder, "writer.slot"), "r+b") as file:
    file.seek(5000)
    file.write(b"damage")
check(server.post("/slots/1?action=restore", {"filename": "writer.slot"})[0] == 400, "a damaged file was restored")
check(server.post("/slots/1?action=erase", {})[0] == 200, "erase")
for turn in range(3):  # whatever slots they take: the text before is not theirs to save
    short = json.loads(server.post("/completion", {"prompt": "x", "n_predict": 2})[1])
    check(server.post(f"/slots/{short['id_slot']}?action=save", {"filename": "short.slot"})[0] == 400, "a slot was saved with the text of somebody before")
check(b"/" not in server.post("/slots/1?action=restore", {"filename": "nothing"})[1], "a path of the server's was told")
server.stop()
# A text that fills the context is saved as far as it can be begun with again.
server = Server(program, model, "--parallel", "1", "-c", "300", "--slot-save-path", folder)
server.post("/completion", {**plain, "n_predict": -1, "ignore_eos": True})
check(server.post("/slots/0?action=save", {"filename": "full.slot"})[0] == 200 and server.post("/slots/0?action=restore", {"filename": "full.slot"})[0] == 200, "a full slot")
server.stop()
shutil.rmtree(folder)

# ---- many connections at one moment, and one server a port ----

server = Server(program, model)
burst = []
for _ in range(200):
    burst.append(server.connect())
for socket in burst:
    socket.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
answers = 0
for socket in burst:
    try:
        answers += socket.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        pass
    socket.close()
check(answers == 200, f"of 200 connections that begin at once {answers} got an answer")
try:
    Server(program, model, "--port", str(server.port)).stop()
    check(False, "two servers listen on one port")
except RuntimeError as error:
    check("cannot be listened on" in str(error), f"a port that is taken: {error}")
server.stop()

# ---- a full queue, and the end ----

server = Server(program, model, "--parallel", "1", "--max-queue", "1", "--drain", "20", "--api-key", "secret,other")
check(server.get("/health")[0] == 200, "/health needs no key")
for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "secre"}, {"Authorization": "Bearer"}):
    check(server.get("/v1/models", headers)[0] == 401, f"let in with {headers}")
key = {"Authorization": "Bearer other"}
check(server.get("/v1/models", {"x-api-key": "secret"})[0] == 200 and server.get("/v1/models", key)[0] == 200, "a right key was refused")
results = []
long_body = {"prompt": "x", "n_predict": 1900, "ignore_eos": True}
threads = [threading.Thread(target=lambda: results.append(server.post("/completion", long_body, key))) for _ in range(6)]
for thread in threads:
    thread.start()
time.sleep(0.1)
code = server.stop(signal.SIGTERM)  # what runs may end
for thread in threads:
    thread.join()
check(code == 0, f"exit code {code} after SIGTERM while answers ran")
statuses = sorted(status for status, _ in results)
check(statuses == [200, 200, 503, 503, 503, 503], f"of six clients one runs and one waits: {statuses}")

print("passed" if not failures else f"{len(failures)} checks failed")
sys.exit(1 if failures else 0)

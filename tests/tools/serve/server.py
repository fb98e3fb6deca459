"""The server as a process, for the tests beside this file."""
import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request


class Server:
    """`foretoken serve` on a free port, until stop()."""

    def __init__(self, program, model, *flags, before=()):
        """before: a program that starts it, with its arguments."""
        self.process = subprocess.Popen([*before, program, "serve", "-m", model, *([] if "--port" in flags else ["--port", "0"]), *flags], stderr=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"listening on http://127.0.0.1:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(self.log))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self, how=signal.SIGTERM):
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        self.reader.join()
        return code

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def open_sockets(self):
        """Connections that clients have: open files that are sockets, but for the one that listens."""
        links = []
        for name in os.listdir(f"/proc/{self.process.pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{self.process.pid}/fd/{name}"))
            except OSError:
                pass
        return sum(link.startswith("socket:") for link in links) - 1

    def memory_kb(self):
        """What is resident and nobody else's."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def get(self, path, headers=None):
        """(status, body)"""
        return self._ask(urllib.request.Request(self.url + path, headers=headers or {}))

    def post(self, path, body, headers=None):
        """(status, body); the body is sent as JSON unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self._ask(urllib.request.Request(self.url + path, data, headers))

    def _ask(self, request):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def stream(self, path, body):
        """The events' data as JSON; a generator, whose close() hangs up."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                    yield json.loads(line[6:])


def decode_alone(program, model, prompt, tokens, *flags):
    """The ids that `foretoken decode` gives."""
    result = subprocess.run([program, "decode", "-m", model, "-p", prompt, "-n", str(tokens), "--parse-special", "--json", "-", *flags],
                            capture_output=True, check=True)
    return json.loads(result.stdout)["ids"]

#!/usr/bin/env python3
"""`foretoken chat` at a terminal of its own: what a person types and sees.
    pty_test.py PROGRAM MODEL
"""
import json
import os
import pty
import re
import select
import signal
import sys
import tempfile
import termios
import time

program, model = sys.argv[1:3]
templates = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "serve", "templates")


class Terminal:
    """The program at a terminal; what it shows is gathered in `shown`."""

    def __init__(self, *flags):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(program, [program, "chat", "-m", model, *flags])
        self.shown = ""

    def read(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the other side has closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def wait_for(self, pattern, seconds=60):
        """What is shown up to the pattern, which is taken off."""
        end = time.time() + seconds
        while True:
            found = re.search(pattern, self.shown)
            if found:
                before, self.shown = self.shown[: found.end()], self.shown[found.end():]
                # Behind a prompt the terminal is about to be read key by key; what is typed earlier is shown twice.
                while pattern == PROMPT and termios.tcgetattr(self.fd)[3] & termios.ICANON and time.time() < end:
                    time.sleep(0.005)
                return before
            if time.time() > end or not self.read(max(0.0, end - time.time())) and not self.is_running():
                raise AssertionError(f"{pattern!r} was not shown; this was: {self.shown[-2000:]!r}")

    def type(self, text):
        try:
            os.write(self.fd, text.encode())
        except OSError:  # it has ended
            pass

    def ask(self, text):
        """Types a line; what is shown until the next prompt, without the line itself."""
        self.type(text + "\n")
        self.wait_for(re.escape(text.split("\n")[-1]) + r"[^\n]*\n")
        return self.wait_for(PROMPT)

    def is_running(self):
        done, self.status = os.waitpid(self.pid, os.WNOHANG)
        return done == 0

    def end(self, key=""):
        """The exit code. A key that is typed while the terminal is not yet read key by key is lost: it is typed again."""
        end = time.time() + 60
        typed = 0.0
        while time.time() < end:
            if key and time.time() - typed > 1:
                typed = time.time()
                self.type(key)
            if not self.read(0.05):
                time.sleep(0.02)
            if not self.is_running():
                os.close(self.fd)
                return os.waitstatus_to_exitcode(self.status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"the program did not end; it showed {self.shown[-2000:]!r}")


PROMPT = r"> $"


def plain(text):
    """Without colours, cursor movements and carriage returns."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text).removesuffix("> ").strip()


folder = tempfile.mkdtemp()
chat = Terminal("-n", "16")
chat.wait_for(PROMPT)
first = plain(chat.ask("def f():"))
assert first, "an answer is shown"
again = plain(chat.ask("/regen"))
assert again == first, (first, again)  # greedy

# settings
assert "must be a number" in chat.ask("/set temp x") and "no such setting" in chat.ask("/set nothing 1") and "no such command" in chat.ask("/nonsense")
for setting in ("temp 1.2", "top-k 20", "top-p 0.9", "min-p 0.01", "seed 5", "n 24", "mtp 0"):
    assert plain(chat.ask("/set " + setting)) == "", setting
sampled = plain(chat.ask("/regen"))
assert sampled != first, "a sampled answer is the greedy one"
assert plain(chat.ask("/regen")) != sampled, "the same seed was taken again"

# the second turn begins from the state of the first
chat.ask("/set temp 0")
chat.ask("import os\\\nimport sys\\\n\\\ndef g(path):")  # one message of four lines
stats = chat.ask("/stats")
cached = int(re.search(r"prompt\s+\d+ tokens, (\d+) of them from the state before", stats).group(1))
assert cached > 0, stats
saved_as = os.path.join(folder, "chat.json")
chat.ask("/save " + saved_as)
with open(saved_as) as file:
    saved = json.load(file)["messages"]
assert [message["role"] for message in saved] == ["user", "assistant", "user", "assistant"], saved
assert saved[0]["content"] == "def f():" and saved[2]["content"] == "import os\nimport sys\n\ndef g(path):", saved
assert "name is missing" in chat.ask("/save")

# Ctrl-C stops an answer and keeps the chat; what was said until then stays
chat.ask("/set n 100000")
chat.type("x = 1\n")
chat.wait_for(r"x = 1[^\n]*\n")
chat.wait_for(r"\S+")
chat.type("\x13")  # Ctrl-S: the terminal takes nothing, and the program waits in its write
time.sleep(0.1)
chat.type("\x03")
assert "(stopped)" in chat.wait_for(PROMPT)
chat.ask("/set n 8")
assert plain(chat.ask("y = 2")), "no answer after Ctrl-C"
chat.ask("/save " + saved_as)
with open(saved_as) as file:
    saved = json.load(file)["messages"]
assert len(saved) == 8 and saved[4]["content"] == "x = 1" and saved[5]["content"], saved
# One at the prompt does not end it either; what was typed is dropped.
chat.type("never said")
time.sleep(0.1)
chat.type("\x03")
chat.wait_for(PROMPT)
assert plain(chat.ask("z = 3")), "no answer after Ctrl-C at the prompt"
chat.ask("/clear")
assert "0 of them from" not in chat.ask("/help")
assert chat.end("\x04") == 0

chat = Terminal("-n", "4")
chat.wait_for(PROMPT)
chat.type("/quit\n")
assert chat.end() == 0

# Thoughts are dimmed: here the template opens one that the model never ends.
chat = Terminal("-n", "12", "--chat-template-file", os.path.join(templates, "qwen_xml.jinja"))
chat.wait_for(PROMPT)
answer = chat.ask("def f():")
assert re.search(r"\x1b\[2m[^\x1b]*\S[^\x1b]*\x1b\[0m", answer), answer
chat.ask("/save " + saved_as)
with open(saved_as) as file:
    saved = json.load(file)["messages"]
assert saved[1]["content"] == "" and saved[1]["reasoning_content"], saved
assert chat.end("\x04") == 0
print("passed")

#!/usr/bin/env python3
"""Whatever happens to a process of a cluster ends all of them within ten seconds, with one line that names its host, and leaves no half-written file.
A process that is slow ends nothing.
    faults_test.py PROGRAM MODEL [--all] [WORD...]
Without --all fewer cases of experts and layers. With words, only the cases whose names have all of them. Exits with 77 where there is no mpirun, or no MPI in the program.
"""
import concurrent.futures
import ctypes
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

program, model = (os.path.realpath(path) for path in sys.argv[1:3])
if shutil.which("mpirun") is None:
    print("not run: there is no mpirun here")
    sys.exit(77)
NUM_RANKS = 3
MOST_SECONDS = 10
HOST = re.escape(socket.gethostname())
environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_mpi_yield_when_idle="1")
# mpirun closes every number that a file may have before it starts a process.
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


STALL = "a stall"  # the main thread stands still and the others go on, as where a disk does not answer
PAUSE = "pauses"  # is stopped for PAUSE_SECONDS, again and again, which has to go on
PAUSE_SECONDS = 4.5
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
PTRACE_SEIZE, PTRACE_INTERRUPT, WAIT_FOR_THREADS = 0x4206, 0x4207, 0x40000000


def hold_main_thread(process):
    """Until this thread ends, or the process."""
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(request, process, None, None) != 0:
            raise RuntimeError(f"ptrace: {os.strerror(ctypes.get_errno())}")


def can_hold_threads():
    child = subprocess.Popen(["sleep", "60"])
    try:
        hold_main_thread(child.pid)
        return True
    except RuntimeError:
        return False
    finally:
        child.kill()
        child.wait()


@dataclasses.dataclass
class Case:
    command: str  # decode, serve
    mode: str
    stage: str  # where it is when the fault comes: start, load, input (rank 0 waits for its prompt), prompt, window, idle
    faults: list  # [(rank, or None for mpirun, signal, STALL or PAUSE)], in this order
    says: str  # how the one line begins, behind "foretoken: "; "": there may be none, since the statistics or mpirun say it

    @property
    def name(self):
        return " ".join([self.command, self.mode, self.stage, *(f"{number if isinstance(number, str) else signal.Signals(number).name} to {'mpirun' if rank is None else f'rank {rank}'}" for rank, number in self.faults)])


def is_whole(path):
    try:
        with open(path) as file:
            return bool(json.load(file))
    except ValueError:
        return False


def died(rank):
    return rf"{HOST} \(rank {rank} of the cluster\) has died"


def silent(rank):
    return rf"{HOST} \(rank {rank} of the cluster\) has been silent for 6 seconds"


def stands_still(rank):
    return rf"{HOST} \(rank {rank} of the cluster\) has stood still for 6 seconds"


def ranks_of(mpirun):
    """{rank: process} of the programs that mpirun has started."""
    found = {}
    try:
        for child in open(f"/proc/{mpirun}/task/{mpirun}/children").read().split():
            if os.path.realpath(f"/proc/{child}/exe") != program:
                continue
            match = re.search(rb"\0OMPI_COMM_WORLD_RANK=(\d+)\0", b"\0" + open(f"/proc/{child}/environ", "rb").read())
            if match:
                found[int(match.group(1))] = int(child)
    except OSError:
        pass
    return found if len(found) == NUM_RANKS else {}


def has_opened_model(process):
    try:
        return model in open(f"/proc/{process}/maps").read()
    except OSError:
        return False


def reads_input(process):
    """True if it waits in read(0, ...), as the kernel tells of x86-64."""
    try:
        return open(f"/proc/{process}/syscall").read().split()[:2] == ["0", "0x0"]
    except PermissionError:
        time.sleep(1)
        return True
    except OSError:
        return False


class Run:
    """A command under mpirun, with what it prints."""

    def __init__(self, case, folder, session_folder):
        """folder: where it runs. session_folder: Open MPI's own."""
        self.folder = folder
        flags = ["-m", model, "-t", "1", "--cluster", case.mode]
        # With shares by bandwidth a second goes by between the opening of the model and its loading, and the fault comes there.
        flags += [] if case.stage == "load" else ["--cluster-shares", "1:1:1"]
        # All mpirun of a user would share a folder in /tmp, and the last to end removes it under the feet of one that starts.
        own = dict(environment, OMPI_MCA_orte_tmpdir_base=session_folder)
        if case.command == "serve":
            flags += ["--port", "0", "--parallel", "2"]
        else:
            flags += ["-n", "1000000", "--ignore-eos", "--print-ids", "--json", f"{folder}/result.json"]
            flags += [] if case.stage == "input" else ["-f", f"{folder}/prompt.txt"]
            with open(f"{folder}/prompt.txt", "w") as prompt:
                prompt.write(("def f(x):\n    return x\n" if case.stage == "prompt" else "def ") * (100 if case.stage == "prompt" else 1))
        if case.stage == "prompt":  # some seconds of it
            own["FORETOKEN_ISA"] = "scalar"
            flags += ["--prompt-chunk", "1"]
        self.process = subprocess.Popen(["mpirun", "-n", str(NUM_RANKS), program, case.command, *flags], env=own, cwd=folder, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        self.out, self.err = b"", b""
        self.readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in ("out", "err")]
        for reader in self.readers:
            reader.start()

    def _read(self, name):
        stream = self.process.stdout if name == "out" else self.process.stderr
        while piece := os.read(stream.fileno(), 65536):
            setattr(self, name, (getattr(self, name) + piece)[-100000:])

    def wait_for(self, what):
        end = time.monotonic() + 60
        while not (value := what()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"it did not get so far: {self.err.decode(errors='replace')}")
            time.sleep(0.002)
        return value

    def get_to(self, case):
        """The processes by rank, once the command is at the case's stage."""
        ranks = self.wait_for(lambda: ranks_of(self.process.pid))
        if case.stage == "load":
            self.wait_for(lambda: all(has_opened_model(process) for process in ranks.values()))
            time.sleep(0.05)
        elif case.stage == "input":
            self.wait_for(lambda: reads_input(ranks[0]))
        elif case.stage == "prompt":
            self.wait_for(lambda: b"loaded in" in self.err)
            time.sleep(0.1)
        elif case.stage == "window" and case.command == "decode":
            self.wait_for(lambda: self.out)
        elif case.stage in ("idle", "window"):
            port = int(self.wait_for(lambda: re.search(rb"listening on http://127.0.0.1:(\d+)", self.err)).group(1))
            if case.stage == "window":
                body = b'{"prompt": "def ", "n_predict": 2000, "ignore_eos": true, "stream": true, "temperature": 0.9}'
                answer = urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/completion", body), timeout=60)
                answer.readline()
        return ranks

    def kill(self):
        for process in [*ranks_of(self.process.pid).values(), self.process.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()


def run(case):
    """What is wrong, as a list of lines, and how long it took from the fault to the end."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as session_folder:
        command = Run(case, folder, session_folder)
        try:
            ranks = command.get_to(case)
            has_output = command.out != b""
            for rank, number in case.faults:
                if number == STALL:
                    hold_main_thread(ranks[rank])
                elif number == PAUSE:
                    for _ in range(3):
                        os.kill(ranks[rank], signal.SIGSTOP)
                        time.sleep(PAUSE_SECONDS)
                        os.kill(ranks[rank], signal.SIGCONT)
                        time.sleep(0.2)
                    if command.process.poll() is not None:
                        wrong.append("ended by a pause")
                else:
                    os.kill(command.process.pid if rank is None else ranks[rank], number)
            held = [ranks[rank] for rank, number in case.faults if number == STALL]
            begin = time.monotonic()
            command.process.stdin.close()  # of "input" too: rank 0 finds that its prompt is empty
            while command.process.poll() is None and time.monotonic() < begin + 60:
                for process in held:  # the end of one that is held is its holder's to hear first
                    try:
                        os.waitpid(process, os.WNOHANG | WAIT_FOR_THREADS)
                    except ChildProcessError:
                        held.remove(process)
                time.sleep(0.01)
            if command.process.poll() is None:
                wrong.append("does not end")
            seconds = time.monotonic() - begin
            def left():
                return [process for process in ranks.values() if os.path.exists(f"/proc/{process}/exe")]

            while left() and time.monotonic() < begin + MOST_SECONDS:
                time.sleep(0.05)
            if left():
                wrong.append(f"processes {left()} are left")
        except RuntimeError as error:
            return [str(error)], 0
        finally:
            command.kill()
        for reader in command.readers:
            reader.join(timeout=5)
        lines = [line for line in command.err.decode(errors="replace").splitlines() if line.startswith("foretoken: ")]
        if case.says == "without MPI" or any("without MPI" in line for line in lines):
            print("not run: this program was built without MPI")
            os._exit(77)
        pattern = case.says or "interrupted|" + ".*has died"
        if len(lines) > 1 or (not lines and case.says) or (lines and not re.match("foretoken: " + pattern, lines[0])):
            wrong.append(f"says {lines} instead of {case.says}")
        if seconds > MOST_SECONDS:
            wrong.append(f"took {seconds:.1f} s")
        if command.process.returncode == 0:
            wrong.append("exit code 0")
        if case.stage == "prompt" and has_output:
            wrong.append("the fault came behind the prompt")
        for file in sorted(set(os.listdir(folder)) - {"prompt.txt"}):
            # Who was killed cannot remove what it has begun, which has another name than the whole file.
            if file.startswith("result.json.part") and (0, signal.SIGKILL) in case.faults:
                continue
            # A text that was interrupted is a result.
            if file == "result.json" and any(rank is None for rank, _ in case.faults) and is_whole(f"{folder}/{file}"):
                continue
            wrong.append(f"left {file}")
    return wrong, seconds


cases = []
# Before the processes know each other mpirun alone sees one die.
cases += [Case("decode", "rows", "start", [(rank, signal.SIGKILL)], "") for rank in (0, 1)]
cases += [Case("decode", "rows", "start", [(rank, signal.SIGSTOP)], silent(rank)) for rank in (0, 1, 2)]
cases += [Case("decode", "rows", "start", [(None, number)], "") for number in (signal.SIGINT, signal.SIGTERM)]
stalls = can_hold_threads()
if not stalls:
    print("without the cases that hold a thread: ptrace is not allowed here")
for mode in ("rows", "experts", "layers"):
    for stage in ("load", "prompt", "window"):
        for rank in (0, 1, 2):
            cases.append(Case("decode", mode, stage, [(rank, signal.SIGKILL)], died(rank)))
            cases.append(Case("decode", mode, stage, [(rank, signal.SIGSTOP)], silent(rank)))
    for rank in (0, 1, 2):
        for stage in ("idle", "window"):
            cases.append(Case("serve", mode, stage, [(rank, signal.SIGKILL)], died(rank)))
            cases.append(Case("serve", mode, stage, [(rank, signal.SIGSTOP)], silent(rank)))
    for rank in (0, 1):
        cases.append(Case("decode", mode, "window", [(rank, PAUSE), (None, signal.SIGINT)], ""))
    for number in (signal.SIGINT, signal.SIGTERM):
        for stage in ("load", "prompt", "window"):
            cases.append(Case("decode", mode, stage, [(None, number)], ""))
        for rank in (0, 1):
            cases.append(Case("decode", mode, "window", [(rank, signal.SIGSTOP), (None, number)], ""))
    if stalls:
        cases += [Case("decode", mode, stage, [(rank, STALL)], stands_still(rank)) for stage in ("load", "prompt", "window") for rank in (0, 1, 2)]
        # The others wait for nothing, but who is held will not come back from its input.
        cases.append(Case("decode", mode, "input", [(0, STALL)], stands_still(0)))
        cases.append(Case("serve", mode, "idle", [(1, STALL)], stands_still(1)))
    cases.append(Case("decode", mode, "input", [(1, signal.SIGSTOP)], "standard input: the prompt is empty.*; besides, " + silent(1)))
words = sys.argv[3:]
if "--all" in words:
    words.remove("--all")
else:
    of_others = [("load", (1, signal.SIGKILL)), ("prompt", (2, signal.SIGKILL)), ("window", (0, signal.SIGKILL)), ("window", (1, signal.SIGSTOP)), ("window", (2, STALL)), ("window", (None, signal.SIGINT))]
    cases = [case for case in cases if case.mode == "rows" or (case.stage, case.faults[0]) in of_others]
cases = [case for case in cases if all(word in case.name for word in words)]
num_wrong = 0


def report(case, wrong, seconds):
    global num_wrong
    print(f"{case.name}: {seconds:.1f} s{''.join(chr(10) + '    ' + line for line in wrong)}", flush=True)
    num_wrong += bool(wrong)


late = []  # beside the other cases and tests
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for case, (wrong, seconds) in zip(cases, pool.map(run, cases)):
        if wrong == [f"took {seconds:.1f} s"]:
            late.append(case)
            print(f"{case.name}: {seconds:.1f} s; once more, by itself", flush=True)
        else:
            report(case, wrong, seconds)
for case in late:
    report(case, *run(case))
print(f"{len(cases)} cases, {num_wrong} wrong")
sys.exit(1 if num_wrong else 0)

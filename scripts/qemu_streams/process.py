"""One running QEMU, and the QMP connection to it."""

import json
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from . import StreamError

REPLY_SECONDS = 60
EXIT_SECONDS = 20
STDERR = "stderr.txt"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class Qemu:
    """A QEMU that answers commands. `start` makes one and ends it."""

    def __init__(self, process: subprocess.Popen, channel: socket.socket, stderr: Path):
        self.pid = process.pid
        self._process = process
        self._stderr = stderr
        self._channel = channel
        self._lines = channel.makefile("rb")
        greeting = self._receive()
        version = greeting["QMP"]["version"]["qemu"]
        self.version = (version["major"], version["minor"], version["micro"])
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments):
        """Runs a QMP command and returns what it answers; events are passed over."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._channel.sendall(json.dumps(request).encode())
        except OSError as error:
            raise self._gone() from error
        return self._answer(command)

    def give_file(self, name: str, file) -> None:
        """Gives QEMU an open file, for the address `fd:name`."""
        request = {"execute": "getfd", "arguments": {"fdname": name}}
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [file.fileno()])
        except OSError as error:
            raise self._gone() from error
        self._answer("getfd")

    def monitor(self, command: str) -> str:
        """Runs a command of the human monitor and returns what it prints."""
        return self.execute("human-monitor-command", **{"command-line": command})

    def quit(self) -> None:
        """Ends QEMU in order, so that all it has written is in place."""
        self.execute("quit")
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise StreamError("QEMU does not exit") from error

    def kill(self) -> None:
        """Ends QEMU at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _answer(self, command: str):
        while True:
            reply = self._receive()
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise StreamError(f"{command}: {reply['error']['desc']}")

    def _receive(self) -> dict:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise StreamError(f"no answer for {REPLY_SECONDS} s") from error
        except OSError as error:
            raise self._gone() from error
        if not line:
            raise self._gone()
        return json.loads(line)

    def _gone(self) -> StreamError:
        try:
            status = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            status = "unknown"
        lines = self._stderr.read_text(errors="replace").split("\n")
        said = " / ".join([line for line in lines if line.strip()][-3:])
        return StreamError(f"QEMU ended with status {status}: {said or 'no message'}")


@contextmanager
def start(host, binary: str, arguments: list[str], directory: Path, qtest=None):
    """Runs QEMU in `directory` for the length of a with block; then kills it.

    `qtest` is a socket for its qtest channel, if there shall be one.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(REPLY_SECONDS)
    channel = f"socket,id=qmp,fd={theirs.fileno()}"
    command = [host.path(binary), *arguments]
    command += ["-chardev", channel, "-qmp", "chardev:qmp"]
    passed = [theirs.fileno()]
    if qtest:
        command += ["-chardev", f"socket,id=qtest,fd={qtest.fileno()}"]
        command += ["-qtest", "chardev:qtest", "-qtest-log", "none"]
        passed.append(qtest.fileno())
    stderr = directory / STDERR
    with ours, theirs, open(stderr, "wb") as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=passed,
                preexec_fn=lambda: host.enter(directory),
                env=ENVIRONMENT,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise StreamError(f"{command[0]} does not start: {error}") from error
        theirs.close()
        try:
            yield Qemu(process, ours, stderr)
        finally:
            process.kill()
            process.wait()


class Deadline:
    """A point in time after which waiting is a failure."""

    def __init__(self, seconds: float, pause: float = 0.02):
        self._end = time.monotonic() + seconds
        self._pause = pause

    def poll(self, what: str) -> None:
        """Sleeps for a moment, or fails because `what` did not come in time."""
        if time.monotonic() > self._end:
            raise StreamError(f"timed out waiting for {what}")
        time.sleep(self._pause)

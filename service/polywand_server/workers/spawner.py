"""The process that all children are forked from: it has imported the libraries, has one thread, and reads no input.

A process with gRPC's threads must not fork. This one is started before anything else, and forks in a few milliseconds.
It ends, and its children with it, when the service closes its end of the socket.
"""

import importlib
import os
import pickle
import select
import signal
import socket
import sys
from contextlib import suppress

from polywand_server.workers import channel, child


def main(descriptor: int, modules: list[str]) -> None:
    """Serve requests for children until the service closes the socket. modules: imported before the first fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for module in modules:
        importlib.import_module(module)
    requests = socket.socket(fileno=descriptor)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    children: set[int] = set()
    with suppress(OSError):  # the service has ended
        _serve(requests, wake_read, children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _serve(requests: socket.socket, wake: int, children: set[int]) -> None:
    while True:
        ready, _, _ = select.select([requests.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _report_ended(requests, children)
        if requests.fileno() in ready:
            message = channel.receive(requests)
            if message is None:
                return
            _fork(requests, message[1][0], children)


def _fork(requests: socket.socket, end: int, children: set[int]) -> None:
    """Fork a child, and report it. end: the descriptor of the child's end of its conversation."""
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        requests.close()
        child.run_child(socket.socket(fileno=end))
    os.close(end)
    children.add(pid)
    process = os.pidfd_open(pid)
    try:
        channel.send(requests, pickle.dumps(("begun", pid, 0)), descriptors=[process])
    finally:
        os.close(process)


def _report_ended(requests: socket.socket, children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        channel.send(requests, pickle.dumps(("ended", pid, os.waitstatus_to_exitcode(status))))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

"""What sshd and ssh are to real hosts, without keys and packages: for the hosts of namespaces.py alone.

    remote.py serve ADDRESS           a host's first process: runs what it is sent, reaps what others leave
    remote.py [OPTIONS] HOST COMMAND  as mpirun calls ssh: the command's output, and its exit status

The command runs in the environment of the first process, not in the caller's, as behind a real sshd.
"""

import contextlib
import os
import re
import socket
import sys

PORT = 2222
END = re.compile(rb'\0(\d+)\0$')  # after a command's output: its exit status


def serve(address):
    """Listen for ever. Who has ended is reaped, and its caller told, within a tenth of a second."""
    callers = {}
    with socket.create_server((address, PORT), backlog=64) as server:
        server.settimeout(0.1)
        while True:
            with contextlib.suppress(socket.timeout):
                caller = server.accept()[0]
                pid = os.fork()
                if pid == 0:
                    run(caller)
                callers[pid] = caller
            with contextlib.suppress(ChildProcessError):
                while True:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if not pid:
                        break
                    if pid in callers:
                        with contextlib.suppress(OSError), callers.pop(pid) as caller:
                            caller.sendall(b'\0%d\0' % max(0, os.waitstatus_to_exitcode(status)))


def run(caller):
    """Become the command that the caller sends in a line, with the connection for output."""
    try:
        os.setsid()
        caller.settimeout(10)
        with caller.makefile('rb') as lines:
            command = lines.readline()
        caller.settimeout(None)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(caller.fileno(), 1)
        os.dup2(caller.fileno(), 2)
        os.execv('/bin/sh', ['sh', '-c', command])
    finally:
        os._exit(255)


def call(host, command):
    """Pass the output on; return the exit status, 255 when the connection ends before."""
    told = b''
    try:
        connection = socket.create_connection((host, PORT))
    except OSError as error:
        print(f'{host}: {error}', file=sys.stderr)
        return 255
    with connection:
        connection.sendall(command.replace('\n', ' ').encode() + b'\n')
        while True:
            piece = connection.recv(1 << 16)
            told += piece
            end = END.search(told)
            if end or not piece:
                break
            keep = len(told) - 5  # the end may come in pieces
            if keep > 0:
                os.write(1, told[:keep])
                told = told[keep:]
    os.write(1, told[:end.start()] if end else told)
    return int(end.group(1)) if end else 255


if __name__ == '__main__':
    words = sys.argv[1:]
    if words[0] == 'serve':
        serve(words[1])
    while words[0].startswith('-'):
        words.pop(0)
    sys.exit(call(words[0], ' '.join(words[1:])))

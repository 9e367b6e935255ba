"""Several hosts on this machine: network namespaces on a bridge that nothing else is connected to.

Each host has its own name, address, mounts, processes, home, /tmp, /run and /dev/shm. The repository,
Python's environment and one directory are the same on all, as on a shared file system. Needs root and
iproute2; nothing leaves the namespaces, and nothing of them outlives the tests.
"""

import contextlib
import itertools
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Options of a training that is over, or at its first checkpoint, a second after its start.
TINY = ['--synthetic', '--n-train', '96', '-B', '4', '--arch', 'resnet8', '--insize', '16']

REMOTE = pathlib.Path(__file__).with_name('remote.py')

# As a host's first process; $1 address, $2 directory with `hosts` and an empty `root`, then what is shared.
# /tmp is bound in the end, since what is shared may be in it.
FIRST_PROCESS = '''
set -e
hostname "$1"; address=$2; state=$3; shift 3
mount -t tmpfs -o size=2g shm /dev/shm
mount -t tmpfs run /run
mount --bind "$state/hosts" /etc/hosts
root=$state/root-$(hostname)
mount -t tmpfs -o size=2g,mode=1777 tmp "$root"
for directory in "$@"; do
    [[ $directory == /tmp/* ]] || continue
    mkdir -p "$root/${directory#/tmp/}"
    mount --rbind "$directory" "$root/${directory#/tmp/}"
done
mount --rbind "$root" /tmp
export HOME=/tmp/home-$(hostname)
mkdir -p "$HOME"
cd /
exec "$PYTHON" "$REMOTE" serve "$address"
'''


def run(*command):
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)


def why_not():
    """What is missing for hosts, or None."""
    if os.geteuid():
        return 'several hosts: needs root'
    for name in 'ip', 'unshare', 'nsenter', 'setpriv':
        if not shutil.which(name):
            return f'several hosts: needs {name}'
    tried = subprocess.run(['unshare', '--net', '--uts', '--mount', '--pid', '--fork', '--ipc', 'sh', '-c',
                            'ip link add name end type veth && ip link add name middle type bridge && '
                            'mount -t tmpfs run /run'], capture_output=True, text=True)
    return f'several hosts: no namespaces here ({tried.stderr.strip()})' if tried.returncode else None


class Host:
    """One of them.

    Args:
        name (str): Its name.
        number (int): From 0; the address follows from it.
        switch (str): Namespace of the bridge.
        state (pathlib.Path): Directory of the hosts.
        shared (list): Directories that are the same on all.
    """

    def __init__(self, name, number, switch, state, shared):
        self.name, self.address = name, f'10.77.0.{number + 1}'
        self._switch, self._port = switch, f'port{number}'
        self.namespace = f'{switch}-{number}'
        self._state, self._shared = state, list(map(str, shared))
        (state / f'root-{name}').mkdir(exist_ok=True)
        run('ip', 'netns', 'add', self.namespace)
        run('ip', 'link', 'add', 'eth0', 'netns', self.namespace,
            'type', 'veth', 'peer', 'name', self._port, 'netns', switch)
        run('ip', '-n', self.namespace, 'address', 'add', f'{self.address}/24', 'dev', 'eth0')
        for device in 'lo', 'eth0':
            run('ip', '-n', self.namespace, 'link', 'set', device, 'up')
        run('ip', '-n', switch, 'link', 'set', self._port, 'master', 'bridge')
        self._outer = None

    @property
    def is_on(self):
        return self._outer is not None

    def power_on(self):
        """Start its first process, and connect it with the switch."""
        environment = {'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}:/usr/sbin:/sbin',
                       'PYTHON': sys.executable, 'REMOTE': str(REMOTE)}
        self._outer = subprocess.Popen(
            ['setpriv', '--pdeathsig', 'KILL', 'ip', 'netns', 'exec', self.namespace,
             'unshare', '--uts', '--mount', '--ipc', '--pid', '--fork', '--kill-child', '--mount-proc',
             'bash', '-c', FIRST_PROCESS, 'first', self.name, self.address, self._state, *self._shared],
            env=environment, stdin=subprocess.DEVNULL)
        until(lambda: children(self._outer.pid), 10)
        self._first, = children(self._outer.pid)
        self.link('up')

    def power_off(self):
        """Nothing runs on it any more, and nobody is told: the link goes first."""
        self.link('down')
        os.kill(self._first, signal.SIGKILL)
        self._outer.wait()
        self._outer = None

    def reaches(self, other):
        return not self.run(sys.executable, REMOTE, other.name, 'true').returncode

    def link(self, state):
        """``up`` or ``down``, of its port at the switch: it does not notice."""
        run('ip', '-n', self._switch, 'link', 'set', self._port, state)

    def ip(self, *words):
        """Change its network."""
        run('ip', '-n', self.namespace, *words)

    def drop_incoming(self, ports):
        """Drop what comes in for a range of TCP ports; None: no more."""
        if ports is None:
            self.ip('rule', 'delete', 'priority', 5)
            return
        # The first rule finds the host's own addresses; it makes way.
        self.ip('rule', 'add', 'priority', 10, 'lookup', 'local')
        self.ip('rule', 'delete', 'priority', 0)
        self.ip('rule', 'add', 'priority', 5, 'iif', 'eth0', 'ipproto', 'tcp',
                'dport', f'{ports[0]}-{ports[-1]}', 'blackhole')

    def remove(self):
        if self._outer:
            self._outer.kill()
            self._outer.wait()
        run('ip', 'netns', 'delete', self.namespace)

    def _enter(self, cwd=ROOT):
        return ['nsenter', '--target', str(self._first), '--net', '--uts', '--mount', '--ipc', '--pid',
                f'--wd={cwd}']

    def run(self, *command, cwd=ROOT, **options):
        """Run a command to its end; its CompletedProcess."""
        return subprocess.run([*self._enter(cwd), *map(str, command)], text=True, stdin=subprocess.DEVNULL,
                              capture_output=True, **options)

    def start(self, *command, env=None):
        """Start a command in its own session."""
        process = subprocess.Popen(
            [*self._enter(), *map(str, command)], env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        until(lambda: children(process.pid), 10)  # nsenter passes no signals on
        process.inner, = children(process.pid)
        return process

    def processes(self, *words):
        """``{process number outside: command line}`` of what runs there and has all words in it."""
        namespace = os.readlink(f'/proc/{self._first}/ns/pid')
        found = {}
        for path in pathlib.Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                if os.readlink(path / 'ns/pid') == namespace and int(path.name) != self._first:
                    line = (path / 'cmdline').read_bytes().replace(b'\0', b' ').decode()
                    if line and all(word in line for word in words):
                        found[int(path.name)] = line
        return found

    def rank(self, number):
        """Process number of this rank of Open MPI's; a daemon forks its ranks in any order."""
        name = f'OMPI_COMM_WORLD_RANK={number}'.encode()
        process, = (process for process, line in self.processes('train_imagenet.py', '--out').items()
                    if line.startswith(sys.executable)
                    and name in pathlib.Path(f'/proc/{process}/environ').read_bytes().split(b'\0'))
        return process

    def kill(self, *words):
        for process in self.processes(*words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def children(process):
    path = pathlib.Path(f'/proc/{process}/task/{process}/children')
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def until(condition, seconds, job=None):
    """Wait for a condition; an AssertionError if it has not come, or the job has ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if job and job.poll() is not None:
            raise AssertionError(f'ended before:\n{job.communicate()[0]}')
        if time.monotonic() > deadline:
            raise AssertionError(f'not within {seconds} s')
        time.sleep(0.05)


class Hosts(list):
    """Hosts ``a``, ``b``, ... in one network, and a directory that all of them see."""

    def __init__(self, names, folder):
        self.shared = folder / 'shared'
        state = folder / 'state'
        for directory in self.shared, state:
            directory.mkdir()
        (state / 'hosts').write_text('127.0.0.1 localhost\n' + ''.join(
            f'10.77.0.{number + 1} {name}\n' for number, name in enumerate(names)))
        self._switch = f'hosts{os.getpid()}-{folder.name[-6:]}'
        run('ip', 'netns', 'add', self._switch)
        run('ip', '-n', self._switch, 'link', 'add', 'bridge', 'type', 'bridge')
        run('ip', '-n', self._switch, 'link', 'set', 'bridge', 'up')
        for number, name in enumerate(names):
            self.append(Host(name, number, self._switch, state,
                             [ROOT, pathlib.Path(sys.prefix), state, self.shared]))
        self.power_on(*self)

    def power_on(self, *hosts):
        """Power on, and wait until all hosts reach them: a link that is up carries nothing at first."""
        for host in hosts:
            host.power_on()
        until(lambda: all(host.reaches(other) for host, other in itertools.product(self, hosts)), 20)

    def remove(self):
        for host in self:
            host.remove()
        run('ip', 'netns', 'delete', self._switch)

    @staticmethod
    def environment():
        """Of a user on the first host."""
        kept = {name: os.environ[name] for name in ('PATH', 'LANG') if name in os.environ}
        return {**kept, 'PYTHON': sys.executable, 'HOME': '/tmp', 'OPENBLAS_NUM_THREADS': '1'}

    def launch(self, slots, *options, mpirun=(), python=sys.executable, **environment):
        """Start ``launch.sh`` on the first host, on ``slots`` ranks of each; ``python`` is Open MPI's."""
        hosts = ','.join(f'{host.name}:{n}' for host, n in zip(self, slots) if n)
        env = {**self.environment(), 'HOME': f'/tmp/home-{self[0].name}', 'PYTHON': str(python),
               'RANKS_PER_NODE': str(max(slots)), **environment}
        listed = ['--host', hosts, '--prtemca', 'plm_ssh_agent', self.agent]
        if python != sys.executable:  # MPICH
            listed = ['-hosts', hosts, '-launcher-exec', self.agent]
        return self[0].start('bash', ROOT / 'jobs/launch.sh', sum(slots), *listed, *mpirun, '--', *options,
                             env=env)

    @property
    def agent(self):
        path = self.shared / 'agent'
        if not path.exists():
            command = shlex.join([sys.executable, str(REMOTE)])
            path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            path.chmod(0o755)
        return path

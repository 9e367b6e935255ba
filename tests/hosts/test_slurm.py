"""jobs/paper_1024.slurm, scaled down, under a real Slurm on three hosts: Debian's slurm-wlm and munge."""

import os
import re
import shutil

import pytest

from tests.conftest import draw_images
from tests.hosts.namespaces import ROOT, until

CONFIGURATION = '''
ClusterName=test
SlurmctldHost=n1
AuthInfo=socket=/run/munge/munge.socket.2,cred_expire=5
SlurmUser=root
StateSaveLocation=/tmp/slurm/state
SlurmdSpoolDir=/tmp/slurm/spool
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/tmp/slurm/slurmctld.log
SlurmdLogFile=/tmp/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
ReturnToService=2
SlurmdTimeout=10
KillWait=5
SlurmdParameters=config_overrides
NodeName=n[1-3] CPUs=2
PartitionName=all Nodes=ALL Default=YES
'''
# cred_expire: so long a requeued job waits.

DAEMONS = '''
set -e
mkdir -p /tmp/slurm/state /tmp/slurm/spool /run/munge
install -m 400 {key} /run/munge/key
munged --force --key-file=/run/munge/key --log-file=/run/munge/log --pid-file=/run/munge/pid \
    --seed-file=/run/munge/seed --socket=/run/munge/munge.socket.2
export SLURM_CONF={configuration}
[ {name} != n1 ] || slurmctld
slurmd -N {name}
'''

SMALL = ['--arch', 'resnet8', '--insize', '16', '--batchsize', '4', '--communicator', 'naive',
         '--loaderjob', '0', '--epoch', '20000', '--checkpoint-interval', '5']


class Cluster:
    """Three nodes, of which n1 is also the controller, and the scripts for two of them."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.site = hosts.shared / 'site'
        shutil.copytree(ROOT / 'jobs', self.site / 'jobs')
        for name in 'lib', 'models', 'extensions', 'train_imagenet.py':
            (self.site / name).symlink_to(ROOT / name)
        self._scale_down('paper_1024.sh', ('NODES=128', 'NODES=2'), ('RANKS_PER_NODE=8', 'RANKS_PER_NODE=2'),
                         ('    --mca pml ucx ', '    # '))
        self._scale_down('paper_1024.slurm', ('--nodes=128', '--nodes=2'),
                         ('--ntasks-per-node=8', '--ntasks-per-node=2'), ('#SBATCH --gpus-per-node=8\n', ''))
        draw_images(self.site / 'train', 'abc', 16, seed=1)
        draw_images(self.site / 'val', 'abc', 2, seed=2)
        (self.site / 'slurm.conf').write_text(CONFIGURATION)
        (self.site / 'cgroup.conf').write_text('CgroupPlugin=cgroup/v1\n')  # of which nothing is used
        (self.site / 'key').write_bytes(os.urandom(1024))
        for host in hosts:
            self.join(host)

    def _scale_down(self, script, *changes):
        path = self.site / 'jobs' / script
        text = path.read_text()
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path.write_text(text)

    def join(self, host):
        done = host.run('bash', '-c', DAEMONS.format(
            name=host.name, key=self.site / 'key', configuration=self.site / 'slurm.conf'))
        assert done.returncode == 0, done.stderr

    def run(self, *command, **environment):
        """Run one of Slurm's commands on n1; its output."""
        done = self.hosts[0].run(*command, cwd=self.site, env={
            **self.hosts.environment(), 'SLURM_CONF': str(self.site / 'slurm.conf'), **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, name, *options):
        """Submit paper_1024.slurm; the job's number and the file of its output."""
        told = self.run('sbatch', *options, 'jobs/paper_1024.slurm', *SMALL, TRAIN=str(self.site / 'train'),
                        VAL=str(self.site / 'val'), OUT=str(self.site / name))
        number = told.split()[-1]
        return number, self.site / f'paper_1024-{number}.out'

    def state(self, number):
        return re.search(r'JobState=(\S+)', self.run('scontrol', 'show', 'job', number))[1]

    def idle(self):
        return self.run('sinfo', '--noheader', '--format=%T %D').split()


@pytest.fixture(scope='module')
def cluster(make_hosts):
    missing = [name for name in ('sbatch', 'slurmctld', 'slurmd', 'munged')
               if not shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin')]
    if missing:
        pytest.skip(f'no Slurm here ({", ".join(missing)}): install slurm-wlm and munge')
    cluster = Cluster(make_hosts('n1', 'n2', 'n3'))
    until(lambda: cluster.idle() == ['idle', '3'], 60)
    return cluster


def said(path, pattern, count=1):
    """Whether a job's output has ``pattern`` so often."""
    return lambda: path.exists() and len(re.findall(pattern, path.read_text())) >= count


RESUMED = r'resumed from \S+ at iteration [1-9]'


def test_time_limit_brings_a_checkpoint_and_the_requeued_job_continues_until_scancel(cluster):
    number, output = cluster.submit('limited', '--time=1', '--signal=B:USR1@20')
    until(said(output, 'stopped at iteration'), 120)
    until(said(output, RESUMED), 60)
    cluster.run('scancel', number)
    until(lambda: cluster.state(number) == 'CANCELLED', 30)
    until(lambda: not any(host.processes('train_imagenet.py') for host in cluster.hosts), 30)
    until(lambda: cluster.idle() == ['idle', '3'], 30)


def test_a_job_that_loses_a_node_continues_on_another(cluster):
    number, output = cluster.submit('lost')
    until(said(output, r'epoch +iter'), 60)
    until(lambda: list((cluster.site / 'lost/checkpoint').glob('*.npz')), 60)
    nodes = cluster.run('squeue', '--noheader', '--format=%N').strip()
    assert nodes == 'n[1-2]'
    cluster.hosts[1].power_off()
    until(said(output, RESUMED), 120)
    assert cluster.run('squeue', '--noheader', '--format=%N').strip() == 'n[1,3]'
    cluster.run('scancel', number)
    until(lambda: cluster.state(number) == 'CANCELLED', 30)
    cluster.hosts.power_on(cluster.hosts[1])
    cluster.join(cluster.hosts[1])
    until(lambda: cluster.idle() == ['idle', '3'], 60)

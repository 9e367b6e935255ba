"""The launch scripts, against a stand-in for mpirun, and once against the real one."""

import mmap
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from lib.run import arguments, lock

import pytest

JOBS = pathlib.Path(__file__).resolve().parents[2] / 'jobs'
SCRIPTS = ['launch.sh', 'paper_1024.sh', 'node_8gpu.sh', 'one_gpu.sh', 'sample_cpu.sh', 'paper_1024.slurm',
           'paper_1024.pbs']

# Notes the arguments of each start, then ends with the next of `statuses`; `wait` means until told, `joining`
# the same, before the ranks have joined, `lost` is a status of 0 in the middle of the run, without its mark.
FAKE_MPIRUN = '''#!/usr/bin/env bash
if [[ $1 == --version ]]; then echo 'mpirun (Open MPI) 5.0.11'; exit; fi
cd "$(dirname "$0")"
echo "$*" >> calls
trap 'echo USR1 >> signals; exit 75' USR1
trap 'echo TERM >> signals; exit 1' TERM
trap 'echo INT >> signals; exit 1' INT
status=$(head -n 1 statuses)
sed -i 1d statuses
mkdir -p result
[[ $status == joining ]] || touch result/lock
echo ready
if [[ $status == lost ]]; then exit 0; fi
if [[ $status == 0 ]]; then echo done > result/finished; fi
if [[ $status == killed ]]; then
    mkdir "$TMPDIR/ompi.$$"
    touch "/dev/shm/sm_segment.host.$UID.$SEGMENT.0"
    exit 137
fi
if [[ $status == wait || $status == joining ]]; then read -r < never; fi
if [[ $status == deaf ]]; then trap '' USR1; echo deaf; read -r < never; fi
exit "$status"
'''


def environment(**names):
    inherited = {name: value for name, value in os.environ.items()
                 if name not in ('DRY_RUN', 'RANKS', 'EPOCHS', 'MPIRUN', 'PYTHON', 'RANKS_PER_NODE')}
    return {**inherited, 'PYTHON': sys.executable, **names}


@pytest.fixture
def fake(tmp_path):
    """``fake(*statuses)``: environment with a mpirun that ends with these, one per start."""
    (tmp_path / 'mpirun').write_text(FAKE_MPIRUN)
    (tmp_path / 'mpirun').chmod(0o755)
    os.mkfifo(tmp_path / 'never')

    def set_up(*statuses):
        (tmp_path / 'statuses').write_text(''.join(f'{status}\n' for status in statuses))
        return environment(MPIRUN=str(tmp_path / 'mpirun'))

    return set_up


def start(env, *arguments, script='launch.sh', cwd=None, **options):
    # Where the stand-in leaves what a run leaves, so that the default --out is found there.
    cwd = cwd or pathlib.Path(env.get('MPIRUN', __file__)).parent
    return subprocess.Popen(['bash', str(JOBS / script), *arguments], env=env, text=True, cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize('script', SCRIPTS)
def test_script_is_valid_bash(script):
    subprocess.run(['bash', '-n', str(JOBS / script)], check=True)


@pytest.mark.parametrize('script, expected', [
    ('paper_1024.sh', ['-np 1024', 'ppr:8:node', '--batchsize 32', '--recipe paper', '--resume auto',
                       '-x NCCL_IB_HCA', '--mca pml ucx', '--communicator pure_nccl', '--loaderjob 2',
                       '--allreduce-grad-dtype float16', '--stall-timeout 300']),
    ('paper_1024.slurm', ['-np 1024', 'ppr:8:node', '--resume auto']),
    ('paper_1024.pbs', ['-np 1024', 'ppr:8:node', '--resume auto']),
    ('node_8gpu.sh', ['-np 8', '--virtual-workers 128', '--batchsize 32', '--recipe paper',
                      '--communicator pure_nccl', '--allreduce-grad-dtype float16', '--loaderjob 2',
                      '--checkpoint-interval 10']),
    ('one_gpu.sh', ['--virtual-workers 8', '--batchsize 32', '--recipe paper', '--loaderjob 16']),
    ('sample_cpu.sh', ['-np 2', '--oversubscribe', '--epoch 12']),
])
def test_dry_run_prints_the_command_and_starts_nothing(script, expected, fake, tmp_path):
    (tmp_path / 'nproc').write_text('#!/bin/sh\necho 16\n')
    (tmp_path / 'nproc').chmod(0o755)
    env = {**fake(), 'DRY_RUN': '1', 'OPENBLAS_NUM_THREADS': '3', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    done = subprocess.run(['bash', str(JOBS / script), '--seed', '3'], env=env, text=True, check=True,
                          cwd=JOBS.parent, stdout=subprocess.PIPE)
    command, = done.stdout.splitlines()
    for part in [*expected, 'train_imagenet.py', '--seed 3', 'OPENBLAS_NUM_THREADS=3']:
        assert part in command
    assert not lines(tmp_path / 'calls')


def test_dry_run_is_an_option_too(fake):
    process = start(fake(), '--dry-run', '--epoch', '7', script='sample_cpu.sh')
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert '--epoch 7' in out and '--dry-run' not in out


@pytest.mark.parametrize('option, resumes', [
    ('--seed=1', True), ('--root=x', True), ('--force', False), ('--resume=PATH', False), ('-rPATH', False)])
def test_every_start_continues_unless_told_otherwise(option, resumes, fake):
    process = start(fake(), '--dry-run', option, script='sample_cpu.sh')
    out, _ = process.communicate(timeout=30)
    assert ('--resume auto' in out) == resumes


def test_ranks_of_the_sample_run_come_from_the_environment(fake):
    process = start({**fake(), 'RANKS': '3', 'EPOCHS': '5'}, '--dry-run', script='sample_cpu.sh')
    out, _ = process.communicate(timeout=30)
    assert '-np 3 ' in out and '--epoch 5' in out


def test_threads_and_memory_are_the_programs_unless_the_user_has_set_them(fake):
    env = {name: value for name, value in fake().items() if not name.startswith(('OPENBLAS_', 'MALLOC_'))}
    for given, expected in [({}, False), ({'OPENBLAS_NUM_THREADS': '3', 'MALLOC_TOP_PAD_': '1'}, True)]:
        process = start({**env, **given}, '--dry-run', '2', '--')
        out, _ = process.communicate(timeout=30)
        for name in ('OPENBLAS_NUM_THREADS', 'MALLOC_TOP_PAD_'):
            assert (f'-x {name} ' in out) == expected


@pytest.mark.parametrize('name', ['NCCL_X', 'UCX_X', 'CUDA_X', 'CUPY_X', 'NVIDIA_X', 'CHAINER_X',
                                  'EXTREME_SGD_X', 'LD_LIBRARY_PATH', 'PYTHONPATH', 'OPENBLAS_X', 'OMP_X',
                                  'MKL_X', 'MALLOC_X', 'GLIBC_TUNABLES'])
def test_settings_of_what_ranks_load_travel_to_every_host(name, fake):
    for set_up in ({}, {'RANKS_PER_NODE': '8'}):
        env = {**fake(), **set_up, name: '', 'XNCCL_X': '1', 'HOME_X': '1'}
        process = start(env, '--dry-run', '2', '--')
        out, _ = process.communicate(timeout=30)
        assert f' -x {name} ' in out and 'XNCCL_X' not in out and 'HOME_X' not in out
        assert ('--oversubscribe' in out) == (not set_up) and '--bind-to none' in out


def test_the_papers_settings_of_the_network_stand_unless_the_user_has_others(fake):
    inherited = {name: value for name, value in fake().items() if not name.startswith(('NCCL_', 'CUPY_'))}
    expected = {'NCCL_IB_HCA': 'mlx', 'NCCL_SOCKET_IFNAME': r'\^lo\,docker', 'NCCL_IB_TIMEOUT': '22',
                'NCCL_DEBUG': 'WARN'}
    for given in ({}, dict.fromkeys(expected, 'mine')):
        process = start({**inherited, **given}, '--dry-run', script='paper_1024.sh', cwd=JOBS.parent)
        out, _ = process.communicate(timeout=30)
        for name, value in expected.items():
            assert f'{name}={given.get(name, value)} ' in out and f'-x {name} ' in out
        assert 'CUPY_CACHE_DIR=' in out and '-x CUPY_CACHE_DIR ' in out


@pytest.mark.parametrize('script, word, expected', [
    ('paper_1024.slurm', '#SBATCH', [
        '--job-name=paper_1024', '--nodes=128', '--ntasks-per-node=8', '--gpus-per-node=8', '--exclusive',
        '--time=00:30:00', '--output=paper_1024-%j.out', '--open-mode=append', '--requeue',
        '--signal=B:USR1@120']),
    ('paper_1024.pbs', '#PBS', [
        '-N paper_1024', '-l select=128:ncpus=16:mpiprocs=8:ngpus=8', '-l place=excl', '-l walltime=00:30:00',
        '-j oe']),
])
def test_scheduler_is_asked_for_the_papers_machine(script, word, expected):
    text = (JOBS / script).read_text().splitlines()
    head = text[:next(i for i, line in enumerate(text) if line and not line.startswith('#'))]
    assert [line[len(word) + 1:] for line in head if line.startswith(f'{word} ')] == expected


def test_pbs_job_stops_itself_two_minutes_before_its_limit():
    text = (JOBS / 'paper_1024.pbs').read_text()
    assert 'walltime=00:30:00\n' in text and '\nSTOP_AFTER=$((30 * 60 - 120))\n' in text


def test_checkpointed_stop_nobody_asked_for_starts_again_with_resume(fake, tmp_path):
    process = start(fake(75, 75, 0), '2', '--', '--force', '--epoch', '3')
    process.communicate(timeout=30)
    assert process.returncode == 0
    first, *others = lines(tmp_path / 'calls')
    assert '--force' in first and '--resume' not in first and '--wait' not in first
    assert len(others) == 2
    for call in others:
        assert call.endswith('--epoch 3 --resume auto --wait') and '--force' not in call


@pytest.mark.parametrize('status', [0, 1, 2, 134])
def test_other_statuses_pass_through_without_a_restart(status, fake, tmp_path):
    process = start(fake(status, 0), '2', '--')
    process.communicate(timeout=30)
    assert process.returncode == status
    assert len(lines(tmp_path / 'calls')) == 1


@pytest.mark.parametrize('script, words', [('launch.sh', ['2', '--']), ('sample_cpu.sh', []),
                                           ('paper_1024.sh', []), ('paper_1024.slurm', [])])
def test_status_0_in_the_middle_of_a_run_is_not_believed(script, words, fake):
    env = {**fake('lost'), 'OUT': 'result'}
    process = start(env, *words, script=script)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert 'launch: status 0, but the run has left no result/finished' in err.splitlines()[-1]


@pytest.mark.parametrize('out', [
    ['--out', 'there'], ['--out=there'], ['-o', 'there'], ['-othere'], ['-o=there'],
    ['-o', 'elsewhere', '--out', 'there']])
def test_the_mark_is_looked_for_where_the_options_say(out, fake, tmp_path):
    assert arguments.parse(out).out == 'there' and arguments.parse([]).out == 'result'
    (tmp_path / 'there').mkdir()
    for status in (1, 0):
        process = start(fake('lost'), '2', '--', *out)
        process.communicate(timeout=30)
        assert process.returncode == status
        (tmp_path / 'there' / 'finished').touch()


def test_the_mark_of_a_run_given_up_does_not_count(fake, tmp_path):
    (tmp_path / 'result').mkdir()
    (tmp_path / 'result' / 'finished').touch()
    process = start(fake('lost'), '2', '--', '--force')
    process.communicate(timeout=30)
    assert process.returncode == 1


@pytest.mark.parametrize('option', ['--plan', '--help', '-h'])
def test_what_does_not_train_needs_no_mark_and_takes_none_away(option, fake, tmp_path):
    process = start(fake('lost'), '2', '--', option)
    process.communicate(timeout=30)
    assert process.returncode == 0
    (tmp_path / 'result' / 'finished').touch()
    process = start(fake('lost'), '2', '--', '--force', option)
    process.communicate(timeout=30)
    assert process.returncode == 0 and (tmp_path / 'result' / 'finished').exists()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_script_asks_the_ranks_and_ends_with_75(number, fake, tmp_path):
    process = start(fake('wait', 0), '2', '--')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert lines(tmp_path / 'signals') == ['USR1']
    assert len(lines(tmp_path / 'calls')) == 1


def test_interrupt_of_the_whole_foreground_group_reaches_mpirun_only_translated(fake, tmp_path):
    process = start(fake('wait', 0), script='sample_cpu.sh', start_new_session=True)
    assert process.stdout.readline() == 'ready\n'
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert lines(tmp_path / 'signals') == ['USR1']


def test_second_interrupt_ends_ranks_that_do_not_listen(fake, tmp_path):
    process = start(fake('deaf', 0), '2', '--')
    assert [process.stdout.readline() for _ in range(2)] == ['ready\n', 'deaf\n']
    process.send_signal(signal.SIGINT)
    assert 'checkpoint' in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert lines(tmp_path / 'signals') == ['TERM']
    assert len(lines(tmp_path / 'calls')) == 1


def test_ranks_are_asked_once_they_have_joined(fake, tmp_path):
    (tmp_path / 'result').mkdir()
    mark = tmp_path / 'result' / lock.NAME
    mark.touch()
    os.utime(mark, (1e9, 1e9))  # another run's
    looked = tmp_path / 'looked'
    os.mkfifo(looked)
    (tmp_path / 'stat').write_text(f'#!/bin/sh\necho >> {looked}\nexec {shutil.which("stat")} "$@"\n')
    (tmp_path / 'stat').chmod(0o755)
    process = start({**fake('joining'), 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}, '2', '--')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    with open(looked) as file:
        file.readline()
        assert not lines(tmp_path / 'signals')
        mark.touch()
        process.communicate(timeout=20)
    assert process.returncode == 75
    assert lines(tmp_path / 'signals') == ['USR1']


def test_ranks_whose_lock_is_not_to_be_seen_are_asked_all_the_same(fake, tmp_path):
    impatient = tmp_path / 'impatient.sh'
    impatient.write_text(f'source {JOBS}/launch.sh\nJOIN_SECONDS=1\nlaunch "$@"\n')
    process = start(fake('joining'), '2', '--', script=impatient)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert lines(tmp_path / 'signals') == ['USR1']


def test_ranks_killed_before_they_listened_count_as_stopped(fake):
    env = fake('wait')
    mpirun = pathlib.Path(env['MPIRUN'])
    mpirun.write_text(FAKE_MPIRUN.replace("'echo USR1 >> signals; exit 75'", '-'))  # the signal's own effect
    process = start(env, '2', '--')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_signal_during_one_process_without_mpirun(tmp_path):
    python = tmp_path / 'python'
    os.mkfifo(tmp_path / 'never')
    python.write_text(f'#!/bin/bash\ntrap "exit 75" USR1\necho ready\nread -r < {tmp_path}/never\n')
    python.chmod(0o755)
    process = start(environment(PYTHON=str(python)), '1', '--')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_one_process_that_stopped_unasked_starts_again_without_mpirun(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/bash\ncd "$(dirname "$0")"\necho "$*" >> calls\n'
                      '[[ -e result ]] || { mkdir result; exit 75; }\n: > result/finished\n')
    python.chmod(0o755)
    process = start(environment(PYTHON=str(python)), '1', '--', '--out', str(tmp_path / 'result'))
    process.communicate(timeout=30)
    assert process.returncode == 0
    first, second = lines(tmp_path / 'calls')
    assert first.split()[0] == second.split()[0] and first.split()[0].endswith('train_imagenet.py')


def test_bad_number_of_ranks_is_refused():
    process = start(environment(), 'two', '--')
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "'two'" in err and len(err.splitlines()) == 1


def test_missing_mpirun_is_named(tmp_path):
    process = start(environment(MPIRUN=str(tmp_path / 'absent')), '2', '--')
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert 'absent' in err and len(err.splitlines()) == 1


RANK = '''#!/bin/bash
trap 'echo told; exit 75' USR1
mkdir -p result
touch result/lock
echo ready
for i in {1..600}; do sleep 0.1; done
'''


def test_sigterm_to_the_script_reaches_every_rank_under_the_real_mpirun(tmp_path):
    beside = pathlib.Path(sys.executable).parent / 'mpirun'
    python = tmp_path / 'python'
    python.write_text(RANK)
    python.chmod(0o755)
    env = environment(PYTHON=str(python), MPIRUN=str(beside) if beside.exists() else 'mpirun')
    process = start(env, '2', '--', cwd=tmp_path)
    assert [process.stdout.readline() for _ in range(2)] == ['ready\n'] * 2
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert 'told' in out


@pytest.mark.parametrize('count, waits', [(None, False), ('0', False), ('2', True)])
def test_requeued_job_waits_for_what_the_earlier_one_left_behind(count, waits, fake):
    env = {**fake(), 'DRY_RUN': '1', 'SLURM_SUBMIT_DIR': str(JOBS.parent),
           **({} if count is None else {'SLURM_RESTART_COUNT': count})}
    process = start(env, '--seed', '3', script='paper_1024.slurm')
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert ('--seed 3 --wait' in out) == waits


def test_copy_that_slurm_runs_finds_the_scripts_wherever_it_was_submitted(fake, tmp_path):
    spool, bin = tmp_path / 'spool', tmp_path / 'bin'
    spool.mkdir()
    bin.mkdir()
    shutil.copy(JOBS / 'paper_1024.slurm', spool / 'slurm_script')
    (bin / 'scontrol').write_text(f'#!/bin/bash\necho "JobId=17 JobName=x"\n'
                                  f'echo "   Command={JOBS}/paper_1024.slurm --seed 3"\n')
    (bin / 'scontrol').chmod(0o755)
    env = {**fake(), 'DRY_RUN': '1', 'SLURM_JOB_ID': '17', 'SLURM_SUBMIT_DIR': str(tmp_path),
           'PATH': f'{bin}:{os.environ["PATH"]}'}
    done = subprocess.run(['bash', spool / 'slurm_script', '--seed', '3'], env=env, cwd=tmp_path, text=True,
                          capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert f'{JOBS.parent}/train_imagenet.py' in done.stdout and '--seed 3' in done.stdout


def test_requeue_follows_the_time_limit_signal_only(fake, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/bash\necho "$*" >> "$(dirname "$0")/scontrol.calls"\n')
    scontrol.chmod(0o755)
    for number, calls in [(signal.SIGTERM, []), (signal.SIGUSR1, ['requeue 17'])]:
        env = {**fake('wait'), 'SLURM_SUBMIT_DIR': str(JOBS.parent), 'SLURM_JOB_ID': '17', 'OUT': 'result',
               'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
        process = start(env, script='paper_1024.slurm')
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 75
        assert lines(tmp_path / 'scontrol.calls') == calls


@pytest.mark.parametrize('silent, calls', [('', []), ('n2', ['requeue 17'])])
def test_a_fault_is_followed_by_requeue_only_if_a_node_does_not_answer(silent, calls, fake, tmp_path):
    (tmp_path / 'scontrol').write_text('#!/bin/bash\ncd "$(dirname "$0")"\nif [[ $1 == show ]]; then '
                                       "printf 'n1\\nn2\\n'; else echo \"$*\" >> scontrol.calls; fi\n")
    (tmp_path / 'srun').write_text(
        f'#!/bin/bash\n[[ "$*" != *"--nodelist={silent or "none"} "* ]] || exit 255\n')
    for name in 'scontrol', 'srun':
        (tmp_path / name).chmod(0o755)
    env = {**fake(1), 'SLURM_SUBMIT_DIR': str(JOBS.parent), 'SLURM_JOB_ID': '17',
           'SLURM_JOB_NODELIST': 'n[1-2]', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    process = start(env, script='paper_1024.slurm')
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert lines(tmp_path / 'scontrol.calls') == calls


# Several hosts

@pytest.mark.parametrize('options, env, spans', [
    (['2'], {}, False), (['2'], {'RANKS_PER_NODE': '1'}, True), (['2', '--host', 'a,b'], {}, True)])
def test_only_across_hosts_daemons_are_watched_closely_and_a_standstill_is_not_for_ever(
        options, env, spans, fake):
    out, _ = start({**fake(), **env}, '--dry-run', *options, '--', '--seed', '3').communicate(timeout=30)
    for words in ('--prtemca oob_tcp_keepalive_time 10', '--mca btl_tcp_if_exclude lo,docker0',
                  '--seed 3 --stall-timeout 300'):
        assert (words in out.replace('\\', '')) == spans


def test_the_users_choice_of_interfaces_keepalive_and_patience_counts(fake):
    env = {**fake(), 'RANKS_PER_NODE': '1', 'OMPI_MCA_btl_tcp_if_include': 'eth1'}
    out, _ = start(env, '--dry-run', '2', '--prtemca', 'oob_tcp_keepalive_time', '60', '--',
                   '--stall-timeout', '900').communicate(timeout=30)
    assert 'btl_tcp_if_exclude' not in out
    assert 'oob_tcp_keepalive_time 60' in out and 'oob_tcp_keepalive_probes' not in out
    assert '--stall-timeout 900' in out and '--stall-timeout 300' not in out


def test_settings_of_ucx_travel_to_the_ranks(fake):
    out, _ = start({**fake(), 'UCX_TLS': 'tcp'}, '--dry-run', '2', '--').communicate(timeout=30)
    assert '-x UCX_TLS ' in out


def test_a_killed_script_leaves_a_stop_request(fake, tmp_path):
    process = start(fake('wait'), '2', '--')
    assert process.stdout.readline() == 'ready\n'
    process.kill()
    process.communicate(timeout=30)  # reads until mpirun, too, has closed its output
    assert lines(tmp_path / 'signals') == ['USR1']


@pytest.fixture
def silent(tmp_path, monkeypatch):
    """The file that names the hosts which do not answer."""
    agent = tmp_path / 'agent'
    agent.write_text('#!/bin/sh\ncd "$(dirname "$0")"\nif grep -qx "$1" silent; then exit 255; fi\n')
    agent.chmod(0o755)
    monkeypatch.setenv('PRTE_MCA_plm_ssh_agent', str(agent))
    (tmp_path / 'silent').touch()
    return tmp_path / 'silent'


HOSTFILE = '# the rack\na slots=4\nb slots=4 max_slots=8\n\nc slots=4\n'


def test_a_host_that_does_not_answer_is_left_out_and_its_workers_are_played_by_the_others(
        fake, silent, tmp_path):
    (tmp_path / 'file').write_text(HOSTFILE)
    silent.write_text('b\n')
    process = start(fake(1, 0), '12', '--hostfile', 'file', '--mca', 'pml', 'ob1', '--',
                    '--virtual-workers', '2', '--seed', '3', '--force')
    _, err = process.communicate(timeout=30)
    first, second = lines(tmp_path / 'calls')
    assert '-np 12 --hostfile file --mca pml ob1' in first
    assert '-np 8 --host a:4,c:4 --mca pml ob1' in second
    assert second.endswith('--seed 3 --stall-timeout 300 --workers 24 --resume auto --wait')
    assert 'hostfile' not in second and '--force' not in second and 'virtual' not in second
    assert 'launch: left out, for want of an answer: b; 24 workers on 8 ranks of 2 hosts' in err
    assert process.returncode == 0


@pytest.mark.parametrize('given, expected', [
    (['--host', 'a,b,c'], '-np 4 --host a:2,c:2'), (['--host', 'a:2,b:3,c:1'], '-np 3 --host a:2,c:1')])
def test_ranks_left_are_those_of_the_hosts_left(given, expected, fake, silent, tmp_path):
    silent.write_text('b\n')
    start(fake(1, 0), '6', *given, '--').communicate(timeout=30)
    assert expected in lines(tmp_path / 'calls')[1]


def test_a_host_has_no_more_ranks_than_the_script_gives_each(fake, silent, tmp_path):
    silent.write_text('b\n')
    env = {**fake(1, 0), 'RANKS_PER_NODE': '2'}
    start(env, '6', '--host', 'a:16,b:16,c:16', '--').communicate(timeout=30)
    assert '-np 4 --host a:2,c:2' in lines(tmp_path / 'calls')[1]


def test_a_fault_is_passed_on_when_all_hosts_answer(fake, silent, tmp_path):
    process = start(fake(1, 0), '6', '--host', 'a,b,c', '--')
    process.communicate(timeout=30)
    assert process.returncode == 1 and len(lines(tmp_path / 'calls')) == 1


def test_bad_arguments_are_no_reason_to_look_for_lost_hosts(fake, silent, tmp_path):
    silent.write_text('b\n')
    process = start(fake(2, 0), '6', '--host', 'a,b,c', '--')
    process.communicate(timeout=30)
    assert process.returncode == 2 and len(lines(tmp_path / 'calls')) == 1


def test_a_fault_on_the_hosts_that_are_left_is_passed_on(fake, silent, tmp_path):
    silent.write_text('b\n')
    process = start(fake(1, 134, 0), '6', '--host', 'a,b,c', '--')
    process.communicate(timeout=30)
    assert process.returncode == 134 and len(lines(tmp_path / 'calls')) == 2


def test_when_most_hosts_do_not_answer_it_is_not_they_who_are_lost(fake, silent, tmp_path):
    silent.write_text('b\nc\n')
    process = start(fake(1, 0), '6', '--host', 'a,b,c', '--')
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and len(lines(tmp_path / 'calls')) == 1
    assert 'launch: only 1 of 3 hosts answer: not starting again' in err


def test_every_start_asks_all_hosts_anew(fake, silent, tmp_path):
    silent.write_text('b\n')
    env = fake(1, 75, 0)
    mpirun = pathlib.Path(env['MPIRUN'])
    mpirun.write_text(FAKE_MPIRUN.replace('echo ready', '[[ $status != 75 ]] || : > silent'))
    start(env, '6', '--host', 'a,b,c', '--', '--seed', '3').communicate(timeout=30)
    assert '-np 6 --host a,b,c ' in lines(tmp_path / 'calls')[2]
    assert '--workers' not in lines(tmp_path / 'calls')[2]


def test_a_job_loses_hosts_three_times_at_most(fake, silent, tmp_path):
    env = fake(1, 1, 1, 1, 0)
    names = [f'h{number}' for number in range(10)]
    mpirun = pathlib.Path(env['MPIRUN'])
    mpirun.write_text(FAKE_MPIRUN.replace('echo ready', 'echo "h$(wc -l < silent)" >> silent'))
    process = start(env, '10', '--host', ','.join(names), '--')
    process.communicate(timeout=30)
    assert process.returncode == 1 and len(lines(tmp_path / 'calls')) == 4


def test_a_stop_asked_for_while_hosts_are_asked_is_kept(fake, silent, tmp_path):
    silent.write_text('b\n')
    agent = tmp_path / 'agent'
    agent.write_text(agent.read_text().replace('cd', 'kill -TERM "$(cat "$(dirname "$0")/script")"; cd', 1))
    env = fake(1, 0)
    pathlib.Path(env['MPIRUN']).write_text(FAKE_MPIRUN.replace('echo ready', 'read -r < never'))
    process = start(env, '2', '--host', 'b,c', '--')
    (tmp_path / 'script').write_text(str(process.pid))
    (tmp_path / 'never').write_text('go on\n')
    process.communicate(timeout=30)
    assert process.returncode == 75 and len(lines(tmp_path / 'calls')) == 1


@pytest.fixture
def segments():
    """Names in /dev/shm as Open MPI gives them, of numbers that no job has; removed afterwards."""
    job = f'test{os.getpid()}'
    yield job, lambda: {path.name for path in pathlib.Path('/dev/shm').glob(f'sm_segment.*.*.{job}*')}
    for path in pathlib.Path('/dev/shm').glob(f'sm_segment.*.*.{job}*'):
        path.unlink()


@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='Open MPI keeps its segments elsewhere')
def test_what_a_killed_mpirun_leaves_on_this_host_is_removed_and_no_more(fake, tmp_path, segments):
    job, listed = segments
    older, mapped = (f'sm_segment.host.{os.getuid()}.{job}{kind}.0' for kind in ('older', 'mapped'))
    for name in (older, mapped):
        pathlib.Path('/dev/shm', name).write_bytes(b'segment')
    os.utime(f'/dev/shm/{older}', (0, 0))
    os.utime(f'/dev/shm/{mapped}', (2 ** 31, 2 ** 31))
    (tmp_path / 'ompi.1').mkdir()
    with open(f'/dev/shm/{mapped}', 'r+b') as file, mmap.mmap(file.fileno(), 0):
        process = start({**fake('killed'), 'TMPDIR': str(tmp_path), 'SEGMENT': job}, '2')
        out, err = process.communicate(timeout=60)
    assert process.returncode == 137, err
    assert listed() == {older, mapped}
    assert [path.name for path in tmp_path.glob('ompi.*')] == ['ompi.1']


def test_kernels_are_kept_where_nobody_else_can_put_any(fake):
    process = start({**fake(), 'HOME': '/home/user'}, '--dry-run', script='paper_1024.sh')
    assert ' CUPY_CACHE_DIR=/home/user/' in ' ' + process.communicate(timeout=60)[0]

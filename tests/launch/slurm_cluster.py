"""A real Slurm on this machine: munged, slurmctld and one slurmd for each node, started by hand and ended by process id."""

import contextlib
import grp
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

CONF = """
ClusterName=rewarm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/linear
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=500000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=20
InactiveLimit=0
KillWait=60
MinJobAge=3600
{nodes}
PartitionName=spot Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 State=UP
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def wait_until(holds: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Polls until something holds; after so many seconds it fails and says what it waited for."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f'not within {seconds:.0f} s: {what()}'
        time.sleep(0.3)


class SlurmCluster:
    """Nodes n1, n2 ... on this machine.

    Args:
        folder (Path): For everything it writes; a short path, since it holds a socket.
        nodes (int): How many.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.names = [f'n{number}' for number in range(1, nodes + 1)]
        self.processes: dict[str, subprocess.Popen] = {}
        self.conf = folder / 'slurm.conf'
        host = socket.gethostname().split('.')[0]
        lines = [
            f'NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} CPUs=1 State=UNKNOWN'
            for name in self.names
        ]
        (folder / 'state').mkdir()
        self.conf.write_text(
            CONF.format(host=host, folder=folder, controller_port=_free_port(), nodes='\n'.join(lines))
        )
        self.env = {**os.environ, 'SLURM_CONF': str(self.conf)}

    def start(self) -> None:
        """Starts all daemons and waits for the nodes."""
        munge, group = pwd.getpwnam('munge'), grp.getgrnam('munge')
        key = self.folder / 'munge.key'
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        shutil.chown(key, 'munge', 'munge')
        shutil.chown(self.folder, 'munge', 'munge')  # munged insists on folders of its own
        self.folder.chmod(0o755)
        arguments = [f'--{name}={self.folder}/munge.{name}' for name in ('socket', 'pid-file', 'log-file', 'seed-file')]
        command = ['munged', '--foreground', '--force', f'--key-file={key}', *arguments]
        self._start('munged', *command, user=munge.pw_uid, group=group.gr_gid)
        wait_until((self.folder / 'munge.socket').exists, 20, lambda: 'the socket of munged')
        self._start('slurmctld', 'slurmctld', '-D', '-i', '-c')
        for name in self.names:
            self.start_node(name)
        wait_until(
            lambda: self.states() == dict.fromkeys(self.names, 'idle'), 60, lambda: f'idle nodes: {self.states()}'
        )

    def start_node(self, name: str) -> None:
        """Starts a node's daemon, also after its loss."""
        self._start(name, 'slurmd', '-D', '-c', '-N', name)

    def _start(self, name: str, *command: str, **options) -> None:
        with (self.folder / f'{name}.out').open('a') as output:
            self.processes[name] = subprocess.Popen(
                command, env=self.env, start_new_session=True, stdout=output, stderr=output, **options
            )

    def lose_node(self, name: str) -> None:
        """Kills a node as a power cut does: its daemon, its step daemons and all that they started, each by its process id."""
        self._kill([psutil.Process(self.processes[name].pid), *self._work_on(name)])
        self.processes.pop(name).wait()

    def _work_on(self, *names: str) -> list[psutil.Process]:
        """Everything of jobs on these nodes; Slurm says in each process's environment where it runs."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.get('SLURM_CONF') == str(self.conf) and environment.get('SLURMD_NODENAME') in names:
                    found += [process, *(each for each in process.parents() if each.name() == 'slurmstepd')]
            except psutil.Error:  # it ended while we looked
                continue
        return found

    @staticmethod
    def _kill(processes: list[psutil.Process]) -> None:
        """Kills all at one moment: stopped first, so that none reacts to another's end."""
        for end in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(end)

    def run(self, *command: str) -> str:
        """Runs one of Slurm's commands."""
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True, timeout=60).stdout

    def states(self) -> dict[str, str]:
        """The state of each node."""
        try:
            lines = self.run('sinfo', '--noheader', '--Node', '--partition=spot', '--format=%N %T').splitlines()
        except subprocess.CalledProcessError:  # the controller does not answer yet
            return {}
        return dict(line.split() for line in lines)

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job."""
        return dict(re.findall(r'(\w+)=(\S*)', self.run('scontrol', '--oneliner', 'show', 'job', number)))

    def submit(self, *arguments: str, cwd: Path) -> str:
        """Submits a batch job; returns its number."""
        command = ['sbatch', '--parsable', *arguments]
        done = subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> None:
        """Ends every daemon and everything that jobs left, by process id."""
        self._kill(self._work_on(*self.names))
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

#!/usr/bin/env bash
# Starts a SLURM of one node on this machine, for tests/studies/test_slurm.py, or finds it running. For root, on Debian or
# Ubuntu, where it installs slurm and munge if need be. All it makes is in $DINOSWAP_SLURM; slurm_down.sh stops it.
#
# No systemd, no cgroups (so no memory limits), no accounting, loopback only, a munge of its own. The node claims eight
# cores whatever there are.
set -euo pipefail

HOME_DIR=${DINOSWAP_SLURM:-/tmp/dinoswap-slurm}
NODE=$(hostname -s)
export SLURM_CONF=$HOME_DIR/slurm.conf

if [[ $(id -u) != 0 ]]; then
    echo "slurm_up.sh: slurmd needs root" >&2
    exit 2
fi
if ! command -v slurmctld slurmd munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi

running() { [[ -s $HOME_DIR/$1.pid ]] && kill -0 "$(<"$HOME_DIR/$1.pid")" 2>/dev/null; }
ready() { timeout 5 sinfo --noheader --format=%T 2>/dev/null | grep -qE 'idle|mixed|allocated'; }
await() {
    local end=$((SECONDS + 60))
    while ((SECONDS < end)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "slurm_up.sh: waited 60 s for: $*" >&2
    tail -n 5 "$HOME_DIR"/*.log >&2
    exit 1
}

if running slurmctld && running slurmd && ready; then
    exit 0
fi
install -d -m 755 "$HOME_DIR" "$HOME_DIR"/{state,spool}
install -d -m 755 -o munge -g munge "$HOME_DIR/munge"

if [[ ! -s $HOME_DIR/munge/key ]]; then
    dd if=/dev/urandom of="$HOME_DIR/munge/key" bs=128 count=1 status=none
    chown munge:munge "$HOME_DIR/munge/key"
    chmod 400 "$HOME_DIR/munge/key"
fi
if ! running munged; then
    # --force: below /tmp, which others may write to
    setpriv --reuid=munge --regid=munge --clear-groups munged --force --socket="$HOME_DIR/munge/socket" \
        --key-file="$HOME_DIR/munge/key" --pid-file="$HOME_DIR/munge/munged.pid" \
        --log-file="$HOME_DIR/munge/munged.log" --seed-file="$HOME_DIR/munge/seed"
    await test -S "$HOME_DIR/munge/socket" -a -s "$HOME_DIR/munge/munged.pid"
    cp "$HOME_DIR/munge/munged.pid" "$HOME_DIR/munged.pid"
fi

: >"$HOME_DIR/cgroup.conf" # without it slurmd looks for cgroups
cat >"$SLURM_CONF" <<CONF
ClusterName=dinoswap
SlurmctldHost=$NODE(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
# cred_expire: a job that is queued again waits for as long, 120 s by default
AuthInfo=socket=$HOME_DIR/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$HOME_DIR/state
SlurmdSpoolDir=$HOME_DIR/spool
SlurmctldPidFile=$HOME_DIR/slurmctld.pid
SlurmdPidFile=$HOME_DIR/slurmd.pid
SlurmctldLogFile=$HOME_DIR/slurmctld.log
SlurmdLogFile=$HOME_DIR/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=300
# preemption of jobs in "debug" by those in "high": told by the signal that they asked for, then queued again
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=8 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000
PartitionName=debug Nodes=$NODE Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=$NODE MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF

scontrol show hostnames "$NODE" >/dev/null # a bad line above would fail here rather than in each command below
running slurmctld || slurmctld -f "$SLURM_CONF"
await timeout 5 scontrol ping
running slurmd || slurmd -f "$SLURM_CONF"
await ready

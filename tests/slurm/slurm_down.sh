#!/usr/bin/env bash
# Stops the SLURM that slurm_up.sh started, its jobs first, and removes its folder.
set -uo pipefail

HOME_DIR=${DINOSWAP_SLURM:-/tmp/dinoswap-slurm}
[[ -d $HOME_DIR ]] || exit 0
SLURM_CONF=$HOME_DIR/slurm.conf timeout 10 scancel --user=root 2>/dev/null
for daemon in slurmd slurmctld munged; do
    [[ -s $HOME_DIR/$daemon.pid ]] || continue
    pid=$(<"$HOME_DIR/$daemon.pid")
    kill "$pid" 2>/dev/null
    for _ in {1..100}; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null
done
rm -rf "$HOME_DIR"

#!/bin/sh
# Cancel all jobs of the Slurm that start.sh has started in DIR, and end its daemons.
set -u

dir=$1
export SLURM_CONF="$dir/slurm.conf"
scancel --user="$(id -un)"
for _ in $(seq 40); do # slurmd would leave the processes of its jobs behind
    [ -z "$(squeue --noheader)" ] && break
    sleep 0.5
done
for daemon in slurmd slurmctld munged; do
    [ -f "$dir/run/$daemon.pid" ] && kill "$(cat "$dir/run/$daemon.pid")"
done
exit 0

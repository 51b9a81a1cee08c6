#!/bin/sh
# Start munge, slurmctld and slurmd for this machine alone, without systemd; as root, in a container or a virtual
# machine that is thrown away. Everything is kept in DIR, and nothing in /etc; Slurm's commands find it by
# `export SLURM_CONF=DIR/slurm.conf`.
#
#   apt-get install --no-install-recommends munge slurmctld slurmd slurm-client
#   tests/experiment/executors/slurm/start.sh DIR [PORT]     PORT and PORT + 1 have to be free
#   tests/experiment/executors/slurm/stop.sh DIR
set -eu

dir=$(mkdir -p "$1" && cd "$1" && pwd)
port=${2:-16817}
host=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)

mkdir -p "$dir/state" "$dir/spool" "$dir/run"
chmod 700 "$dir" # munge serves no one out of a folder that is open to others
sed -e "s|@DIR@|$dir|g" -e "s|@HOST@|$host|g" -e "s|@CPUS@|$(nproc)|g" -e "s|@MEMORY@|$memory|g" \
    -e "s|@PORT@|$port|g" -e "s|@NODE_PORT@|$((port + 1))|g" "$(dirname "$0")/slurm.conf.in" > "$dir/slurm.conf"
# Nothing here uses control groups, but Slurm 22.05 loads a plugin for them: this one needs no mount.
case $(slurmd -V) in
    *" 2"[0-2].*) printf 'CgroupPlugin=cgroup/v1\n' ;;
    *) printf 'CgroupPlugin=disabled\n' ;;
esac > "$dir/cgroup.conf"

dd if=/dev/urandom of="$dir/munge.key" bs=1024 count=1 2> "$dir/dd.log"
chmod 400 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/run/munge.socket" --pid-file="$dir/run/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"

export SLURM_CONF="$dir/slurm.conf"
slurmctld -c
slurmd -N "$host"
for _ in $(seq 60); do
    if sinfo --noheader --format=%T 2> "$dir/sinfo.log" | grep -q idle; then
        exit 0
    fi
    sleep 0.5
done
echo "Slurm has not come up: see $dir/slurmctld.log and $dir/slurmd.log" >&2
exit 1

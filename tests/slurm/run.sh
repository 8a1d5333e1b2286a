#!/usr/bin/env bash
# The workflow on a real SLURM, in one command: `tests/slurm/run.sh`, as root on Debian or in a container of it.
#
# Installs Debian's slurm and munge where they are missing, starts munged, slurmctld and slurmd on the loopback address with a
# configuration of their own, and holds a run through sbatch against one without. On the way a job is cancelled, the node is
# drained and Snakemake is killed. Targets may be given (`tests/slurm/run.sh table1 table3`), all being the default.
# Prints a transcript; exits non-zero on any failure; leaves no daemon and no configuration.
set -euo pipefail

TARGETS=("$@")
REPOSITORY=$(cd "$(dirname "$0")/../.." && pwd)
HOST=$(hostname -s)
# Plain seconds, not bash's SECONDS, whose name is too near to SLURM's own.
BEGAN=$(date +%s)

say() { printf '[%4d s] %s\n' $(($(date +%s) - BEGAN)) "$*"; }
fail() {
  say "FAILED: $*"
  exit 1
}
# wait_for <seconds> <what> <command …>: until the command succeeds.
wait_for() {
  local until=$(($(date +%s) + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    (($(date +%s) < until)) || fail "no $what in time"
    sleep 0.1
  done
}

[ "$(id -u)" = 0 ] || fail "this starts daemons: run it as root"
# The step inside a job is started without SLURM_CONF, so the configuration has to lie where Debian's SLURM looks for it.
for file in slurm.conf gres.conf; do
  [ ! -e "/etc/slurm/$file" ] || fail "/etc/slurm/$file is there: this machine has a SLURM of its own"
done

say "packages"
if ! for program in slurmctld slurmd sbatch munged; do command -v $program || exit; done >/dev/null; then
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge >/dev/null
fi
export PATH="$REPOSITORY/.venv/bin:$PATH"
command -v uv >/dev/null || pip install -q uv
(cd "$REPOSITORY" && uv venv -q --allow-existing && uv pip install -q -c constraints.txt -e '.[dev,slurm]')

WORK=$(mktemp -d)
# munged wants its folders open to those who talk to it, and writable by its user alone.
chmod 755 "$WORK"
mkdir "$WORK"/{munge,state,spool}
DAEMONS=()
RUN=
cleanup() {
  local status=$?
  trap - EXIT
  [ -z "$RUN" ] || kill -KILL "$RUN" 2>/dev/null || true
  if [ ${#DAEMONS[@]} -gt 0 ]; then
    timeout 20 scancel --me 2>/dev/null || true
    sleep 2
    kill "${DAEMONS[@]}" 2>/dev/null || true
    wait "${DAEMONS[@]}" 2>/dev/null || true
  fi
  rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf
  if [ $status = 0 ]; then
    rm -rf "$WORK"
  else
    say "logs are kept in $WORK"
  fi
  exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ---------------------------------------------------------------------------------------------------------------- daemons
dd if=/dev/urandom of="$WORK/munge/key" bs=1024 count=1 status=none
chmod 400 "$WORK/munge/key"
# Two cards to give away, so that the requests for a GPU and CUDA_VISIBLE_DEVICES are SLURM's own; nothing computes on them.
# They are null devices: SLURM wants device files.
mknod "$WORK/card0" c 1 3
mknod "$WORK/card1" c 1 3
mkdir -p /etc/slurm
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=loopback
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$WORK/munge/socket
SlurmUser=root
StateSaveLocation=$WORK/state
SlurmdSpoolDir=$WORK/spool
SlurmctldPidFile=$WORK/slurmctld.pid
SlurmdPidFile=$WORK/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=7200
GresTypes=gpu
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=2 RealMemory=128000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$HOST Default=YES MaxTime=INFINITE State=UP
CONF
echo "NodeName=$HOST Name=gpu File=$WORK/card[0-1]" >/etc/slurm/gres.conf

munged --foreground --key-file "$WORK/munge/key" --socket "$WORK/munge/socket" --pid-file "$WORK/munge/pid" \
  --seed-file "$WORK/munge/seed" --force >"$WORK/munged.log" 2>&1 &
DAEMONS+=($!)
wait_for 20 "answer from munged" sh -c "munge -S '$WORK/munge/socket' -n | unmunge -S '$WORK/munge/socket'"
slurmctld -D >"$WORK/slurmctld.log" 2>&1 &
DAEMONS+=($!)
slurmd -D >"$WORK/slurmd.log" 2>&1 &
DAEMONS+=($!)
wait_for 120 "idle node" sh -c "sinfo --noheader --format=%T | grep -qx idle"
say "$(slurmctld -V) is up: $(sinfo --noheader --Node --format='node %N, %c CPUs, %m MB, %G, %T')"

# -------------------------------------------------------------------------------------------------------------- workspaces
# As clones of the repository without results. Guided training is long enough to be cut in the middle.
workspace() {
  mkdir -p "$WORK/$1/results"
  for name in Snakefile workflow config profiles environment.yml results/published; do
    ln -s "$REPOSITORY/$name" "$WORK/$1/$name"
  done
  sed 's/epochs: 2,/epochs: 40,/' "$REPOSITORY/tests/configs/minimal.yaml" >"$WORK/$1/minimal.yaml"
  grep -q 'epochs: 40' "$WORK/$1/minimal.yaml" || fail "minimal.yaml has no epochs to raise"
}
workspace local
workspace slurm
unset MLFLOW_TRACKING_URI SNAKEMAKE_PROFILE IBSGL_GPU
export OMP_NUM_THREADS=1
# Without accounting there is no sacct; a loopback's queue can be asked more often than every 40 s.
ON_LOOPBACK=(--slurm-status-command squeue --slurm-init-seconds-before-status-checks 3)
ON_SLURM=(snakemake "${TARGETS[@]}" --workflow-profile profiles/slurm --configfile minimal.yaml "${ON_LOOPBACK[@]}")
# job <rule and wildcards> [<state>]: the ids of such jobs; the plugin writes rule and wildcards into the comment.
job() { squeue --noheader --states="${2:-all}" --format='%A %k' | awk -v what="rule_$1" '$2 == what {print $1}'; }
running() { squeue --noheader --states=RUNNING,COMPLETING --format='%A'; }

# ------------------------------------------------------------------------------------------------------------------- SLURM
cd "$WORK/slurm"
say "SLURM run: started"
"${ON_SLURM[@]}" >"$WORK/first.txt" 2>&1 &
RUN=$!
wait_for 1800 "checkpoint of guided training" test -e results/minimal/resnet/guided.checkpoint
first=$(job guide_wildcards_resnet_guided RUNNING)
[ -n "$first" ] || fail "guided training is not running: $(job guide_wildcards_resnet_guided)"
scancel "$first"
say "guided training (job $first) cancelled after its first epochs; $(squeue --noheader --states=all --jobs="$first" --format='%T, asked for %m and %l')"
again() { job guide_wildcards_resnet_guided PENDING,RUNNING | grep -vx "$first"; }
wait_for 600 "second attempt" again
second=$(again)
say "second attempt (job $second): $(squeue --noheader --jobs="$second" --format='%T, asks for %m and %l')"
[ "$(squeue --noheader --jobs="$second" --format=%m)" = 32000M ] || fail "the second attempt does not ask for twice the memory"

scontrol update NodeName="$HOST" State=DRAIN Reason=maintenance
say "node drained: $(sinfo --noheader --format='%T (%E)')"
drained() { [ -z "$(running)" ] && squeue --noheader --states=PENDING --format=%A | grep -q .; }
wait_for 600 "empty node with jobs waiting" drained
sleep 10
drained || fail "a job was started on a drained node"
kill -0 "$RUN" || fail "Snakemake gave up on a drained node"
say "nothing runs, waiting: $(squeue --noheader --states=PENDING --format='%A %k (%r);' | tr '\n' ' ')"

kill -KILL "$RUN"
wait "$RUN" 2>/dev/null || true
RUN=
waiting=$(squeue --noheader --states=PENDING --format=%A | tr '\n' ' ')
say "Snakemake killed, its jobs left in the queue: $waiting"
ls results/minimal/tables/*.csv >/dev/null 2>&1 && fail "there are tables already: nothing is left to show"

say "SLURM run: restarted"
"${ON_SLURM[@]}" >"$WORK/second.txt" 2>&1 &
RUN=$!
wait_for 300 "cancellation of what was left" grep "an earlier run left" "$WORK/second.txt"
say "$(grep 'an earlier run left' "$WORK/second.txt")"
for id in $waiting; do
  grep -q "an earlier run left.*\b$id\b" "$WORK/second.txt" || fail "job $id of the killed run was not cancelled"
done
scontrol update NodeName="$HOST" State=RESUME
say "node resumed: $(sinfo --noheader --format=%T)"
wait "$RUN" || {
  tail -30 "$WORK/second.txt"
  fail "restarted run"
}
RUN=
say "SLURM run: done"

# ------------------------------------------------------------------------------------------------------------------- local
say "local run"
(cd "$WORK/local" && snakemake "${TARGETS[@]}" --configfile minimal.yaml) >"$WORK/local.txt" 2>&1 || {
  tail -30 "$WORK/local.txt"
  fail "local run"
}
say "local run: done, $(grep -c '^localrule\|^rule' "$WORK/local.txt") jobs"

# ------------------------------------------------------------------------------------------------------------------ checks
echo "jobs:"
squeue --states=all --sort=i --format='%.6A %.10T %.8M %.8m %.8l  %k'
made=0
while read -r file; do
  cmp "$WORK/local/results/minimal/$file" "results/minimal/$file" || fail "$file differs"
  made=$((made + 1))
done < <(cd "$WORK/local/results/minimal" && find . -maxdepth 2 -name '*.csv' -o -name '*.md' -o -name '*.tex' | sort)
[ "$made" -ge 3 ] || fail "only $made tables"
say "$made tables are byte-identical to the local run's"

"${ON_SLURM[@]}" --dry-run >"$WORK/third.txt" 2>&1
grep -q "Nothing to be done" "$WORK/third.txt" || fail "something is left to be done"
# One follower for each call of Snakemake: the jobs, in which Snakemake is called again, start none.
python - <<'PYTHON' || fail "MLflow"
from mlflow import MlflowClient

client = MlflowClient("sqlite:///mlflow.db")
runs = client.search_runs([client.get_experiment_by_name("minimal").experiment_id])
kinds = [(run.data.tags["kind"], run.info.status) for run in runs]
calls = sorted(status for kind, status in kinds if kind == "invocation")
print(f"MLflow: {len(kinds)} runs, calls: {calls}")
assert calls == ["FINISHED", "KILLED"], calls
PYTHON
say "nothing left to do; one MLflow parent run for each of the two calls"

# --------------------------------------------------------------------------------------------------------------------- GPU
mkdir "$WORK/gpu"
cd "$WORK/gpu"
cat >Snakefile <<'SMK'
rule all:
    default_target: True
    input: expand("{n}.txt", n=(1, 2))

rule card:
    output: "{n}.txt"
    resources: gpu=1
    shell: "echo card $CUDA_VISIBLE_DEVICES from $(date +%s) > {output}; sleep 20; date +%s >> {output}"
SMK
snakemake --workflow-profile "$REPOSITORY/profiles/slurm" "${ON_LOOPBACK[@]}" >"$WORK/gpu.txt" 2>&1 || {
  tail -30 "$WORK/gpu.txt"
  fail "jobs with a GPU"
}
say "two jobs with gpu=1: $(cat 1.txt 2.txt | tr '\n' ' ')"
[ "$(awk '/card/ {print $2}' 1.txt 2.txt | sort | tr '\n' ' ')" = "0 1 " ] || fail "the jobs did not get a card each"

say "PASSED"

#!/usr/bin/env bash
# Trains on Cloud TPU: a queued resource of one slice or of several, the code on every worker, one command.
# Run it again to look on, and after a preemption: training goes on from its last checkpoint.
#
#   experiments/tpu/launch.sh --name=retro172m --tpu=v5litepod-16 --zone=us-west4-a --bucket=BUCKET -- \
#       --config=experiments/retro.py:172m --workdir=/mnt/BUCKET/172m
#
# --slices=2 several slices (set mesh.replica to a multiple of it); --spot or --reserved; --version=RUNTIME
# (by default the one that Google names for the chip); --dry-run prints the commands. BUCKET has a hierarchical namespace (folders are renamed in one step); the
# machines need gcsfuse. Give them back: gcloud compute tpus queued-resources delete NAME --force.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit 0; fi
cd "$(dirname "$0")/../.."

name='' tpu='' zone='' bucket='' slices=1 kind='' version='' run=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --name=* | --tpu=* | --zone=* | --bucket=* | --slices=* | --version=*)
      field=${1%%=*} && printf -v "${field#--}" %s "${1#*=}" ;;
    --spot | --reserved) kind=$1 ;;
    --dry-run) run=show ;;
    *) echo "launch.sh: not understood: $1 (see the top of this file)" >&2 && exit 2 ;;
  esac
  shift
done
[[ $# -gt 1 && $name && $tpu && $zone && $bucket ]] || {
  echo "launch.sh: --name, --tpu, --zone, --bucket, and after -- the flags of retro train" >&2 && exit 2
}
shift
case $tpu in
  v4*) : "${version:=tpu-ubuntu2204-base}" ;;
  v5p*) : "${version:=v2-alpha-tpuv5}" ;;
  v6e*) : "${version:=v2-alpha-tpuv6e}" ;;
  *) : "${version:=v2-alpha-tpuv5-lite}" ;;
esac
show() { printf '%s\n' "$(printf '%q ' "$@")"; }

nodes=(--node-id="$name") && names=("$name")
if [[ $slices -gt 1 ]]; then
  nodes=(--node-count="$slices" --node-prefix="$name") && names=()
  for ((i = 0; i < slices; i++)); do names+=("$name-$i"); done
fi
state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' \
    2>/dev/null || echo NONE
}
if [[ ! $run && $(state) =~ SUSPEND|FAILED ]]; then # it was preempted
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
fi
if [[ $run || $(state) == NONE ]]; then
  $run gcloud compute tpus queued-resources create "$name" --zone="$zone" "${nodes[@]}" \
    --accelerator-type="$tpu" --runtime-version="$version" ${kind:+"$kind"}
fi
until [[ $run || $(state) == ACTIVE ]]; do sleep 30; done

# One archive of the committed files; the bucket is a folder on every worker; one process a worker.
$run git archive --format=tar.gz --output=/tmp/retro_jax.tar.gz HEAD
setup="mkdir -p ~/retro_jax && tar xzf /tmp/retro_jax.tar.gz -C ~/retro_jax && cd ~/retro_jax \
 && python3 -m pip install -q --user uv && python3 -m uv venv -q --allow-existing --python 3.11 \
 && python3 -m uv pip install -q -e '.[tpu]' && sudo mkdir -p /mnt/$bucket && sudo chown \$USER /mnt/$bucket \
 && (mountpoint -q /mnt/$bucket || gcsfuse --implicit-dirs $bucket /mnt/$bucket)"
# It outlives the connection; who connects again sees the log of the run that is under way.
train="cd ~/retro_jax && kill -0 \$(cat ~/train.pid) 2>/dev/null || (nohup .venv/bin/python -m retro_jax.cli train \
 --distributed $(printf '%q ' "$@") >~/train.log 2>&1 </dev/null & echo \$! >~/train.pid) \
 ; tail -n +1 -F --pid=\$(cat ~/train.pid) ~/train.log"
for node in "${names[@]}"; do
  $run gcloud compute tpus tpu-vm scp /tmp/retro_jax.tar.gz "$node:/tmp/" --worker=all --zone="$zone"
  $run gcloud compute tpus tpu-vm ssh "$node" --worker=all --zone="$zone" --command="$setup"
done
pids=()
for node in "${names[@]}"; do
  $run gcloud compute tpus tpu-vm ssh "$node" --worker=all --zone="$zone" --command="$train" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done

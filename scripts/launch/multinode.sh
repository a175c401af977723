#!/usr/bin/env bash
# One node's part of a run: start it on every node with the same arguments. On two machines with 8 GPUs each:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/launch/multinode.sh yamls/pythia-410m/rewarm.yaml [key=value]...
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 scripts/launch/multinode.sh yamls/pythia-410m/rewarm.yaml [key=value]...
#
# Alone on a machine it needs no variable. rewarm must be installed, or be in this checkout's .venv. The other recipes here start it
# with what their scheduler knows.
#
# Change  NODES (1)           nodes at hand
#         NODE_RANK (0)       which of them this is; 0 writes the checkpoints, so give it the disk
#         MASTER_ADDR         node 0's address. The nodes' ports must be open to each other, not only MASTER_PORT (29500)
#         GPUS_PER_NODE       what nvidia-smi counts; without a GPU, 1 rank on the CPU
#
# It uses as many whole nodes as divide the batch (`rewarm ranks`), the same ones on every node; a node too many leaves with 0.
# The run folder must be one for all nodes: a shared disk or a bucket.
#
# When a node vanishes, the others notice, leave with 75, and whoever supervises them starts all again; nothing here waits for a node
# for ever, but nothing replaces it either: NODES is what the supervisor says. On bare machines put scripts/launch/loop.sh before it on
# each node, and to go on with fewer nodes, start it with a smaller NODES. Slurm does that by itself: scripts/launch/slurm.sbatch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ ! -x "$root/.venv/bin/composer" ] || PATH=$root/.venv/bin:$PATH

[ $# -ge 1 ] || {
    echo "usage: [NODES=N NODE_RANK=I MASTER_ADDR=HOST] $0 RUN.yaml [KEY=VALUE]..." >&2
    exit 2
}
nodes=${NODES:-1} node=${NODE_RANK:-0}
gpus=${GPUS_PER_NODE:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)}
[ "$gpus" -gt 0 ] || gpus=1

whole=1 # a single node may use some of its GPUs, several are used whole
[ "$nodes" -eq 1 ] || {
    whole=$gpus
    : "${MASTER_ADDR:?write the address of node 0}"
}
ranks=$(rewarm ranks "$@" --available $((nodes * gpus)) --gpus-per-node "$whole")
here=$((ranks < gpus ? ranks : gpus))
if [ $((node * here)) -ge "$ranks" ]; then
    echo "multinode.sh: node $node is not needed: the batch divides among the $ranks ranks before it" >&2
    exit 0
fi
exec composer --nproc "$here" --world_size "$ranks" --node_rank "$node" --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${MASTER_PORT:-29500}" -m rewarm train "$@"

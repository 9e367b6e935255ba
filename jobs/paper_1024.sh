#!/usr/bin/env bash
# The paper's run: ResNet-50, 90 epochs, 1024 workers of 32 images on 128 nodes of 8 GPUs. 15 minutes on the
# paper's P100 cluster, 74.9 % top-1. Run it on the first node of an allocation, or through paper_1024.slurm
# or paper_1024.pbs; started again, it continues from its newest checkpoint. Further arguments go to
# train_imagenet.py. --dry-run prints the command.

# Paths of your site.
TRAIN=${TRAIN:-/data/imagenet/train}     # <class>/*.JPEG; on a node-local disk if the shared one is slow
VAL=${VAL:-/data/imagenet/val}           # <class>/*.JPEG, 50 of each class
OUT=${OUT:-result/paper_1024}            # seen by the first rank and from here; log, checkpoints, weights
HOSTFILE=${HOSTFILE:-}                   # one node per line; empty: the scheduler tells mpirun
JOBS=$(dirname "${BASH_SOURCE[0]}")

NODES=128
export RANKS_PER_NODE=8

# NCCL: the gradients' all-reduce, 51 MB in half precision per iteration.
# Adapters whose name starts so: every Mellanox one, and never a slower Ethernet port.
export NCCL_IB_HCA=${NCCL_IB_HCA:-mlx}
# NCCL processes find each other over any IP interface but these, which every node has to itself.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-^lo,docker}
# 4.096 us * 2^22 = 17 s per try: among 1024 ranks a late one is not a dead one.
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
# A failure names its cause; INFO shows the rings and the adapters in use.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# GPUDirect RDMA (NCCL_NET_GDR_LEVEL) and ring or tree (NCCL_ALGO) are left to NCCL, which looks at the
# machine.

# CuPy compiles its kernels once and keeps them in the user's home directory. If that is slow for 1024 ranks, give
# a local directory that nobody else can make or write, since what lies there is run: never a fixed name in /tmp.
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$HOME/.cupy/kernel_cache}

# InfiniBand registers (locks) memory; a limit shows up as an obscure failure inside NCCL or UCX.
ulimit -l unlimited 2>/dev/null || echo "paper_1024: locked memory is limited to $(ulimit -l) kB" >&2

MPI=(
    ${HOSTFILE:+--hostfile "$HOSTFILE"}
    --map-by "ppr:$RANKS_PER_NODE:node"  # eight ranks on every node: the rank within the node chooses the GPU
    --mca pml ucx                        # MPI over InfiniBand or an error, never silently over TCP
)

TRAINING=(
    "$TRAIN" "$VAL"
    --out "$OUT"
    --recipe paper                       # every hyperparameter as published
    --batchsize 32
    --communicator pure_nccl
    --allreduce-grad-dtype float16
    --loaderjob 2                        # 8 ranks x 2 = the 16 cores of the paper's nodes
    --stall-timeout 300                  # give up, rather than hold 128 nodes, when nothing moves
)

# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$JOBS/launch.sh"
launch "$((NODES * RANKS_PER_NODE))" "${MPI[@]}" -- "${TRAINING[@]}" "$@"

#!/usr/bin/env bash
# TDN-ResNet50 on Something-Something V2, on several machines without a scheduler. Start it on each of them, with the
# first machine's address:
#
#   NODES=2 GPUS=8 HEAD=10.0.0.1 examples/multi_node.sh /data/sthv2 resnet50.pth
#
# A process that dies is started anew, with all others, and the run goes on from its newest checkpoint.
# The data and the output folder must be the same on all machines (a shared file system).
set -euo pipefail

data=${1:?the folder of Something-Something V2}
start=${2:?the ResNet-50 weights that training starts from}

torchrun \
    --nnodes "${NODES:?how many machines}" \
    --nproc-per-node "${GPUS:?GPUs of this machine}" \
    --max-restarts 3 \
    --rdzv-id tdn-sthv2 \
    --rdzv-backend c10d \
    --rdzv-endpoint "${HEAD:?the first machine}:29500" \
    -m tdn_bench.train sthv2 --data "$data" --init "$start" --output runs/sthv2 --batch-size 128 \
    --resume auto

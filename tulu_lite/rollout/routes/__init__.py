"""The ways of weights from a trainer to a server: files in shared memory, NCCL between GPUs, CUDA IPC on one GPU."""

"""The arguments that both of PyTorch's programs take, and what they set."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def add_arguments(parser):
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--attention", choices=ATTENTION, help="the kernel on a card; PyTorch's choice without it")


def apply(args):
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.attention:
        # For as long as the program runs.
        sdpa_kernel(ATTENTION[args.attention]).__enter__()
    torch.manual_seed(0)

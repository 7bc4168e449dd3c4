"""Stand-in: the names that mosaicml-streaming imports for image data sets, which nothing here reads.

A CPU build of torchvision is not to be had everywhere, and a CUDA build does not load beside a CPU build of torch.
"""

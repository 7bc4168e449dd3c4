"""Ours beside the peers: each module runs all candidates interleaved in one process group and prints ratios.

timing.py measures, peers.py holds the plain-torch and Hugging Face competitors, step.py and parallel.py compare
training steps, data.py the loader; run.py does all of them on CPU, gpu.py measures whole models on CUDA.
"""

"""Operations that are computed in one pass over memory: a file for each, with its plain form beside the fused ones.

choice.py says which form computes; triton/ holds the kernels, and is imported only where triton is asked for.
"""

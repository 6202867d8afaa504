"""From and to the dumps of other engines. Load matrices (OLMoE, EPLB) are in trace/counts.py.

vllm.py     routed experts that vLLM returns with a completion: .npy, .json, .jsonl
sglang.py   files of SGLang's expert distribution recorder, read without unpickling
arrays.py   .npz with an array of ids, of weights and of sequence lengths for each domain
"""

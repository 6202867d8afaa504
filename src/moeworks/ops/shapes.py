"""The legend of dimension letters. Locals, arguments and returns in ops/ and layers/ end in them.

    B  batch (sequences)              E  experts (in Routing: all routes, zero-computation ones too)
    L  sequence length                e  experts on this rank
    T  tokens = B * L                 K  top_k, experts per token
    D  d_model                        C  capacity of an expert
    V  vocabulary                     N  assignments = T * K
    H  query heads                    R  rows after an exchange; rows of a batch that need a mask
    G  key/value heads                F  hidden width of an expert; d_ff of a dense block
    P  width of one head              M  domains of a corpus
    S  keys: L and those before it    l  MoE layers                   d  devices
    U  bandits of a router            r  rounds of a bandit's step

`x_TD` is a tensor of shape [T, D]. Parameter names, config fields and file formats carry no suffixes.
"""

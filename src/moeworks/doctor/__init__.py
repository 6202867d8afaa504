"""Looking at any MoE model, ours or one of transformers: recorders, and invariants that must hold."""

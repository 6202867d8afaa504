"""Looking at any MoE model, ours or one of transformers: recorders, and invariants that must hold."""

from moeworks.doctor.hf_recorder import RoutedPass, TransformersRecorder
from moeworks.doctor.hf_trace import record_transformers

__all__ = ["RoutedPass", "TransformersRecorder", "record_transformers"]

"""Hardware arithmetic on counts: what a model's config says about memory, devices, speed, time and money.

    formats.py   how weights are stored, with the scales of blocks
    layers.py    the mixers of a model
    weights.py   every matrix with its shape, and the bytes of all weights
    cache.py     key/value caches
    compute.py   FLOPs of causal prompts
    routing.py   experts that a batch touches, devices that a token visits, bytes between devices
    devices.py   the table of devices, with sources
    memory.py    who holds what, and how many devices that takes
    decode.py    decode speed by the roofline
    figures.py   a model's figures without hardware      -> ModelFigures
    serving.py   all of it for one way of serving        -> ServingPlan
    training.py  time, memory and money of training      -> TrainingPlan
    verdicts.py  what dominates, in sentences
    units.py     `80GB`, `15T`, `20B-params`

Needs neither torch nor weights, and knows no families: a ModelConfig comes in, records of numbers come out.
"""

from moeworks.plan.devices import DEVICES, Device, device_named
from moeworks.plan.figures import ModelFigures, model_figures
from moeworks.plan.formats import FORMATS, WeightFormat, weight_format
from moeworks.plan.memory import devices_for_parameters
from moeworks.plan.routing import expected_devices, expected_experts_touched, expert_traffic
from moeworks.plan.serving import ServingPlan, ServingRequest, plan_serving
from moeworks.plan.training import TrainingPlan, plan_training
from moeworks.plan.weights import weight_bytes

__all__ = [
    "DEVICES",
    "FORMATS",
    "Device",
    "ModelFigures",
    "ServingPlan",
    "ServingRequest",
    "TrainingPlan",
    "WeightFormat",
    "device_named",
    "devices_for_parameters",
    "expected_devices",
    "expected_experts_touched",
    "expert_traffic",
    "model_figures",
    "plan_serving",
    "plan_training",
    "weight_bytes",
    "weight_format",
]

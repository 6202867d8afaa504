"""The labs, a file each: nothing but claims, arms and judgements."""

from moeworks.labs.experiments import (
    balance,
    capacity,
    dense,
    fine_grained,
    layers,
    routers,
    score,
    shared,
    specialisation,
    stability,
    top_k,
)
from moeworks.labs.lab import Lab

LABS: dict[str, Lab] = {
    module.LAB.name: module.LAB
    for module in (
        dense,
        balance,
        routers,
        top_k,
        fine_grained,
        shared,
        score,
        capacity,
        layers,
        specialisation,
        stability,
    )
}
"""Every lab by name, in the order in which they build on each other."""

"""Experts on devices: replicas, their places, and how evenly the devices then work.

The algorithm is that of EPLB (DeepSeek 2025, github.com/deepseek-ai/EPLB, README): replicate the experts
with the most load per replica; pack the replicas, heaviest first, onto the device with the least load that
has room. Hierarchically, groups of experts are first packed onto nodes, so that group-limited routing stays
inside a node.
"""

from dataclasses import dataclass

import numpy as np

from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.counts import count_groups
from moeworks.trace.expected import check_devices


@dataclass(frozen=True, eq=False)
class Placement:
    """Equal numbers of slots on every device; device d has the d-th run of them."""

    num_devices: int
    expert_of_slot: np.ndarray
    """int64 [l, slots]: the expert that each slot holds."""

    def shares(self, num_experts: int) -> np.ndarray:
        """float [l, E, devices]: what part of an expert's tokens each device gets; replicas share."""
        layers, slots = self.expert_of_slot.shape
        share = np.zeros((layers, num_experts, self.num_devices))
        device = np.arange(slots) // (slots // self.num_devices)
        for layer in range(layers):
            np.add.at(share[layer], (self.expert_of_slot[layer], device), 1)
        return share / np.maximum(share.sum(axis=2, keepdims=True), 1)


def contiguous(num_layers: int, num_experts: int, num_devices: int) -> Placement:
    """No replicas, experts in order: what is done without a balancer."""
    check_devices(num_experts, num_devices)
    return Placement(num_devices, np.tile(np.arange(num_experts), (num_layers, 1)))


def eplb(
    load: np.ndarray, num_slots: int, num_devices: int, *, num_nodes: int = 1, num_groups: int = 1
) -> Placement:
    """EPLB's placement for load [l, E].

    It is hierarchical when `num_nodes` divides `num_groups`, else global, as there. Ties go to lower numbers.
    Raises ConfigError when slots, devices, nodes and groups do not divide each other, and for too few slots.
    """
    layers, experts = load.shape
    if num_groups % num_nodes != 0:
        num_nodes = num_groups = 1
    check(experts % num_groups == 0, "num_groups", num_groups, f"must divide {experts} experts")
    check(
        num_devices % num_nodes == 0, "num_devices", num_devices, f"must be a multiple of {num_nodes} nodes"
    )
    check(num_slots >= experts, "num_slots", num_slots, f"must be at least the number of experts, {experts}")
    check(
        num_slots % num_devices == 0, "num_slots", num_slots, f"must be a multiple of {num_devices} devices"
    )
    slots = np.zeros((layers, num_slots), np.int64)
    for layer in range(layers):
        row = load[layer].astype(np.float64)
        groups = np.arange(experts).reshape(num_groups, -1)
        nodes = pack(row[groups].sum(axis=1), num_nodes)
        per_node = num_slots // num_nodes
        for node, members in enumerate(nodes):
            mine = groups[members].reshape(-1)
            replicas = mine[replicate(row[mine], per_node)]
            each = row[replicas] / np.bincount(replicas, minlength=experts)[replicas]
            packs = pack(each, num_devices // num_nodes)
            slots[layer, node * per_node : (node + 1) * per_node] = replicas[np.concatenate(packs)]
    return Placement(num_devices, slots)


def replicate(load: np.ndarray, num_slots: int) -> np.ndarray:
    """int64 [slots]: each expert once, then again and again the one with the most load per replica."""
    count = np.ones(len(load))
    slots = list(range(len(load)))
    for _ in range(num_slots - len(load)):
        heaviest = int(np.argmax(load / count))
        slots.append(heaviest)
        count[heaviest] += 1
    return np.array(slots)


def pack(weights: np.ndarray, packs: int) -> list[np.ndarray]:
    """Items to packs of equal size: heaviest first, each to the lightest pack that has room."""
    check(len(weights) % packs == 0, "packs", packs, f"must divide {len(weights)} items")
    size = len(weights) // packs
    total = np.zeros(packs)
    members: list[list[int]] = [[] for _ in range(packs)]
    for item in np.argsort(-weights, kind="stable"):
        room = [len(part) < size for part in members]
        lightest = int(np.argmin(np.where(room, total, np.inf)))
        members[lightest].append(int(item))
        total[lightest] += weights[item]
    return [np.array(part) for part in members]


def refine(placement: Placement, load: np.ndarray, *, rounds: int = 100) -> Placement:
    """Swap slots between the busiest device and another while that lowers the busier of the two.

    Greedy packing leaves such swaps; the result is never worse. `load` [l, E] is the one to balance.
    """
    slots = placement.expert_of_slot.copy()
    for layer in range(len(slots)):
        replicas = np.bincount(slots[layer], minlength=load.shape[1])
        for _ in range(rounds):
            grid = slots[layer].reshape(placement.num_devices, -1)
            weight = (load[layer] / np.maximum(replicas, 1))[grid]
            total = weight.sum(axis=1)
            worst = int(total.argmax())
            gain = (
                weight[worst][:, None, None] - weight[None]
            )  # what the worst gives away, [mine, device, slot]
            after = np.maximum(total[worst] - gain, total[None, :, None] + gain)
            after[:, worst] = np.inf
            mine, other, slot = np.unravel_index(int(after.argmin()), after.shape)
            if after[mine, other, slot] >= total[worst] * (1 - 1e-12):
                break
            grid[worst, mine], grid[other, slot] = grid[other, slot], grid[worst, mine]
    return Placement(placement.num_devices, slots)


@dataclass(frozen=True, eq=False)
class DeviceLoadTable:
    """How evenly devices work in batches of consecutive tokens."""

    layers: tuple[int, ...]
    batch_tokens: int
    imbalance: np.ndarray
    """float [l, batches]: max over mean load of the devices; 1 is balanced, and what a layer's time grows
    by."""

    @property
    def mean(self) -> np.ndarray:
        """float [l]: over batches."""
        return self.imbalance.mean(axis=1)


def device_load(trace: RoutingTrace, placement: Placement, batch_tokens: int) -> DeviceLoadTable:
    """Max over mean device load over time, an unfinished last batch left out.

    Raises ConfigError for a placement of another number of layers, and when there is no whole batch.
    """
    header = trace.header
    found = len(placement.expert_of_slot)
    check(found == len(header.layers), "placement", found, f"must have {len(header.layers)} layers")
    batches = trace.num_tokens // batch_tokens if batch_tokens >= 1 else 0
    check(batches >= 1, "batch_tokens", batch_tokens, f"must lie between 1 and {trace.num_tokens}")
    batch = np.arange(batches * batch_tokens) // batch_tokens
    shares = placement.shares(header.num_experts)
    imbalance = np.zeros((len(header.layers), batches))
    for place, layer in enumerate(header.layers):
        counts = count_groups(trace.ids(layer)[: len(batch)], batch, batches, header.num_experts)
        load = counts @ shares[place]
        imbalance[place] = load.max(axis=1) / load.mean(axis=1)
    return DeviceLoadTable(header.layers, batch_tokens, imbalance)

"""A layer's own decision with its experts replaced by recorded ones."""

from dataclasses import replace

from moeworks.config.model import CapacityConfig
from moeworks.layers.router import RouterModule
from moeworks.ops.dispatch import apply_capacity
from moeworks.ops.replay import Replay, replayed_ids
from moeworks.ops.routing import Routing


def replayed(
    router: RouterModule, routing: Routing, replay: Replay, capacity: CapacityConfig, *, training: bool
) -> Routing:
    """`routing`, which `router` has just made, with the experts of a single layer's `replay`.

    Scores stay those of this pass; losses, loads and statistics count the forced experts. Raises
    ConfigError if the record does not fit.
    """
    ids_TK, variable = replayed_ids(replay, routing)
    (record,) = replay.routings
    if replay.weights == "recomputed":
        routing = router.replayed(routing, ids_TK, variable=variable)
    else:
        assert isinstance(record, Routing)
        weights_TK = record.routing_weights_TK.detach().to(routing.routing_weights_TK)
        routing = replace(routing, expert_ids_TK=ids_TK, routing_weights_TK=weights_TK, variable=variable)
    # Losses must not count the router's own choice, which was replaced.
    routing = replace(routing, ranked=False, unbiased_ids_TK=None)
    if not isinstance(record, Routing):
        return apply_capacity(routing, capacity, training=training)
    routing = apply_capacity(routing, CapacityConfig(), training=training)
    if record.kept_TK is not None:
        kept_TK = record.kept_TK.to(ids_TK.device)
        routing = replace(routing, kept_TK=kept_TK if routing.kept_TK is None else kept_TK & routing.kept_TK)
    if record.unbiased_ids_TK is not None:
        routing = replace(routing, unbiased_ids_TK=record.unbiased_ids_TK.to(ids_TK.device))
    return routing

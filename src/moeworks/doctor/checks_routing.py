"""The choice of experts and its weights."""

import torch
from torch import Tensor

from moeworks.doctor import definitions
from moeworks.doctor.probes import TOLERANCE, backward, gap, norm, probe, seeded, seeded_output
from moeworks.doctor.subject import Inputs, Subject, Unavailable
from moeworks.doctor.verdict import Outcome, invariant, judge
from moeworks.ops.routing import Routing

ALIVE = 1e-6
"""Of the experts' gradient; weights that are always 1 leave rounding errors of 1e-8."""


@invariant("router-gradient", "router learns from the task", 1, 26)
def router_gradient(subject: Subject) -> Outcome:
    """The task's loss reaches every router. With one expert per token and weights divided by their sum (or a
    softmax taken after the choice) each weight is 1 whatever the router says, and a detached weight has no
    gradient at all: the router then learns from the balance loss alone or not at all. Measured: the norm of
    each router's gradient of a random function of the output, as a share of its experts'."""
    model = subject.model().train()
    seen = seeded(subject, model, subject.inputs(4))
    if seen.routings[0].num_experts == 1:
        raise Unavailable("there is one expert, so that nothing is chosen")
    backward(model, probe(seen.output))
    shares = []
    for block in subject.blocks(model):
        if not block.router:
            raise Unavailable(f"{block.path}: no parameters of a router found")
        experts = norm([t.gradient(e) for t in block.experts for e in range(block.num_experts)])
        shares.append(norm([p.grad for p in block.router]) / max(experts, 1e-30))
    worst = min(shares)
    return judge(worst > ALIVE, f"router's gradient is {worst:.1e} of its experts' (smallest of the layers)")


@invariant("selection", "chooses the top k", 3, 4, 7, 32, top_k_only=True)
def selection(subject: Subject) -> Outcome:
    """Each token goes to k different experts: those with the highest score plus selection bias, in the best
    groups where routing is limited to groups (a group counts by its best expert in DeepSeek-V2, by the sum of
    its two best in V3). Measured: the share of tokens whose experts differ from a slow computation from the
    recorded logits."""
    model = subject.model()
    blocks, routings = subject.blocks(model), seeded(subject, model, subject.inputs(8)).routings
    wrong = tokens = 0
    for block, routing in zip(blocks, routings, strict=True):
        if block.by_table:
            continue
        choice_TE = _choice(subject, routing, block.selection_bias)
        wanted_TK = definitions.selection(choice_TE, routing.top_k, subject.claims)
        found_TK = routing.expert_ids_TK.sort(1).values
        wrong += int((found_TK != wanted_TK).any(1).sum())
        tokens += len(found_TK)
    claimed = subject.claims.top_k
    if claimed is not None and any(r.top_k != claimed for r in routings):
        return judge(False, f"{routings[0].top_k} experts a token, {claimed} claimed")
    if not tokens:
        raise Unavailable("its experts are chosen by token ids")
    return judge(wrong <= 0.01 * tokens, f"{wrong} of {tokens} choices differ from the definition")


def _choice(subject: Subject, routing: Routing, bias: Tensor | None) -> Tensor:
    if subject.claims.chooses_by == "logits":
        values_TE = routing.router_logits_TE.detach()
    else:
        values_TE = routing.router_probs_TE.detach()
    return values_TE if bias is None else values_TE + bias.detach().reshape(1, -1).to(values_TE)


@invariant("weights", "weights as configured", 2, 7, top_k_only=True)
def weights(subject: Subject) -> Outcome:
    """The weight of each chosen expert is its own score (softmax, sigmoid, ...), divided by the sum of the
    chosen where the config says so, times the configured scale, and nothing else. Measured: the largest
    relative difference to that."""
    claims = subject.claims
    if claims.score is None or claims.renormalize is None:
        raise Unavailable("its config does not say how weights come from scores")
    model = subject.model()
    gaps = []
    for routing in seeded(subject, model, subject.inputs(4)).routings:
        wanted = definitions.weights(routing.router_logits_TE.detach(), routing.expert_ids_TK, claims)
        gaps.append(gap(routing.routing_weights_TK.double(), wanted))
    words = f"{claims.score}{', renormalised' if claims.renormalize else ''}, scale {claims.scale or 1:g}"
    return judge(max(gaps) < 1e-3, f"largest relative difference to {words}: {max(gaps):.1e}")


@invariant("ties", "ties broken the same way", 8, every_expert=True)
def ties(subject: Subject) -> Outcome:
    """Equal scores are broken the same way for every token and batch size. Where top-k leaves that open, a
    recomputation in the backward pass, another rank or another engine chooses other experts. Measured: all
    routers are set to 0 (and their biases), so that all scores are equal, and the tokens whose experts differ
    from the first token's are counted, in two batch sizes."""
    model = subject.model()
    for block in subject.blocks(model):
        if not block.router:
            raise Unavailable(f"{block.path}: no parameters of a router found")
        for tensor in (*block.router, *([] if block.selection_bias is None else [block.selection_bias])):
            with torch.no_grad():
                tensor.zero_()
    wrong = tokens = 0
    first: Tensor | None = None
    for rows in (1, 9):
        routings = seeded(subject, model, subject.inputs(rows)).routings
        for block, routing in zip(subject.blocks(model), routings, strict=True):
            if block.by_table:
                continue
            if routing.router_logits_TE.std() > 1e-6:
                raise Unavailable("its router's scores do not come from these parameters alone")
            ids_TK = routing.expert_ids_TK.sort(1).values
            first = ids_TK[0] if first is None else first
            wrong += int((ids_TK != first).any(1).sum())
            tokens += len(ids_TK)
    if first is None:
        raise Unavailable("its experts are chosen by token ids")
    return judge(wrong == 0, f"{wrong} of {tokens} equal tokens differ; ties go to {first.tolist()}")


@invariant("router-float32", "router in float32", 6)
def router_float32(subject: Subject) -> Outcome:
    """The router computes in float32 also where the model is bfloat16: it costs next to nothing, and in
    bfloat16 close experts tie and swap. Measured: the share of a bfloat16 model's router logits that are
    exact bfloat16 numbers, about 1 in 250 of float32 results."""
    model = subject.model().bfloat16()
    routings = seeded(subject, model, subject.inputs(4)).routings
    logits = torch.cat([r.router_logits_TE.detach().flatten() for r in routings])
    share = (logits == logits.bfloat16().to(logits.dtype)).double().mean().item()
    return judge(share < 0.5, f"{share:.1%} of the logits of the model in bfloat16 are bfloat16 numbers")


@invariant("dtype", "keeps the dtype", 6)
def dtype(subject: Subject) -> Outcome:
    """A bfloat16 model returns bfloat16, in training too: jitter or float32 routing weights that leak into
    the result upcast all that follows, which costs memory and time. Measured: dtypes of the outputs."""
    model = subject.model().bfloat16()
    found = [seeded_output(subject, mode, subject.inputs()).dtype for mode in (model.eval(), model.train())]
    words = ", ".join(str(d).removeprefix("torch.") for d in found)
    return judge(all(d == torch.bfloat16 for d in found), f"output in evaluation and training: {words}")


@invariant("underflow", "no NaN from extreme scores", 2)
def underflow(subject: Subject) -> Outcome:
    """Extreme router logits give finite outputs. Sigmoid scores of very negative logits underflow to 0, and
    dividing the chosen by their sum is then 0 / 0. Measured: with router weights times 10,000, and once
    more with their sign turned, the number of outputs that are not finite."""
    broken = total = 0
    for factor in (1e4, -1e4):
        model = subject.model()
        for block in subject.blocks(model):
            for tensor in block.router:
                with torch.no_grad():
                    tensor.mul_(factor)
        _force_one_expert(subject, model)
        output = seeded_output(subject, model, subject.inputs(8))
        broken += int((~output.isfinite()).sum())
        total += output.numel()
    return judge(broken == 0, f"{broken} of {total:,} outputs are not finite")


def _force_one_expert(subject: Subject, model: torch.nn.Module) -> None:
    """A selection bias that makes every token choose the first experts, also where their scores are 0."""
    for block in subject.blocks(model):
        if block.selection_bias is not None:
            flat = block.selection_bias.view(-1)
            with torch.no_grad():
                flat.copy_(torch.linspace(9, 0, flat.numel()))


@invariant("one-token", "a single token works", 31)
def one_token(subject: Subject) -> Outcome:
    """One token alone gives what it gives as the first of a sequence, in evaluation, and training accepts it.
    A capacity that exceeds the number of tokens, or rounds to 0, has crashed or dropped it. Measured: the
    relative difference."""
    model, whole = subject.model(), subject.inputs(2)
    alone = Inputs(whole.values[:1, :1])
    if not subject.claims.causal:
        raise Unavailable("its first position sees the later ones")
    difference = gap(
        seeded_output(subject, model, alone)[:, :1], seeded_output(subject, model, whole)[:1, :1]
    )
    trained = seeded_output(subject, model.train(), alone)
    holds = trained.isfinite().all().item() and (difference < TOLERANCE or subject.claims.drops_in_evaluation)
    return judge(bool(holds), f"relative difference {difference:.1e}")

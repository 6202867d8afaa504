"""The work of `moeworks plan`.

--json prints one object: all of `moeworks info --json` (its `parameters.total` and so on, at this context and
cache type), `note` (null, or a warning), `verdicts` (sentences), and either `serving`, a
moeworks.plan.serving.ServingPlan, or with --tokens `training`, a moeworks.plan.training.TrainingPlan. Bytes,
seconds, FLOPs and counts are plain numbers in these units; the dataclasses' fields explain them.
"""

import math

from moeworks.cli.info import DEFAULT_CONTEXT, headline, info_record
from moeworks.cli.output import console, notes, print_json
from moeworks.cli.plan import PlanRequest
from moeworks.cli.plan_tables import device_list, device_words, serving_tables, training_tables
from moeworks.cli.resolve import Described, resolve
from moeworks.plan.devices import DEVICES
from moeworks.plan.figures import ModelFigures, check_context, model_figures
from moeworks.plan.serving import ServingPlan, plan_serving
from moeworks.plan.training import STATE_BYTES, TrainingPlan, plan_training
from moeworks.plan.verdicts import serving_verdicts, training_verdicts
from moeworks.records import as_record

DEFAULT_SEQ_LEN = 4096
DEFAULT_MFU = 0.4


def run(request: PlanRequest) -> None:
    """Print the plan."""
    assert request.options.model is not None
    described = resolve(request.options.model)
    context = _context(request, described)
    check_context(context)
    figures = model_figures(described.model, context, request.options.kv_dtype)
    if request.tokens is None:
        plan = plan_serving(described.model, request.device, request.serving(context))
        verdicts = serving_verdicts(plan)
    else:
        plan = _training(request, described, context, figures)
        verdicts = training_verdicts(plan)
    note = _note(described, context)
    if request.options.json:
        kind = "serving" if isinstance(plan, ServingPlan) else "training"
        record = info_record(described, figures)
        print_json(record | {"note": note, "verdicts": verdicts, kind: as_record(plan)})
    else:
        _print(request, described, figures, plan, verdicts, note)


def print_list(matching: str, *, as_json: bool) -> None:
    """Print the devices whose names contain `matching`, with the sources of their figures."""
    devices = [device for device in DEVICES.values() if matching in device.name]
    if as_json:
        print_json([as_record(device) for device in devices])
    else:
        console().print(device_list(devices))


def _context(request: PlanRequest, described: Described) -> int:
    if request.options.context is not None:
        return request.options.context
    usual = DEFAULT_CONTEXT if request.tokens is None else DEFAULT_SEQ_LEN
    return min(usual, described.model.max_seq_len)


def _note(described: Described, context: int) -> str | None:
    positions = described.model.max_seq_len
    if context <= positions:
        return None
    return f"{context:,} tokens are more than the {positions:,} positions that the model was made for"


def _training(
    request: PlanRequest, described: Described, context: int, figures: ModelFigures
) -> TrainingPlan:
    options, device = request.options, request.device
    assert request.tokens is not None
    usable = None if device.memory is None else device.memory * request.serving(context).memory_fraction
    state = STATE_BYTES * (figures.parameters.total + figures.parameters.mtp)
    devices = options.gpus
    if devices is None:
        devices = 1 if usable is None else math.ceil(state / usable)
    return plan_training(
        described.model,
        device,
        tokens=request.tokens,
        seq_len=context,
        devices=devices,
        mfu=DEFAULT_MFU if options.mfu is None else options.mfu,
        price_per_hour=options.price,
        usable=usable,
    )


def _print(
    request: PlanRequest,
    described: Described,
    figures: ModelFigures,
    plan: ServingPlan | TrainingPlan,
    verdicts: list[str],
    note: str | None,
) -> None:
    out = console()
    out.print(headline(described, figures))
    out.print(device_words(request.device))
    if note is not None:
        out.print(f"note: {note}", style="yellow")
    tables = (
        serving_tables(described.model, figures, plan)
        if isinstance(plan, ServingPlan)
        else training_tables(plan)
    )
    for table in tables:
        out.print()
        out.print(table)
    out.print("\nWhat dominates", style="bold")
    out.print(notes((("-", sentence) for sentence in verdicts), style=""))

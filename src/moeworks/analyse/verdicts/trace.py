"""All verdicts on a trace: what its numbers say, what they likely mean, and what to do."""

from moeworks.analyse.inspection import Inspection
from moeworks.analyse.verdicts.balance import judge_balance
from moeworks.analyse.verdicts.comparison import judge_comparison
from moeworks.analyse.verdicts.confidence import judge_confidence
from moeworks.analyse.verdicts.domains import judge_domains
from moeworks.analyse.verdicts.pairs import judge_pairs
from moeworks.analyse.verdicts.record import Verdict, in_order
from moeworks.analyse.verdicts.text import judge_text
from moeworks.analyse.verdicts.words import plural, shortened

FEW_DOCUMENTS = 20
"""With fewer documents intervals are wide and null bands rough."""


def judge_trace(inspection: Inspection) -> list[Verdict]:
    """All verdicts on a trace, problems first; those whose columns are missing are left out."""
    return in_order(
        [
            *_findings(inspection),
            *_size(inspection),
            *judge_balance(inspection),
            *judge_confidence(inspection),
            *judge_domains(inspection),
            *judge_text(inspection),
            *judge_pairs(inspection),
            *judge_comparison(inspection),
        ]
    )


def _findings(inspection: Inspection) -> list[Verdict]:
    findings = inspection.findings
    rule = "By the validator (docs/trace-format.md): ids, order, filler, copied and shifted layers, weights."
    if not findings:
        return [Verdict("good", "The recording is sound: the validator found nothing.", rule)]
    parts = [
        ("" if f.layer is None else f"layer {f.layer}: ") + f"{f.message} ({plural(f.count, 'token')})"
        for f in findings
    ]
    advice = "Mend the recording first: the figures below are those of what was recorded, right or wrong."
    return [Verdict("problem", f"{shortened(parts, 3)}.", rule, advice)]


def _size(inspection: Inspection) -> list[Verdict]:
    documents = inspection.documents
    if documents >= FEW_DOCUMENTS:
        return []
    if documents == 1:
        text = "The trace holds 1 document: how much other texts differ is not known."
    else:
        text = (
            f"The trace holds {plural(documents, 'document')} only: what varies between texts is not well"
            " known."
        )
    rule = f"Under {FEW_DOCUMENTS} documents; intervals and null bands rest on whole documents."
    return [Verdict("note", text, rule, "Trace more texts, many short ones rather than a few long ones.")]

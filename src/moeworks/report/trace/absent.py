"""Why a panel cannot be drawn, in one sentence, and how to record what it needs."""

from moeworks.report.trace.subject import Subject


def why_absent(subject: Subject) -> dict[str, str]:
    """Sentences by what is missing; nothing for what is there."""
    inspection = subject.inspection
    fields = inspection.header.fields
    missing = {
        "weights": (
            "weights" not in fields,
            "The trace has no mixing weights: record them with moeworks trace --fields weights …",
        ),
        "entropy": (
            "entropy" not in fields,
            "The trace has no router entropy: record it with moeworks trace --fields entropy …",
        ),
        "margin": (
            "margin" not in fields,
            "The trace has no margins: record them with moeworks trace --fields margin …",
        ),
        "logits": (
            "logits" not in fields,
            "Experts that just missed are not known: record them with moeworks trace --fields logits …",
        ),
        "token ids": (
            inspection.vocabulary is None,
            "The trace has no token ids, so words cannot be told apart: record it with moeworks trace"
            " MODEL --data …, or give the converter a dump that holds them.",
        ),
        "texts": (subject.pieces is None and inspection.vocabulary is not None, _no_texts(subject)),
        "domains": (
            inspection.analysis.domains is None,
            "All texts have one label, so domains cannot be compared: trace texts in several folders or"
            " files, or name the label with moeworks trace --domain-field …",
        ),
        "similarity": (
            inspection.similarity is None,
            "How alike the experts' weights are is not in a trace: add --model with the model's folder.",
        ),
    }
    return {name: sentence for name, (is_missing, sentence) in missing.items() if is_missing}


def _no_texts(subject: Subject) -> str:
    reason = f" ({subject.no_pieces})" if subject.no_pieces else ""
    return (
        "Tokens are shown by their numbers: the trace holds ids, and no tokenizer was found for"
        f" them{reason}. Add --tokenizer with the model's folder or its tokenizer.json."
    )

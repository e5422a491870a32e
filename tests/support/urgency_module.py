"""A module that a YAML file describes."""

URGENCY = """
modules:
  urgency:
    description: How soon does the sender need an answer?
    span: support.triage
    inputs: {text: [triage.text, 'input.value:text'], customer: triage.customer}
    required: [text]
    output: {urgency: triage.urgency}
    labels: {now: work has stopped, later: no haste}
    confidence: triage.confidence
    success: triage.solved
    annotation: urgency_annotation
    scheduled_by_default: false
"""

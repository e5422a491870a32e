"""Decides which kind of content answers a query."""

from autoopt_pipeline import span_contract
from autoopt_pipeline.modules.spec import Label, ModuleSpec

MODALITY = ModuleSpec(
    name="modality",
    description="Which kind of content a query asks for.",
    contract=span_contract.MODALITY,
    outputs=("modality",),
    labels=(
        Label("video", "moving pictures: recordings, clips, footage"),
        Label("image", "still pictures: photos, drawings, charts"),
        Label("audio", "sound: speech, music, calls"),
        Label("document", "files with pages: reports, slides, contracts"),
        Label("text", "plain written answers: notes, messages, facts"),
        Label("mixed", "more than one kind at once"),
    ),
    program="autoopt_pipeline.modules.builtin.programs:modality_program",
)

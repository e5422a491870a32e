"""The stand-in: an offline engine that answers from the demos in its prompt.

It is not a language model, and every place that shows its answers has to say so. It lets the whole loop run without a
key and without a network. It reads the prompt and nothing else: the output fields with their values, the demos, and the
query. More and better demos improve its answers. Instructions do not change them, and it writes no instructions.
"""

import json

from dspy.lm15 import Message, Request, Response, TextPart, Usage

from autoopt_pipeline.lm.stand_in.prompt import read_inputs, wants_json
from autoopt_pipeline.lm.stand_in.voting import answer, read_lesson


class StandInEngine:
    """A DSPy engine (`complete(Request) -> Response`). It has no state, so threads may share it."""

    def complete(self, request: Request) -> Response:
        system = request.system if isinstance(request.system, str) else ""
        turns = [(message.role, message.text or "") for message in request.messages]
        answers = answer(read_lesson(tuple(turns[:-1]), system), read_inputs(turns[-1][1]))
        text = json.dumps(answers) if wants_json(system) else _chat(answers)
        # Roughly four characters make a token of English text.
        tokens_in = (len(system) + sum(len(text) for _, text in turns)) // 4
        usage = Usage(input_tokens=tokens_in, output_tokens=len(text) // 4, total_tokens=tokens_in + len(text) // 4)
        return Response(
            id="stand-in",
            model=request.model,
            message=Message.assistant([TextPart(text)]),
            finish_reason="stop",
            usage=usage,
        )


def _chat(answers: dict[str, str]) -> str:
    return "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in answers.items()) + "[[ ## completed ## ]]"

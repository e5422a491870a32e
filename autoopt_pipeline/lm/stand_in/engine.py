"""The stand-in LM: an offline engine that answers from the demos and the rules in its prompt.

It is no language model and must be called a stand-in wherever it shows. It makes the whole loop run with no
key and no network, and it is honest in the sense that it reads nothing but the prompt: the output fields with
their values, the demos, the rules in the instructions and the query. More and better demos and rules make its
answers better, other instructions do not.
"""

import json

from dspy.lm15 import Message, Request, Response, TextPart, Usage

from autoopt_pipeline.lm.stand_in.prompt import read_inputs, wants_json
from autoopt_pipeline.lm.stand_in.reflection import propose
from autoopt_pipeline.lm.stand_in.voting import answer, read_lesson


class StandInEngine:
    """A DSPy engine (`complete(Request) -> Response`) without state, so threads may share it."""

    def complete(self, request: Request) -> Response:
        system = request.system if isinstance(request.system, str) else ""
        turns = [(message.role, message.text or "") for message in request.messages]
        inputs = read_inputs(turns[-1][1])
        answers = answer(read_lesson(tuple(turns[:-1]), system), inputs)
        answers |= propose(answers.keys(), inputs)
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

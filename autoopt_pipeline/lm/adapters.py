"""DSPy adapter for our answer formats: builds prompts and parses answers."""

import json
import re
import textwrap
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy.adapters.utils import format_field_value, serialize_for_json
from dspy.utils.exceptions import AdapterParseError
from pydantic import TypeAdapter

from autoopt_pipeline.lm.answer_parsing import read_json, read_sections
from autoopt_pipeline.modules.answer_format import CHAT, answer_format
from autoopt_pipeline.modules.named_model import named_model

# Number of prompts whose formatted demos are cached.
_KEPT = 8


class AnswerAdapter(dspy.ChatAdapter):
    """Builds the prompt in the format that the signature carries, and parses answers leniently.

    It caches the formatted demos of the last few prompts: formatting is most of DSPy's own cost per call (57 of 66
    points with 16 demos), and an evaluation sends hundreds of queries with the same demos. Demos must not be changed in
    place.

    A predictor that names one of the models in `named` is answered by it instead of `own`. A teacher, which is neither,
    answers for every predictor.
    """

    def __init__(self, own: dspy.LM | None = None, named: Mapping[str, dspy.LM] | None = None) -> None:
        super().__init__(use_json_adapter_fallback=False)
        self._own = own
        self._named = named or {}
        self._formatted: dict[tuple[Any, ...], tuple[list[Any], list[dict[str, Any]]]] = {}

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return super().__call__(
            self._asked(lm, signature), lm_kwargs | _response_format(signature), signature, demos, inputs
        )

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return await super().acall(
            self._asked(lm, signature), lm_kwargs | _response_format(signature), signature, demos, inputs
        )

    def _asked(self, lm: Any, signature: Any) -> Any:
        return self._named.get(named_model(signature), lm) if lm is self._own else lm

    def format_system_message(self, signature: Any) -> str:
        if answer_format(signature) == CHAT:
            return super().format_system_message(signature)
        return "\n\n".join(
            [
                textwrap.dedent(signature.instructions).strip(),
                "Given:\n" + _described(signature.input_fields),
                "Answer with one JSON object that has these keys:\n" + _described(signature.output_fields),
            ]
        )

    def format_demos(self, signature: Any, demos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        key = (id(signature), *(id(demo) for demo in demos))
        kept = self._formatted.get(key)
        if kept is None:
            while len(self._formatted) >= _KEPT:
                self._formatted.pop(next(iter(self._formatted)), None)
            # The objects are kept too, so that their ids are not reused.
            kept = ([signature, *demos], super().format_demos(signature, demos))
            self._formatted[key] = kept
        return list(kept[1])

    def format_user_message_content(
        self, signature: Any, inputs: dict[str, Any], prefix: str = "", suffix: str = "", main_request: bool = False
    ) -> str:
        if answer_format(signature) == CHAT:
            return super().format_user_message_content(signature, inputs, prefix, suffix, main_request)
        fields = [
            f"{name}: {format_field_value(field_info=info, value=inputs[name])}"
            for name, info in signature.input_fields.items()
            if inputs.get(name) not in (None, "")
        ]
        return "\n".join([text for text in (prefix, *fields, suffix) if text]) or "(nothing is given)"

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        if answer_format(signature) == CHAT:
            return super().format_assistant_message_content(signature, outputs, missing_field_message)
        shown = {name: outputs[name] for name in signature.output_fields if name in outputs}
        return json.dumps(serialize_for_json(shown), ensure_ascii=False)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        read = read_sections if answer_format(signature) == CHAT else read_json
        try:
            return read(completion, {name: info.annotation for name, info in signature.output_fields.items()})
        except ValueError as e:
            raise AdapterParseError(
                adapter_name=type(self).__name__, signature=signature, lm_response=completion, message=str(e)
            ) from None


def _response_format(signature: type[dspy.Signature]) -> dict[str, Any]:
    return {} if answer_format(signature) == CHAT else {"response_format": _schema(signature)}


@lru_cache(maxsize=64)
def _schema(signature: type[dspy.Signature]) -> dict[str, Any]:
    """Return the answer's JSON schema in OpenAI's strict form: every key is required and no other is allowed."""
    properties = {name: _type_schema(info.annotation) for name, info in signature.output_fields.items()}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _type_schema(annotation: Any) -> dict[str, Any]:
    # For a single label pydantic makes a `const`, which strict mode does not support.
    if get_origin(annotation) is Literal:
        return {"type": "string", "enum": [str(label) for label in get_args(annotation)]}
    if get_origin(annotation) is list and get_origin(get_args(annotation)[0]) is Literal:
        return {"type": "array", "items": _type_schema(get_args(annotation)[0])}
    return TypeAdapter(annotation).json_schema()


def _described(fields: dict[str, Any]) -> str:
    lines = []
    for name, info in fields.items():
        described = info.json_schema_extra.get("desc") or ""
        described = "" if described == f"${{{name}}}" else described
        unnamed = [label for label in _labels(info.annotation) if not _names(described, label)]
        lines.append(f"- {name}: {described}" + (f" (one of {', '.join(unnamed)})" if unnamed else ""))
    return "\n".join(lines)


def _names(text: str, label: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text) is not None


def _labels(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) is Literal else ()
